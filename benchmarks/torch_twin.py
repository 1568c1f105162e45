"""The PyTorch side of a benchmark: the same models, optimizer and precision as exajax's.

Weights come from exajax's own initial parameters, so the losses of both sides can be compared
step by step: they agree as long as both compute the same mathematics.

Shapes as in `exajax.models.layers`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Attention(nn.Module):
    """Causal self-attention; one product makes queries, keys and values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        bias = config.family == "gpt"
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        out = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.width, out, bias=bias)
        self.out = nn.Linear(config.width, config.width, bias=bias)

    def forward(self, x_BTD: torch.Tensor, turn: tuple | None) -> torch.Tensor:
        B, T, D = x_BTD.shape
        sizes = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        q_BNTH, k_BKTH, v_BKTH = (
            part.view(B, T, -1, self.head_dim).transpose(1, 2)
            for part in self.qkv(x_BTD).split(sizes, dim=-1)
        )
        if turn is not None:
            q_BNTH, k_BKTH = rotary(q_BNTH, *turn), rotary(k_BKTH, *turn)
        mixed_BNTH = functional.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        return self.out(mixed_BNTH.transpose(1, 2).reshape(B, T, D))


def rotary(x_BNTH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x_BNTH.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x_BNTH.dtype)


class Block(nn.Module):
    """Pre-norm attention and feed-forward of a gpt or a llama."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, ffn = config.width, config.ffn
        self.gpt = config.family == "gpt"
        norm = nn.LayerNorm if self.gpt else nn.RMSNorm
        self.attention_norm, self.mlp_norm = norm(D, eps=1e-5), norm(D, eps=1e-5)
        self.attention = Attention(config)
        self.up = nn.Linear(D, ffn, bias=self.gpt)
        self.gate = None if self.gpt else nn.Linear(D, ffn, bias=False)
        self.down = nn.Linear(ffn, D, bias=self.gpt)

    def forward(self, x_BTD: torch.Tensor, turn: tuple | None) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), turn)
        h_BTD = self.mlp_norm(x_BTD)
        if self.gate is None:
            return x_BTD + self.down(functional.gelu(self.up(h_BTD), approximate="tanh"))
        return x_BTD + self.down(functional.silu(self.gate(h_BTD)) * self.up(h_BTD))


class Model(nn.Module):
    """A gpt or a llama of exajax's dimensions; returns the mean next-token loss."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, V = config.width, config.padded_vocab
        self.config, gpt = config, config.family == "gpt"
        self.embed = nn.Embedding(V, D)
        self.position = nn.Parameter(torch.empty(config.seq, D)) if gpt else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = (nn.LayerNorm if gpt else nn.RMSNorm)(D, eps=1e-5)
        self.logits = None if gpt else nn.Linear(D, V, bias=False)

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        T, turn = tokens_BT.shape[1], None
        x_BTD = self.embed(tokens_BT)
        if self.position is not None:
            x_BTD = x_BTD + self.position[:T]
        else:
            H, theta = self.config.head_dim, self.config.rope_theta
            even_H = torch.arange(0, H, 2, device=x_BTD.device, dtype=torch.float32)
            angle_TH = torch.arange(T, device=x_BTD.device)[:, None] * theta ** (-even_H / H)
            turn = angle_TH.cos(), angle_TH.sin()
        for block in self.blocks:
            x_BTD = block(x_BTD, turn)
        x_BTD = self.norm(x_BTD)
        table_VD = self.embed.weight if self.logits is None else self.logits.weight
        logits_BTV = functional.linear(x_BTD, table_VD)
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def draw(model: Model) -> None:
    """Draws weights as exajax does, with other random numbers."""
    residual = 0.02 / (2 * model.config.layers) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            small = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, std=residual if small else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def load(model: Model, params: Mapping[str, Any]) -> None:
    """Copies exajax's parameters into the twin: stacked [L, in, out] kernels become [out, in]."""

    def put(parameter: torch.Tensor, value: Any) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(value)).view(parameter.shape))

    def linear(target: nn.Linear, sources: list[Any], layer: int) -> None:
        """Puts the maps `sources` side by side, their heads flattened."""
        inputs = target.in_features
        kernels = [np.asarray(s["kernel"][layer]).reshape(inputs, -1) for s in sources]
        put(target.weight, np.concatenate(kernels, axis=1).T)
        if target.bias is not None:
            put(target.bias, np.concatenate([np.ravel(s["bias"][layer]) for s in sources]))

    def norm(target: nn.Module, source: Any, layer: int | None) -> None:
        for name, theirs in (("weight", "scale"), ("bias", "bias")):
            if theirs in source:
                value = np.asarray(source[theirs])
                put(getattr(target, name), value if layer is None else value[layer])

    put(model.embed.weight, params["embed"]["table"])
    if model.position is not None:
        put(model.position, params["position"])
    else:
        put(model.logits.weight, np.asarray(params["logits"]["kernel"]).T)
    norm(model.norm, params["norm"], None)
    stacked = params["stack"]["blocks"]
    for layer, block in enumerate(model.blocks):
        attention, mlp = stacked["attention"], stacked if block.gpt else stacked["mlp"]
        norm(block.attention_norm, stacked["attention_norm"], layer)
        norm(block.mlp_norm, stacked["mlp_norm"], layer)
        linear(block.attention.qkv, [attention[n] for n in ("query", "key", "value")], layer)
        linear(block.attention.out, [attention["out"]], layer)
        linear(block.up, [mlp["up"]], layer)
        linear(block.down, [mlp["down"]], layer)
        if block.gate is not None:
            linear(block.gate, [mlp["gate"]], layer)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up from nothing and a cosine to a tenth, as `exajax.recipe.optimizer` has it."""
    peak, warm = recipe.learning_rate, recipe.warmup_steps
    if step < warm:
        return peak * step / warm
    total = max(recipe.steps, warm + 1)
    done = min(1.0, (step - warm) / (total - warm))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


class Trainer:
    """One optimizer step at a time, with exajax's precision policy.

    fp32 masters and moments, passes in the recipe's type: for bf16 the model holds bf16 copies of
    the masters, renewed after every update.
    """

    def __init__(
        self, recipe: Recipe, device: str, *, compiled: bool, params: Mapping[str, Any] | None
    ):
        torch.manual_seed(recipe.seed)
        with torch.device(device):
            model = Model(recipe.model)
        if params is None:
            draw(model)
        else:
            load(model, params)
        self.recipe, self.device, self.step = recipe, device, 0
        narrow = DTYPES[recipe.precision]
        masters = [p.detach().clone() for p in model.parameters()]
        model = model.to(narrow)
        self.weights = list(model.parameters())
        self.masters = self.weights if narrow is torch.float32 else masters
        decays = [p.ndim > 1 for p in self.masters]
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [
                        p for p, d in zip(self.masters, decays, strict=True) if d is decayed
                    ],
                    "weight_decay": recipe.weight_decay if decayed else 0.0,
                }
                for decayed in (True, False)
            ],
            betas=(0.9, 0.95),
            eps=1e-8,
            fused=True,
        )
        self.loss: Callable[..., torch.Tensor] = torch.compile(model) if compiled else model

    def __call__(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> torch.Tensor:
        """Starts one update and returns its loss, [] on the device."""
        tokens, targets = (
            torch.from_numpy(x.astype(np.int64)).to(self.device) for x in (inputs_BT, targets_BT)
        )
        loss = self.loss(tokens, targets)
        loss.backward()
        if self.masters is not self.weights:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, self.recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        self.optimizer.step()
        if self.masters is not self.weights:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        for weight in self.weights:
            weight.grad = None
        self.step += 1
        return loss.detach()
