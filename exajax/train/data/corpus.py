"""What `data` names: text, a tokenised dataset, or a weighted mixture of several."""

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exajax.errors import InputError
from exajax.files import paths
from exajax.files.reading import Malformed, read_bytes, shown
from exajax.train.data.dataset import Dataset, check_not_part, is_dataset, open_dataset
from exajax.train.data.documents import BAD_LINES, pieces, scan, tokens
from exajax.train.data.listing import Listing, total
from exajax.train.data.tokenizer import (
    KEPT,
    MOST_BYTES,
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    Vocabulary,
    load_tokenizer,
)
from exajax.train.data.windows import Windows, split

ENTROPY_TOKENS = 1 << 20
"""Held-out tokens of a part that its unigram entropy is counted on, at most."""


LEAST_SHARE = 1e-9
"""Of the samples, that a part of a mixture may have."""


@dataclass(frozen=True)
class Part:
    """One text of a corpus.

    Attributes:
        path: as it was given, or what it is.
        weight: share of the samples that come from it; those of a corpus add up to 1.
        sha256: hash of the text, whether it is tokenised yet or not.
        files: number of files of the text.
        train: windows to train on.
        held_out: windows that are never trained on.
        listing: which files were read for it, and which not.
        sample: hash of some bytes of every shard of a tokenised dataset, whose tokens may not be
            those of its text; None for text, which is read whole.
    """

    path: str
    weight: float
    sha256: str
    files: int
    train: Windows
    held_out: Windows
    listing: Listing = field(default_factory=Listing)
    sample: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Windows of tokens to train on, and others to evaluate on.

    Attributes:
        path: as it was given, or what it is.
        parts: one, or those of a mixture.
        vocabulary: of the tokenizer that made the tokens.
        seq: inputs of a window.
        tokenizer_json: the file of that tokenizer; None for bytes, or where no copy is there.
    """

    path: str
    parts: tuple[Part, ...]
    vocabulary: Vocabulary
    seq: int
    tokenizer_json: bytes | None = field(default=None, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What two corpora of the same samples have in common, as JSON."""
        return {
            "tokenizer": self.vocabulary.label,
            "seq": self.seq,
            "text": [{"sha256": part.sha256, "weight": part.weight} for part in self.parts],
        }

    @property
    def tokens(self) -> int:
        """Tokens to train on and held out, as many as fill windows."""
        windows = sum(len(part.train) + len(part.held_out) for part in self.parts)
        return windows * self.seq

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the held-out tokens, in nats: the loss of knowing how often each is."""
        share = np.zeros(self.vocabulary.vocab_size)
        for part in self.parts:
            count = min(len(part.held_out), max(1, ENTROPY_TOKENS // self.seq))
            ids = np.linspace(0, len(part.held_out) - 1, count).astype(np.int64)
            targets = part.held_out.read(ids)[:, 1:]
            counts = np.bincount(targets.ravel(), minlength=len(share))
            share += part.weight * counts / counts.sum()
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())

    @property
    def size(self) -> str:
        """How much text it is, in words."""
        return f"{self.tokens / 1e6:.1f} M tokens"

    def to_json(self) -> dict[str, Any]:
        """Returns what it is, without its text."""
        return {
            "path": self.path,
            "sha256": "+".join(part.sha256 for part in self.parts),
            "files": sum(part.files for part in self.parts),
            "tokenizer": self.vocabulary.to_json(),
            "parts": [
                {
                    "path": part.path,
                    "weight": part.weight,
                    "sample": part.sample,
                    "train_tokens": len(part.train) * self.seq,
                    "held_out_tokens": len(part.held_out) * self.seq,
                    "sha256": part.sha256,
                    **part.listing.to_json(),
                }
                for part in self.parts
            ],
        }

    @property
    def listing(self) -> Listing:
        """Which files were read for all parts, and which were left out."""
        return total([part.listing for part in self.parts])

    def describe(self) -> str:
        """Returns which files were read for it and which were left out, in words."""
        path = self.path if len(self.parts) == 1 else f"mixture of {len(self.parts)}"
        return f"{path}: {self.listing.describe()}"


def load_corpus(
    data: str | None,
    tokenizer: str | None,
    seq: int,
    vocab: int,
    bad_lines: str = BAD_LINES[0],
) -> Corpus:
    """Opens what `data` names; text is tokenised into memory.

    Args:
        data: a text file or folder, a tokenised dataset, or a mixture `0.7:PATH,0.3:PATH`; None is
            the Python standard library's own source.
        tokenizer: `bytes` or a `tokenizer.json`; None is that of a tokenised dataset, and bytes
            for text.
        seq: inputs of a window.
        vocab: tokens that the model knows.
        bad_lines: what to do about rows of JSON without a text, one of `BAD_LINES`.

    Raises:
        InputError: something is not there, cannot be used, or does not go together.
    """
    given = _weights(data)
    named = None if tokenizer is None else load_tokenizer(tokenizer)
    for path, _ in given:
        if path is not None and not is_dataset(path):
            check_not_part(path)
    datasets = {path: open_dataset(path) for path, _ in given if path and is_dataset(path)}
    encoder = named or ByteTokenizer()
    # A dataset alone says how its text was tokenised; text beside it must have been as well.
    alone = named is None and len(datasets) == len(given)
    vocabulary: Vocabulary = next(iter(datasets.values())).vocabulary if alone else encoder
    _check_vocabulary(vocabulary, vocab)
    for dataset in datasets.values():
        _check_dataset(dataset, vocabulary, seq)
    parts = tuple(
        _part_of_dataset(path, weight, datasets[path])
        if path in datasets
        else _part_of_text(path, weight, encoder, seq, bad_lines)
        for path, weight in given
    )
    label = Vocabulary(**vocabulary.to_json())
    return Corpus(data or parts[0].path, parts, label, seq, _file_of(vocabulary, datasets))


def _file_of(vocabulary: Vocabulary, datasets: Mapping[str, Dataset]) -> bytes | None:
    """Returns the `tokenizer.json` that a vocabulary is of, if it is one and a copy is there."""
    if isinstance(vocabulary, FileTokenizer):
        return vocabulary.content
    for dataset in datasets.values():
        try:
            content = read_bytes(dataset.folder / KEPT, MOST_BYTES)
        except Malformed:  # what was tokenised is enough to train on
            continue
        if hashlib.sha256(content).hexdigest() == vocabulary.digest:
            return content
    return None


def _weights(data: str | None) -> list[tuple[str | None, float]]:
    """Returns the paths of `data` with their shares of the samples."""
    if data is None or ":" not in data or paths.exists(data):
        return [(data, 1.0)]
    found = []
    for item in data.split(","):
        number, _, path = item.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (path and math.isfinite(weight) and weight > 0):
            raise InputError(
                "data",
                f"{shown(item)} is not a weight above 0 and a path",
                "write a mixture as 0.7:PATH,0.3:PATH",
            )
        found.append((path, weight))
    largest = max(weight for _, weight in found)
    together = sum(weight / largest for _, weight in found)
    shares: list[tuple[str | None, float]] = [
        (path, weight / largest / together) for path, weight in found
    ]
    for given, share in shares:
        if share < LEAST_SHARE:
            problem = f"{shown(given)} would have less than one sample in {1 / LEAST_SHARE:,.0f}"
            raise InputError("data", problem, "leave it out, or give it more weight")
    return shares


def _part_of_dataset(path: str | None, weight: float, dataset: Dataset) -> Part:
    return Part(
        str(path),
        weight,
        dataset.sha256,
        dataset.files,
        dataset.train,
        dataset.held_out,
        dataset.listing,
        dataset.sample(),
    )


def _part_of_text(
    path: str | None, weight: float, tokenizer: Tokenizer, seq: int, bad_lines: str
) -> Part:
    source = scan(path, bad_lines)
    stream = tokens(pieces(source), tokenizer)
    train, held_out = split(stream, source.size_bytes, seq, source.title)
    files, listing = len(source.files), source.listing
    return Part(source.title, weight, source.sha256, files, train, held_out, listing)


def _check_vocabulary(vocabulary: Vocabulary, vocab: int) -> None:
    if vocabulary.vocab_size > vocab:
        raise InputError(
            "tokenizer",
            f"{vocabulary.name} has {vocabulary.vocab_size:,} tokens and the model {vocab:,}",
            f"give one of at most {vocab:,} tokens, or a model of a larger vocabulary",
        )


def _check_dataset(dataset: Dataset, vocabulary: Vocabulary, seq: int) -> None:
    if dataset.vocabulary.digest != vocabulary.digest:
        raise InputError(
            "tokenizer",
            f"{dataset.folder} was made with {dataset.vocabulary.label}, and this is "
            f"{vocabulary.label}",
            "give the tokenizer of the dataset, or tokenise it again",
        )
    if dataset.seq != seq:
        raise InputError(
            "seq",
            f"{dataset.folder} was cut for sequences of {dataset.seq}, not {seq}",
            f"give `seq` {dataset.seq}, or tokenise it again",
        )
