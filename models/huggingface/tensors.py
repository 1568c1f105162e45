"""Which of our arrays is which of theirs: one table a family, read in both directions.

Axes: L layer, E expert, D width, N query heads, K KV heads, H head size, F feed-forward width,
V vocabulary, T position, R routed-to expert.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from exajax.models.dimensions import ModelConfig

FUSED = 3
"""GPT-2 keeps query, key and value in one tensor."""


@dataclass(frozen=True)
class Pair:
    """One of our arrays, and the tensors that hold it.

    Attributes:
        ours: path in the tree of parameters.
        theirs: name of the tensors; `{L}` and `{E}` stand for the numbers of layer and expert.
        our_axes: axes of our array, one letter each.
        their_axes: axes of one tensor, parted by spaces; letters that stand together are one axis,
            the first outermost. A leading digit says which third of the axis it is.
    """

    ours: str
    theirs: str
    our_axes: str
    their_axes: str

    @property
    def named_axes(self) -> str:
        """Our leading axes, that are told by the tensor's name."""
        return "".join(axis for axis in self.our_axes if f"{{{axis}}}" in self.theirs)

    def name(self, numbers: Sequence[int]) -> str:
        """Returns the tensor of some layer and expert, numbers of `named_axes`."""
        return self.theirs.format(**dict(zip(self.named_axes, numbers, strict=True)))


_BLOCKS, _H, _LAYERS = "stack.blocks.", "transformer.h.{L}.", "model.layers.{L}."

_ROTARY = (
    Pair("embed.table", "model.embed_tokens.weight", "VD", "V D"),
    Pair(_BLOCKS + "attention_norm.scale", _LAYERS + "input_layernorm.weight", "LD", "D"),
    Pair(_BLOCKS + "attention.query.kernel", _LAYERS + "self_attn.q_proj.weight", "LDNH", "NH D"),
    Pair(_BLOCKS + "attention.key.kernel", _LAYERS + "self_attn.k_proj.weight", "LDKH", "KH D"),
    Pair(_BLOCKS + "attention.value.kernel", _LAYERS + "self_attn.v_proj.weight", "LDKH", "KH D"),
    Pair(_BLOCKS + "attention.out.kernel", _LAYERS + "self_attn.o_proj.weight", "LNHD", "D NH"),
    Pair(_BLOCKS + "mlp_norm.scale", _LAYERS + "post_attention_layernorm.weight", "LD", "D"),
    Pair("norm.scale", "model.norm.weight", "D", "D"),
    Pair("logits.kernel", "lm_head.weight", "DV", "V D"),
)

_MOE, _EXPERT = _LAYERS + "block_sparse_moe.", _LAYERS + "block_sparse_moe.experts.{E}."

PAIRS: dict[str, tuple[Pair, ...]] = {
    "gpt": (
        Pair("embed.table", "transformer.wte.weight", "VD", "V D"),
        Pair("position", "transformer.wpe.weight", "TD", "T D"),
        Pair(_BLOCKS + "attention_norm.scale", _H + "ln_1.weight", "LD", "D"),
        Pair(_BLOCKS + "attention_norm.bias", _H + "ln_1.bias", "LD", "D"),
        Pair(_BLOCKS + "attention.query.kernel", _H + "attn.c_attn.weight", "LDNH", "D 0NH"),
        Pair(_BLOCKS + "attention.key.kernel", _H + "attn.c_attn.weight", "LDNH", "D 1NH"),
        Pair(_BLOCKS + "attention.value.kernel", _H + "attn.c_attn.weight", "LDNH", "D 2NH"),
        Pair(_BLOCKS + "attention.query.bias", _H + "attn.c_attn.bias", "LNH", "0NH"),
        Pair(_BLOCKS + "attention.key.bias", _H + "attn.c_attn.bias", "LNH", "1NH"),
        Pair(_BLOCKS + "attention.value.bias", _H + "attn.c_attn.bias", "LNH", "2NH"),
        Pair(_BLOCKS + "attention.out.kernel", _H + "attn.c_proj.weight", "LNHD", "NH D"),
        Pair(_BLOCKS + "attention.out.bias", _H + "attn.c_proj.bias", "LD", "D"),
        Pair(_BLOCKS + "mlp_norm.scale", _H + "ln_2.weight", "LD", "D"),
        Pair(_BLOCKS + "mlp_norm.bias", _H + "ln_2.bias", "LD", "D"),
        Pair(_BLOCKS + "up.kernel", _H + "mlp.c_fc.weight", "LDF", "D F"),
        Pair(_BLOCKS + "up.bias", _H + "mlp.c_fc.bias", "LF", "F"),
        Pair(_BLOCKS + "down.kernel", _H + "mlp.c_proj.weight", "LFD", "F D"),
        Pair(_BLOCKS + "down.bias", _H + "mlp.c_proj.bias", "LD", "D"),
        Pair("norm.scale", "transformer.ln_f.weight", "D", "D"),
        Pair("norm.bias", "transformer.ln_f.bias", "D", "D"),
    ),
    "llama": (
        *_ROTARY,
        Pair(_BLOCKS + "mlp.gate.kernel", _LAYERS + "mlp.gate_proj.weight", "LDF", "F D"),
        Pair(_BLOCKS + "mlp.up.kernel", _LAYERS + "mlp.up_proj.weight", "LDF", "F D"),
        Pair(_BLOCKS + "mlp.down.kernel", _LAYERS + "mlp.down_proj.weight", "LFD", "D F"),
    ),
    "mixtral": (
        *_ROTARY,
        Pair(_BLOCKS + "moe.router.kernel", _MOE + "gate.weight", "LDR", "R D"),
        Pair(_BLOCKS + "moe.gate", _EXPERT + "w1.weight", "LEDF", "F D"),
        Pair(_BLOCKS + "moe.up", _EXPERT + "w3.weight", "LEDF", "F D"),
        Pair(_BLOCKS + "moe.down", _EXPERT + "w2.weight", "LEFD", "D F"),
    ),
}


