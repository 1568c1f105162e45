"""Dimensions of a model, and its numbers of parameters and FLOPs. Does not import JAX."""

from dataclasses import dataclass

FLOPS_CONVENTION = (
    "MFU counts what the mathematics of the model needs: 6 FLOPs for each token and each parameter "
    "of a matrix that it is multiplied with, 12 x layers x width x seq for each token's attention, "
    "half of that under a causal mask (as Megatron-LM, NeMo and MaxText count it; PaLM, appendix "
    "B, counts the masked half too), nothing recomputed. HFU counts the products that the devices "
    "perform: recomputed ones, padding, masked scores and pipeline bubbles included"
)
"""How FLOPs are counted, in both pricing engines, measured runs and benchmarks."""


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of a transformer: a decoder of text, or an encoder of images.

    Attributes:
        name: short name, such as `llama2-7b`.
        family: `gpt` (learned positions, LayerNorm, GELU, biases, tied logits), `llama` (rotary
            positions, RMSNorm, SwiGLU, grouped KV heads), `mixtral` (llama with experts) or `vit`
            (the blocks of gpt without a causal mask, over patches of images).
        layers: number of blocks.
        width: size of the residual stream.
        heads: query heads; the size of a head is width / heads.
        kv_heads: key and value heads; divides `heads`.
        ffn: width of the feed-forward layer.
        vocab: tokens of the tokenizer, or classes of images; there are `padded_vocab` logits.
        seq: longest sequence, in tokens; for a vit, the number of patches of an image.
        rope_theta: base of the rotary frequencies (llama, mixtral).
        experts: experts of a mixture layer (mixtral).
        top_k: experts that each token is routed to (mixtral).
        moe_every: every `moe_every`-th layer is a mixture (mixtral).
        balance: weight of the load-balancing loss of each mixture layer, alpha of
            arXiv:2101.03961 (mixtral).
        image: height and width of an image, in pixels (vit).
        patch: height and width of a patch (vit).
        channels: colours of a pixel (vit).
        source: publication of the dimensions.
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
    def tied(self) -> bool:
        """Whether the logits' matrix is the table of tokens."""
        return self.family == "gpt"

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has two ways up, one of which gates the other (SwiGLU)."""
        return not self.biased

    @property
    def up_matrices(self) -> int:
        """Matrices on the way up in the feed-forward: 2 where it is gated."""
        return 2 if self.gated else 1

    @property
    def is_text(self) -> bool:
        """Whether samples are sequences of tokens, not images."""
        return self.family != "vit"

    @property
    def patch_size(self) -> int:
        """Numbers in a patch of an image."""
        return self.patch**2 * self.channels

    @property
    def summary(self) -> str:
        """Name and size for people, with the padded vocabulary if it is padded."""
        size = (
            f"{self.parameters / 1e9:.3g} G"
            if self.parameters > 1e9
            else (f"{self.parameters / 1e6:.3g} M")
        )
        padding = ""
        if self.padded_vocab != self.vocab:
            entries = "classes" if self.family == "vit" else "vocabulary"
            padding = f", {entries} {self.vocab:,} padded to {self.padded_vocab:,}"
        return f"{self.name} ({size} parameters{padding})"

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
        """Parameters that multiply each token: all matrices and the logits, not the embedding.

        Of a mixture layer these are the router and the `top_k` experts of a token. Of a vit they
        include the projection of a patch's pixels, but not the logits, computed once an image.
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
        """All parameters, including the padding of the vocabulary."""
        D, V = self.width, self.padded_vocab
        outside = {
            "gpt": D * self.seq + 2 * D,  # positions and final norm; the logits are the table
            # Bias of the patches' projection, positions, final norm, logits with bias.
            "vit": D + D * self.seq + 2 * D + (D + 1) * V,
        }.get(self.family, D * V + D)
        if self.biased:
            vectors = 4 * D + self.head_dim * (self.heads + 2 * self.kv_heads) + 2 * D + self.ffn
        else:
            vectors = 2 * D
        idle = self.mixture_layers * (self.experts - self.top_k) * self._feed_forward
        return self.matmul_parameters + idle + self.layers * vectors + outside

    @property
    def biased(self) -> bool:
        """Whether blocks are GPT's, with LayerNorm, biases, and a feed-forward without a gate."""
        return self.family in ("gpt", "vit")

    @property
    def _feed_forward(self) -> int:
        """Parameters of one feed-forward layer, or of one expert."""
        return (2 if self.biased else 3) * self.width * self.ffn

    def step_flops(
        self,
        sequences: int,
        seq: int,
        remat: str = "none",
        *,
        scores: float | None = None,
        served: float = 1.0,
    ) -> float:
        """FLOPs of one training step.

        6 x parameters x tokens for the matrices, and 12 x layers x width x seq for each token's
        attention (scores and weighted values, forward and twice in backward). Scores under a causal
        mask, half of all, are not counted, like in Megatron-LM (`num_floating_point_operations`),
        NeMo (`flops_formulas.py`) and MaxText (`calculate_tflops_training_per_device`); PaLM,
        appendix B (arXiv:2204.02311), counts them. The logits of a vit count once an image, and its
        patches have no gradient.

        Args:
            sequences: sequences of a step.
            seq: tokens of a sequence.
            remat: what is recomputed, and counted once more: `none`; `attention` the products of
                attention; `selective` also those of experts; `full` all of a block's but the last
                one, whose result backward does not need (the experts' gates do need theirs).
            scores: share of the attention scores that count; by default those that are not masked.
            served: share of the tokens' choices of an expert that are within its capacity.
        """
        tokens = sequences * seq
        counted = (0.5 if self.causal else 1.0) if scores is None else scores
        attention = 4.0 * tokens * self.layers * self.width * seq * counted
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
