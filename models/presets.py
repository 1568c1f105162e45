"""Model dimensions by name. Plain data: reading it imports no array library."""

from dataclasses import dataclass
from pathlib import Path

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, is_folder, shown

FLOPS_CONVENTION = (
    "MFU counts what the mathematics of the model needs: 6 FLOPs for each token and each parameter "
    "of a matrix that it is multiplied with, 12 x layers x width x seq for each token's attention, "
    "half of that under a causal mask (as Megatron-LM, NeMo and MaxText count it; PaLM, appendix "
    "B, counts the masked half too), nothing recomputed. HFU counts the products that the devices "
    "perform: recomputed ones, padding, masked scores and pipeline bubbles included"
)
"""How FLOPs are counted everywhere: both pricing engines, measured runs and benchmarks."""


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of a transformer: a decoder of text, or an encoder of images.

    Attributes:
        name: what people call it.
        family: `gpt` (learned positions, LayerNorm, GELU, biases, tied logits), `llama` (rotary
            positions, RMSNorm, SwiGLU, grouped KV heads), `mixtral` (llama with experts) or `vit`
            (the blocks of gpt without a causal mask, over patches of images).
        layers: number of blocks.
        width: size of the residual stream.
        heads: query heads; the size of a head is width / heads.
        kv_heads: key and value heads; divides `heads`.
        ffn: width of the feed-forward layer.
        vocab: tokens the tokenizer knows, or classes of images; `padded_vocab` of them have a
            logit.
        seq: longest sequence, in tokens; a vit's are the patches of an image, all of them.
        rope_theta: base of the rotary frequencies (llama, mixtral).
        experts: feed-forward experts of a mixture layer (mixtral).
        top_k: experts that each token goes to (mixtral).
        moe_every: one layer of so many is a mixture, the last of them (mixtral).
        balance: weight of the load-balancing loss of each mixture layer, alpha of
            arXiv:2101.03961 (mixtral).
        image: height and width of an image, in pixels (vit).
        patch: height and width of a patch (vit).
        channels: colours of a pixel (vit).
        source: where the dimensions are published.
    """

    name: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    seq: int
    rope_theta: float = 10_000.0
    source: str = ""
    experts: int = 0
    top_k: int = 0
    moe_every: int = 1
    image: int = 0
    patch: int = 0
    channels: int = 0
    balance: float = 0.01

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads

    @property
    def padded_vocab(self) -> int:
        """The vocabulary padded to a multiple of 128, so that any usual mesh divides it.

        Classes, which are few, are padded to a multiple of 8.
        """
        multiple = 8 if self.family == "vit" else 128
        return -(-self.vocab // multiple) * multiple

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.family != "vit"

    @property
    def patch_size(self) -> int:
        """Numbers in a patch of an image."""
        return self.patch**2 * self.channels

    @property
    def described(self) -> str:
        """Name and size in words, the padding of an odd vocabulary told."""
        size = (
            f"{self.parameters / 1e9:.3g} G"
            if self.parameters > 1e9
            else (f"{self.parameters / 1e6:.3g} M")
        )
        what = "classes" if self.family == "vit" else "vocabulary"
        padded = f", {what} {self.vocab:,} padded to {self.padded_vocab:,}"
        told = padded if self.padded_vocab != self.vocab else ""
        return f"{self.name} ({size} parameters{told})"

    @property
    def mixture_layers(self) -> int:
        """Layers whose feed-forward is a mixture of experts."""
        return self.layers // self.moe_every if self.experts else 0

    @property
    def mixture_share(self) -> float:
        """Share of the layers whose feed-forward is a mixture."""
        return self.mixture_layers / self.layers

    @property
    def matmul_parameters(self) -> int:
        """Parameters that multiply every token: all matrices and the logits, no look-up table.

        Of a mixture layer, the router and the `top_k` experts that a token goes to. Of a vit, what
        multiplies every patch: the map from its pixels, and not the logits, which are an image's.
        """
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mixture = self.top_k * self._feed_forward + self.width * self.experts
        ends = self.patch_size if self.family == "vit" else self.padded_vocab
        return (
            self.layers * attention
            + (self.layers - self.mixture_layers) * self._feed_forward
            + self.mixture_layers * mixture
            + self.width * ends
        )

    @property
    def parameters(self) -> int:
        """All parameters, padding included."""
        D, V = self.width, self.padded_vocab
        outside = {
            "gpt": D * self.seq + 2 * D,  # positions and final norm; the logits are the table
            "vit": D + D * self.seq + 2 * D + (D + 1) * V,  # bias of the patches, ..., the logits
        }.get(self.family, D * V + D)
        if self._biased:
            vectors = 4 * D + self.head_dim * (self.heads + 2 * self.kv_heads) + 2 * D + self.ffn
        else:
            vectors = 2 * D
        idle = self.mixture_layers * (self.experts - self.top_k) * self._feed_forward
        return self.matmul_parameters + idle + self.layers * vectors + outside

    @property
    def _biased(self) -> bool:
        """Whether blocks are those of gpt: LayerNorm, biases, a plain feed-forward."""
        return self.family in ("gpt", "vit")

    @property
    def _feed_forward(self) -> int:
        """Parameters of one feed-forward layer, or of one expert."""
        return (2 if self._biased else 3) * self.width * self.ffn

    def step_flops(
        self,
        sequences: int,
        seq: int,
        remat: str = "none",
        *,
        scores: float | None = None,
        served: float = 1.0,
    ) -> float:
        """FLOPs of one training step; without recomputation those of the model.

        6 x parameters x tokens for the matrices, and 12 x layers x width x seq for each token's
        attention (scores and mix, forward and twice backward). A causal mask hides half of the
        scores, and they are not counted: so do Megatron-LM (`num_floating_point_operations`), NeMo
        (`flops_formulas.py`) and MaxText (`calculate_tflops_training_per_device`); PaLM, appendix B
        (arXiv:2204.02311), counts all. The logits of a vit count once an image, and its patches
        have no gradient.

        Args:
            sequences: of a step.
            seq: tokens of each.
            remat: `attention` does the products of attention once more, `selective` those of
                experts too; `full` all of a block's but the last, whose result nothing needs (the
                experts' is needed, by their gates).
            scores: share of the scores of attention that count; those that the mask shows if it is
                not given.
            served: share of what tokens send to experts that these have room for.
        """
        tokens = sequences * seq
        shown = (0.5 if self.causal else 1.0) if scores is None else scores
        attention = 4.0 * tokens * self.layers * self.width * seq * shown
        experts = 2.0 * tokens * self.mixture_layers * self.top_k * self._feed_forward
        flops = 6.0 * tokens * self.matmul_parameters + 3 * attention - 3 * (1 - served) * experts
        if self.family == "vit":
            flops += sequences * 6.0 * self.width * self.padded_vocab
            flops -= 2.0 * tokens * self.width * self.patch_size
        if remat == "selective":
            flops += served * experts
        if remat == "full":
            ends = self.patch_size if self.family == "vit" else self.padded_vocab
            in_blocks = self.matmul_parameters - self.width * ends
            last = (self.layers - self.mixture_layers) * self.width * self.ffn
            flops += 2.0 * tokens * (in_blocks - last) - (1 - served) * experts
        return flops if remat == "none" else flops + attention


def _gpt(
    name: str, layers: int, width: int, heads: int, seq: int, ffn: int = 0, source: str = ""
) -> ModelConfig:
    return ModelConfig(
        name, "gpt", layers, width, heads, heads, ffn or 4 * width, 50_257, seq, source=source
    )


def _llama(
    name: str,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    seq: int,
    rope_theta: float,
    source: str,
) -> ModelConfig:
    return ModelConfig(
        name, "llama", layers, width, heads, kv_heads, ffn, vocab, seq, rope_theta, source
    )


def _vit(
    name: str,
    layers: int,
    width: int,
    heads: int,
    *,
    classes: int = 1000,
    image: int = 224,
    patch: int = 16,
    channels: int = 3,
    source: str,
) -> ModelConfig:
    return ModelConfig(
        name,
        "vit",
        layers,
        width,
        heads,
        heads,
        4 * width,
        classes,
        (image // patch) ** 2,
        source=source,
        image=image,
        patch=patch,
        channels=channels,
    )


_GPT2 = "Radford et al. 2019, table 2"
_GPT3 = "arXiv:2005.14165, table 2.1"
_LLAMA2 = "arXiv:2307.09288"
_LLAMA3 = "arXiv:2407.21783, table 3"
_MIXTRAL = "arXiv:2401.04088, table 1"
_VIT = "arXiv:2010.11929, table 1"

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        _gpt("gpt2-124m", 12, 768, 12, 1024, source=_GPT2),
        _gpt("gpt2-355m", 24, 1024, 16, 1024, source=_GPT2),
        _gpt("gpt2-774m", 36, 1280, 20, 1024, source=_GPT2),
        _gpt("gpt2-1.5b", 48, 1600, 25, 1024, source=_GPT2),
        _gpt("gpt3-125m", 12, 768, 12, 2048, source=_GPT3),
        _gpt("gpt3-350m", 24, 1024, 16, 2048, source=_GPT3),
        _gpt("gpt3-760m", 24, 1536, 16, 2048, source=_GPT3),
        # The table's 24 heads of 128 do not make 2,048; 16 do, as others train it.
        _gpt("gpt3-1.3b", 24, 2048, 16, 2048, source=_GPT3),
        _gpt("gpt3-2.7b", 32, 2560, 32, 2048, source=_GPT3),
        _gpt("gpt3-6.7b", 32, 4096, 32, 2048, source=_GPT3),
        # The table's width of 5,140 is not 40 heads of 128; 5,120 is.
        _gpt("gpt3-13b", 40, 5120, 40, 2048, source=_GPT3),
        _gpt("gpt3-175b", 96, 12288, 96, 2048, source=_GPT3),
        _llama("llama2-7b", 32, 4096, 32, 32, 11008, 32_000, 4096, 1e4, _LLAMA2),
        _llama("llama2-13b", 40, 5120, 40, 40, 13824, 32_000, 4096, 1e4, _LLAMA2),
        _llama("llama2-70b", 80, 8192, 64, 8, 28672, 32_000, 4096, 1e4, _LLAMA2),
        _llama("llama3-8b", 32, 4096, 32, 8, 14336, 128_256, 8192, 5e5, _LLAMA3),
        _llama("llama3-70b", 80, 8192, 64, 8, 28672, 128_256, 8192, 5e5, _LLAMA3),
        _llama("llama3-405b", 126, 16384, 128, 8, 53248, 128_256, 8192, 5e5, _LLAMA3),
        ModelConfig(
            name="mixtral-8x7b",
            family="mixtral",
            layers=32,
            width=4096,
            heads=32,
            kv_heads=8,
            ffn=14336,
            vocab=32_000,
            seq=32_768,
            rope_theta=1e6,
            source=_MIXTRAL,
            experts=8,
            top_k=2,
            # router_aux_loss_coef 0.02 of mistralai/Mixtral-8x7B-v0.1, by `balance_of` there.
            balance=0.02 * 2 / 32,
        ),
        # The feed-forward width is what makes 250 G of the dimensions that the name stands for.
        ModelConfig(
            name="alphaexa-250b",
            family="mixtral",
            layers=120,
            width=16384,
            heads=128,
            kv_heads=16,
            ffn=4864,
            vocab=32_000,
            seq=4096,
            rope_theta=5e5,
            source="ours",
            experts=32,
            top_k=2,
            moe_every=6,
        ),
        _vit("vit-b", 12, 768, 12, source=_VIT),
        _vit("vit-l", 24, 1024, 16, source=_VIT),
        # Twins of seconds on a CPU: every mesh of 8 devices divides them.
        ModelConfig("gpt-tiny", "gpt", 8, 128, 16, 16, 512, 256, 128, source="ours"),
        ModelConfig("llama-tiny", "llama", 8, 128, 16, 8, 384, 256, 128, source="ours"),
        ModelConfig(
            name="mixtral-tiny",
            family="mixtral",
            layers=8,
            width=128,
            heads=16,
            kv_heads=8,
            ffn=192,
            vocab=256,
            seq=128,
            source="ours",
            experts=8,
            top_k=2,
        ),
        _vit("vit-tiny", 8, 128, 16, classes=10, image=8, patch=2, channels=1, source="ours"),
    )
}


def lookup(name: str, field: str = "--model") -> ModelConfig:
    """Returns a model by preset name, or read from a TOML file of `ModelConfig`'s fields.

    A folder in Hugging Face's form, with a `config.json`, is read as well.

    Raises:
        InputError: no such preset or file, or the file's fields are not those of a model.
    """
    from exajax.models import model_file  # it needs ModelConfig
    from exajax.models.huggingface.config import CONFIG, read_config

    if name.lower() in PRESETS:
        return PRESETS[name.lower()]
    path = Path(name)
    try:
        if name and is_folder(path):
            path, folder = path / CONFIG, path
            return model_file.of_table(read_config(folder))
        if name.endswith(".toml"):
            return model_file.read_model(path)
    except Malformed as error:
        raise error.within(field, path) from error
    raise InputError(field, f"unknown model {shown(name)}", nearest(name, PRESETS))


TWINS = {"gpt": "gpt-tiny", "llama": "llama-tiny", "mixtral": "mixtral-tiny", "vit": "vit-tiny"}
"""The model of each family that trains in seconds on a CPU."""


def twin_of(config: ModelConfig) -> ModelConfig:
    """Returns the small model of the same family: the same code, fewer and narrower layers."""
    return PRESETS[TWINS[config.family]]
