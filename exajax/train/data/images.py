"""Images with labels: read, checked and split."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exajax.errors import InputError
from exajax.files.reading import shown, shown_path
from exajax.models.dimensions import ModelConfig
from exajax.train.data import image_file
from exajax.train.data.image_file import Header
from exajax.train.data.listing import Listing

HELD_OUT_EVERY = 10
"""One image of so many is held out."""

DIGITS = "scikit-learn's digits"


@dataclass(frozen=True)
class Split:
    """Images of one part of the data.

    Attributes:
        images: [N, S, S, C], as they were read.
        labels: the class of each, int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Images:
    """Labelled images, read once.

    Attributes:
        path: where they were read, or what they are.
        train: those to train on.
        held_out: those that are never trained on, every tenth.
        mean: of the images to train on, by channel [C].
        deviation: their standard deviation, likewise; 1 where nothing varies.
        sha256: hash of all images and labels.
        listing: the arrays that were read, and those that were left out.
    """

    path: str
    train: Split = field(repr=False)
    held_out: Split = field(repr=False)
    mean: np.ndarray
    deviation: np.ndarray
    sha256: str
    listing: Listing = field(default_factory=Listing)

    @property
    def size(self) -> str:
        """How much there is of it, in words."""
        return f"{len(self.train) + len(self.held_out):,} images"

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the held-out labels, in nats: the loss of knowing how often each class is."""
        counts = np.bincount(self.held_out.labels)
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())

    def to_json(self) -> dict[str, Any]:
        """Returns what the data is, without the images."""
        sizes = {"train_images": len(self.train), "held_out_images": len(self.held_out)}
        known = {"path": self.path, "sha256": self.sha256, "files": 1}
        return known | sizes | self.listing.to_json()

    def describe(self) -> str:
        """Returns which arrays were read and which were left out, in words."""
        return f"{self.path}: {self.listing.describe()}"


def load_images(path: str | None, model: ModelConfig) -> Images:
    """Reads labelled images for a model.

    Args:
        path: a .npz with `images` [N, S, S] or [N, S, S, C] and `labels` [N]; None is the 1,797
            handwritten digits of scikit-learn (UCI ML repository, Alpaydin and Kaynak 1998).
        model: its images' size, channels and classes.

    Raises:
        InputError: there is nothing there, it does not match the model, or a sample is not a
            number or has no such class.
    """
    title = DIGITS if path is None else shown_path(Path(path))

    def check(images: Header, labels: Header) -> None:
        _check_arrays(title, images, labels, model)

    images, labels, listing = _digits(check) if path is None else image_file.read(path, check)
    images = images.reshape(len(images), model.image, model.image, model.channels)
    _check_samples(title, images, labels, model)
    labels = labels.astype(np.int32)
    held = np.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train = Split(images[~held], labels[~held])
    mean = train.images.mean(axis=(0, 1, 2), dtype=np.float64)
    deviation = train.images.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(f"{images.dtype.str} {images.shape}".encode() + labels.tobytes())
    return Images(
        title,
        train,
        Split(images[held], labels[held]),
        mean.astype(np.float32),
        np.where(deviation > np.finfo(np.float32).tiny, deviation, np.float32(1)),
        digest.hexdigest(),
        listing,
    )


def _digits(check: Callable[[Header, Header], None]) -> tuple[np.ndarray, np.ndarray, Listing]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "data", f"{DIGITS} are not installed", "pip install 'exajax[vision]', or give a .npz"
        ) from error
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target
    check(Header(images.shape, images.dtype), Header(labels.shape, labels.dtype))
    return images, labels, Listing()


def _check_arrays(title: str, images: Header, labels: Header, model: ModelConfig) -> None:
    """Raises an `InputError` unless arrays are of the kind that a model can train on."""
    shape = (model.image, model.image, model.channels)
    of_one = images.shape[1:] if len(images.shape) != 3 else (*images.shape[1:], 1)
    if of_one != shape:
        raise InputError(
            "data",
            f"{title} has images of shape {shown(of_one)}, and {model.name} takes {shape}",
            "give images of that shape, or a `model` of theirs",
        )
    count = images.shape[0]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            "data",
            f"{title} has {count} images, and labels of shape {shown(labels.shape)} and type "
            f"{labels.dtype}",
            "give every image one label, a whole number",
        )
    if count < HELD_OUT_EVERY:
        raise InputError(
            "data",
            f"{title} has {count} images, and one of {HELD_OUT_EVERY} is held out",
            f"give at least {HELD_OUT_EVERY}",
        )
    if images.dtype.kind not in "biuf":
        raise InputError("data", f"{title} has images of type {images.dtype}", "give numbers")


def _check_samples(title: str, images: np.ndarray, labels: np.ndarray, model: ModelConfig) -> None:
    """Raises an `InputError` that names the first sample with a value that cannot be trained on."""
    flat = images.reshape(len(images), -1)
    for number in _first(~np.isfinite(flat).all(axis=1)):
        raise InputError(
            "data", f"{title}: image {number} has a NaN or an infinity", "mend or drop it"
        )
    if images.dtype.kind == "f":
        for number in _first((np.abs(flat) > np.finfo(np.float32).max).any(axis=1)):
            problem = f"{title}: image {number} has a number that float32 does not hold"
            raise InputError("data", problem, "scale the images")
    for number in _first((labels < 0) | (labels >= model.vocab)):
        raise InputError(
            "data",
            f"{title}: label {number} is {labels[number]}, and {model.name} has {model.vocab} "
            "classes",
            f"give labels from 0 to {model.vocab - 1}",
        )


def _first(wrong: np.ndarray) -> np.ndarray:
    """Returns the place of the first True, or nothing."""
    return np.flatnonzero(wrong)[:1]