def sizes(config: ModelConfig) -> dict[str, int]:
    """Returns the length of every axis in their tensors; our V is padded."""
    return {
        "L": config.layers,
        "E": config.experts,
        "R": config.experts,
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "F": config.ffn,
        "V": config.vocab,
        "T": config.seq,
    }


def names(config: ModelConfig) -> Iterator[str]:
    """Yields the name of every tensor of a model; a tensor of several parts once for each."""
    for pair, numbers in _parts(config):
        yield pair.name(numbers)


def tensors(config: ModelConfig) -> dict[str, list[tuple[Pair, tuple[int, ...]]]]:
    """Returns every tensor of a model by name: the parts it is made of, in order.

    A part is a pair and the layer and expert that it is of.
    """
    parts: dict[str, list[tuple[Pair, tuple[int, ...]]]] = {}
    for pair, numbers in _parts(config):
        parts.setdefault(pair.name(numbers), []).append((pair, numbers))
    return parts


def _parts(config: ModelConfig) -> Iterator[tuple[Pair, tuple[int, ...]]]:
    lengths = sizes(config)
    for pair in PAIRS[config.family]:
        for numbers in itertools.product(*(range(lengths[axis]) for axis in pair.named_axes)):
            yield pair, numbers


def their_shape(pair: Pair, config: ModelConfig) -> tuple[int, ...]:
    """Returns the shape of a whole tensor that holds a pair."""
    lengths = sizes(config) | dict.fromkeys("012", FUSED)
    return tuple(math.prod(lengths[axis] for axis in group) for group in pair.their_axes.split())


class Readable(Protocol):
    """A tensor in a file, of which a part can be read."""

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """Reads a part."""


def to_ours(
    pair: Pair,
    index: Sequence[slice],
    config: ModelConfig,
    tensor: Callable[[str], Readable],
    dtype: np.dtype,
) -> np.ndarray:
    """Reads a part of one of our arrays; rows of the padding of the vocabulary are zero.

    Args:
        pair: which array.
        index: which part of it, one slice for each of our axes.
        config: dimensions.
        tensor: opens a tensor by name. Of each, little more than the part is read.
        dtype: type of the result.
    """
    lengths = sizes(config) | {"V": config.padded_vocab}
    ranges = {
        axis: range(*part.indices(lengths[axis]))
        for axis, part in zip(pair.our_axes, index, strict=True)
    }
    part = np.zeros([len(ranges[axis]) for axis in pair.our_axes], dtype)
    named = [ranges[axis] for axis in pair.named_axes]
    for place in itertools.product(*(range(len(numbers)) for numbers in named)):
        name = pair.name([numbers[i] for numbers, i in zip(named, place, strict=True)])
        block = _read(pair, ranges, config, tensor(name))
        part[place][tuple(slice(size) for size in block.shape)] = block
    return part


def to_theirs(
    parts: Sequence[tuple[Pair, tuple[int, ...]]],
    config: ModelConfig,
    array: Callable[[str], np.ndarray],
) -> np.ndarray:
    """Returns one of their tensors, the padding of the vocabulary cut off.

    Args:
        parts: what it is made of, as `tensors` says.
        config: dimensions.
        array: one of our arrays, by path.
    """
    blocks = []
    for pair, numbers in parts:
        axes = pair.our_axes[len(numbers) :]
        block = array(pair.ours)[numbers]
        block = block[tuple(slice(sizes(config)[axis]) for axis in axes)]
        order = [axes.index(axis) for axis in pair.their_axes if axis in axes]
        whole = their_shape(pair, config)
        blocks.append(block.transpose(order).reshape(*whole[:-1], whole[-1] // len(parts)))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)


def _read(
    pair: Pair, ranges: Mapping[str, range], config: ModelConfig, tensor: Readable
) -> np.ndarray:
    """Reads from one tensor the part that `ranges` names, in the order of our axes."""
    lengths = sizes(config)
    index, shape, cut, order = [], [], [], []
    for group in pair.their_axes.split():
        third, axes = (int(group[0]), group[1:]) if group[0].isdigit() else (0, group)
        # The outermost axis is read in part, and those within it whole: that is one run of rows.
        outer = ranges[axes[0]]
        first, last = outer.start, min(outer.stop, lengths[axes[0]])
        inner = math.prod(lengths[axis] for axis in axes[1:])
        offset = third * inner * lengths[axes[0]]
        index.append(slice(offset + first * inner, offset + max(first, last) * inner))
        shape += [max(0, last - first), *(lengths[axis] for axis in axes[1:])]
        cut += [slice(None), *(slice(ranges[a].start, ranges[a].stop) for a in axes[1:])]
        order += list(axes)
    axes = pair.our_axes[len(pair.named_axes) :]
    if 0 in shape:
        return np.zeros([0] * len(axes), np.float32)
    block = tensor[tuple(index)].reshape(shape)[tuple(cut)]
    return block.transpose([order.index(axis) for axis in axes])
