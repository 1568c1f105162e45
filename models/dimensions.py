"""Dimensions of a model, and the parameters and FLOPs that follow from them. No array library."""

from dataclasses import dataclass

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
