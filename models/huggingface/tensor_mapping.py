"""Mapping between parameters and Hugging Face's tensors: a table per family, for both directions.

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
"""Arrays in GPT-2's fused tensor of query, key and value."""


@dataclass(frozen=True)
class TensorMapping:
    """A parameter array, and the tensors in a file that contain it.

    Attributes:
        path: path of the array in the tree of parameters.
        tensor_name: name of the tensors; `{L}` and `{E}` stand for the index of layer and expert.
        array_axes: axes of the array, one letter each.
        tensor_axes: axes of one tensor, separated by spaces; adjacent letters form one axis, the
            first outermost. A leading digit says which third of the axis it is.
    """

    path: str
    tensor_name: str
    array_axes: str
    tensor_axes: str

    @property
    def named_axes(self) -> str:
        """Leading axes of the array along which each index is a tensor of its own."""
        return "".join(axis for axis in self.array_axes if f"{{{axis}}}" in self.tensor_name)

    def name(self, numbers: Sequence[int]) -> str:
        """Name of the tensor at an index along `named_axes`."""
        return self.tensor_name.format(**dict(zip(self.named_axes, numbers, strict=True)))


_BLOCKS, _H, _LAYERS = "stack.blocks.", "transformer.h.{L}.", "model.layers.{L}."

_ROTARY = (
    TensorMapping("embed.table", "model.embed_tokens.weight", "VD", "V D"),
    TensorMapping(_BLOCKS + "attention_norm.scale", _LAYERS + "input_layernorm.weight", "LD", "D"),
    TensorMapping(
        _BLOCKS + "attention.query.kernel", _LAYERS + "self_attn.q_proj.weight", "LDNH", "NH D"
    ),
    TensorMapping(
        _BLOCKS + "attention.key.kernel", _LAYERS + "self_attn.k_proj.weight", "LDKH", "KH D"
    ),
    TensorMapping(
        _BLOCKS + "attention.value.kernel", _LAYERS + "self_attn.v_proj.weight", "LDKH", "KH D"
    ),
    TensorMapping(
        _BLOCKS + "attention.out.kernel", _LAYERS + "self_attn.o_proj.weight", "LNHD", "D NH"
    ),
    TensorMapping(
        _BLOCKS + "mlp_norm.scale", _LAYERS + "post_attention_layernorm.weight", "LD", "D"
    ),
    TensorMapping("norm.scale", "model.norm.weight", "D", "D"),
    TensorMapping("logits.kernel", "lm_head.weight", "DV", "V D"),
)

_MOE, _EXPERT = _LAYERS + "block_sparse_moe.", _LAYERS + "block_sparse_moe.experts.{E}."

MAPPINGS: dict[str, tuple[TensorMapping, ...]] = {
    "gpt": (
        TensorMapping("embed.table", "transformer.wte.weight", "VD", "V D"),
        TensorMapping("position", "transformer.wpe.weight", "TD", "T D"),
        TensorMapping(_BLOCKS + "attention_norm.scale", _H + "ln_1.weight", "LD", "D"),
        TensorMapping(_BLOCKS + "attention_norm.bias", _H + "ln_1.bias", "LD", "D"),
        TensorMapping(
            _BLOCKS + "attention.query.kernel", _H + "attn.c_attn.weight", "LDNH", "D 0NH"
        ),
        TensorMapping(_BLOCKS + "attention.key.kernel", _H + "attn.c_attn.weight", "LDNH", "D 1NH"),
        TensorMapping(
            _BLOCKS + "attention.value.kernel", _H + "attn.c_attn.weight", "LDNH", "D 2NH"
        ),
        TensorMapping(_BLOCKS + "attention.query.bias", _H + "attn.c_attn.bias", "LNH", "0NH"),
        TensorMapping(_BLOCKS + "attention.key.bias", _H + "attn.c_attn.bias", "LNH", "1NH"),
        TensorMapping(_BLOCKS + "attention.value.bias", _H + "attn.c_attn.bias", "LNH", "2NH"),
        TensorMapping(_BLOCKS + "attention.out.kernel", _H + "attn.c_proj.weight", "LNHD", "NH D"),
        TensorMapping(_BLOCKS + "attention.out.bias", _H + "attn.c_proj.bias", "LD", "D"),
        TensorMapping(_BLOCKS + "mlp_norm.scale", _H + "ln_2.weight", "LD", "D"),
        TensorMapping(_BLOCKS + "mlp_norm.bias", _H + "ln_2.bias", "LD", "D"),
        TensorMapping(_BLOCKS + "up.kernel", _H + "mlp.c_fc.weight", "LDF", "D F"),
        TensorMapping(_BLOCKS + "up.bias", _H + "mlp.c_fc.bias", "LF", "F"),
        TensorMapping(_BLOCKS + "down.kernel", _H + "mlp.c_proj.weight", "LFD", "F D"),
        TensorMapping(_BLOCKS + "down.bias", _H + "mlp.c_proj.bias", "LD", "D"),
        TensorMapping("norm.scale", "transformer.ln_f.weight", "D", "D"),
        TensorMapping("norm.bias", "transformer.ln_f.bias", "D", "D"),
    ),
    "llama": (
        *_ROTARY,
        TensorMapping(_BLOCKS + "mlp.gate.kernel", _LAYERS + "mlp.gate_proj.weight", "LDF", "F D"),
        TensorMapping(_BLOCKS + "mlp.up.kernel", _LAYERS + "mlp.up_proj.weight", "LDF", "F D"),
        TensorMapping(_BLOCKS + "mlp.down.kernel", _LAYERS + "mlp.down_proj.weight", "LFD", "D F"),
    ),
    "mixtral": (
        *_ROTARY,
        TensorMapping(_BLOCKS + "moe.router.kernel", _MOE + "gate.weight", "LDR", "R D"),
        TensorMapping(_BLOCKS + "moe.gate", _EXPERT + "w1.weight", "LEDF", "F D"),
        TensorMapping(_BLOCKS + "moe.up", _EXPERT + "w3.weight", "LEDF", "F D"),
        TensorMapping(_BLOCKS + "moe.down", _EXPERT + "w2.weight", "LEFD", "D F"),
    ),
}


