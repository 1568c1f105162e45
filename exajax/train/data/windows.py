"""Windows: sequences of tokens, cut from the stream of packed documents.

A window holds seq + 1 tokens, its inputs and its targets; it begins with the last token of the one
before it, wherever in a document that is (`text_batches` says what `packed` makes of it). Whole
blocks of the stream are held out before it is cut.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from exajax.errors import InputError

BLOCK = 64 * 1024
"""Tokens of the blocks that are dealt to training and held-out text, at most."""

HELD_OUT_EVERY = 20
"""One block of so many is held out, the first of them."""

BYTES_PER_TOKEN = 4
"""Assumed where text is too short for whole blocks: the number of tokens is not known before."""


class Windows(Protocol):
    """Windows by number."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Returns some of them, int32 [len(ids), seq + 1]."""


@dataclass(frozen=True)
class WindowsInMemory:
    """Windows of a stream that lies in memory.

    Attributes:
        tokens: the stream, integers [n].
        seq: inputs of a window.
    """

    tokens: np.ndarray = field(repr=False)
    seq: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Returns some windows, int32 [len(ids), seq + 1]."""
        places = ids[:, None] * self.seq + np.arange(self.seq + 1)
        return self.tokens[places].astype(np.int32)


def deal(stream: Iterable[np.ndarray], size_bytes: int) -> Iterator[tuple[bool, np.ndarray]]:
    """Deals a stream of tokens in whole blocks.

    Args:
        stream: the tokens of all documents, in parts of any length.
        size_bytes: of the text; of one that is short, the blocks are short too.

    Yields:
        Whether some tokens are held out, and the tokens.
    """
    block = min(BLOCK, max(1, size_bytes // (HELD_OUT_EVERY * BYTES_PER_TOKEN)))
    place = 0
    for ids in stream:
        while len(ids):
            number, within = divmod(place, block)
            part, ids = ids[: block - within], ids[block - within :]
            place += len(part)
            yield number % HELD_OUT_EVERY == 0, part


def too_few(path: str, seq: int) -> InputError:
    """Returns the error of a text that does not fill a window of both parts."""
    return InputError(
        "data",
        f"{path} has too few tokens: a twentieth is held out, and a sequence has {seq}",
        f"give at least some {2 * HELD_OUT_EVERY * seq:,} tokens, or a smaller `seq`",
    )


def split(stream: Iterable[np.ndarray], size_bytes: int, seq: int, path: str) -> list[Windows]:
    """Returns the windows to train on and those held out, both in memory.

    Raises:
        InputError: the stream is too short for one of each.
    """
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for held_out, ids in deal(stream, size_bytes):
        parts[held_out].append(ids)
    if not all(sum(map(len, part)) > seq for part in parts):
        raise too_few(path, seq)
    return [WindowsInMemory(np.concatenate(part), seq) for part in parts]