def axis_lengths(config: ModelConfig) -> dict[str, int]:
    """Length of every axis in the tensors; in the arrays, V is padded."""
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


def tensor_names(config: ModelConfig) -> Iterator[str]:
    """Names of all tensors of a model; a fused tensor is repeated for each of its arrays."""
    for mapping, numbers in _all_parts(config):
        yield mapping.name(numbers)


def tensors(config: ModelConfig) -> dict[str, list[tuple[TensorMapping, tuple[int, ...]]]]:
    """The parts of every tensor of a model, in order, by the name of the tensor.

    A part is a mapping, and the index along its `named_axes`.
    """
    parts: dict[str, list[tuple[TensorMapping, tuple[int, ...]]]] = {}
    for mapping, numbers in _all_parts(config):
        parts.setdefault(mapping.name(numbers), []).append((mapping, numbers))
    return parts


def _all_parts(config: ModelConfig) -> Iterator[tuple[TensorMapping, tuple[int, ...]]]:
    lengths = axis_lengths(config)
    for mapping in MAPPINGS[config.family]:
        for numbers in itertools.product(*(range(lengths[axis]) for axis in mapping.named_axes)):
            yield mapping, numbers


def tensor_shape(mapping: TensorMapping, config: ModelConfig) -> tuple[int, ...]:
    """Shape of a tensor of a mapping."""
    lengths = axis_lengths(config) | dict.fromkeys("012", FUSED)
    return tuple(
        math.prod(lengths[axis] for axis in group) for group in mapping.tensor_axes.split()
    )


class Readable(Protocol):
    """A tensor in a file, of which a part can be read."""

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """Reads a part."""


def read_array(
    mapping: TensorMapping,
    index: Sequence[slice],
    config: ModelConfig,
    tensor: Callable[[str], Readable],
    dtype: np.dtype,
) -> np.ndarray:
    """A slice of an array, read from the tensors; rows of the padded vocabulary are zero.

    Args:
        mapping: the array and its tensors.
        index: the slice, along each axis of the array.
        config: dimensions of the model.
        tensor: opens a tensor by name. Of each, little more than the slice is read.
        dtype: type of the result.
    """
    lengths = axis_lengths(config) | {"V": config.padded_vocab}
    ranges = {
        axis: range(*part.indices(lengths[axis]))
        for axis, part in zip(mapping.array_axes, index, strict=True)
    }
    part = np.zeros([len(ranges[axis]) for axis in mapping.array_axes], dtype)
    named = [ranges[axis] for axis in mapping.named_axes]
    for place in itertools.product(*(range(len(numbers)) for numbers in named)):
        name = mapping.name([numbers[i] for numbers, i in zip(named, place, strict=True)])
        block = _read_tensor(mapping, ranges, config, tensor(name))
        part[place][tuple(slice(size) for size in block.shape)] = block
    return part


def build_tensor(
    parts: Sequence[tuple[TensorMapping, tuple[int, ...]]],
    config: ModelConfig,
    array: Callable[[str], np.ndarray],
) -> np.ndarray:
    """A tensor built from arrays, without the padding of the vocabulary.

    Args:
        parts: parts of the tensor, from `tensors`.
        config: dimensions of the model.
        array: returns an array by its path.
    """
    blocks = []
    for mapping, numbers in parts:
        axes = mapping.array_axes[len(numbers) :]
        block = array(mapping.path)[numbers]
        block = block[tuple(slice(axis_lengths(config)[axis]) for axis in axes)]
        order = [axes.index(axis) for axis in mapping.tensor_axes if axis in axes]
        whole = tensor_shape(mapping, config)
        blocks.append(block.transpose(order).reshape(*whole[:-1], whole[-1] // len(parts)))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)


def _read_tensor(
    mapping: TensorMapping, ranges: Mapping[str, range], config: ModelConfig, tensor: Readable
) -> np.ndarray:
    """The part of a tensor in `ranges`, with axes in the order of the array."""
    lengths = axis_lengths(config)
    index, shape, cut, order = [], [], [], []
    for group in mapping.tensor_axes.split():
        third, axes = (int(group[0]), group[1:]) if group[0].isdigit() else (0, group)
        # Of a merged axis, a contiguous run is read: a slice of the outermost axis, all of others.
        outer = ranges[axes[0]]
        first, last = outer.start, min(outer.stop, lengths[axes[0]])
        inner = math.prod(lengths[axis] for axis in axes[1:])
        offset = third * inner * lengths[axes[0]]
        index.append(slice(offset + first * inner, offset + max(first, last) * inner))
        shape += [max(0, last - first), *(lengths[axis] for axis in axes[1:])]
        cut += [slice(None), *(slice(ranges[a].start, ranges[a].stop) for a in axes[1:])]
        order += list(axes)
    axes = mapping.array_axes[len(mapping.named_axes) :]
    if 0 in shape:
        return np.zeros([0] * len(axes), np.float32)
    block = tensor[tuple(index)].reshape(shape)[tuple(cut)]
    return block.transpose([order.index(axis) for axis in axes])
