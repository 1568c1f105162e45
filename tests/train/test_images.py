"""Images: real digits, real files, and the order of samples."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.models.presets import PRESETS
from exajax.train.image_batches import ImageBatches
from exajax.train.images import load_images

TINY = PRESETS["vit-tiny"]
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    return load_images(None, TINY)


def archive(folder, images=None, labels=None, **more):
    """Writes a .npz of 40 images, every one different, with what a test changes of it."""
    number = np.arange(40)
    images = np.tile(number[:, None, None], (1, 8, 8)) if images is None else images
    labels = number % 10 if labels is None else labels
    path = folder / "images.npz"
    np.savez(path, **({"images": images, "labels": labels} | more))
    return str(path)


def test_the_default_is_the_digits_a_tenth_of_them_held_out(digits):
    assert (len(digits.train), len(digits.held_out)) == (1618, 179)
    assert digits.train.images.shape == (1618, 8, 8, 1)
    assert digits.to_json()["path"] == "scikit-learn's digits"
    assert 2.2 < digits.unigram_entropy < np.log(10)
    assert load_images(None, TINY).sha256 == digits.sha256


def test_a_batch_is_images_of_mean_0_and_deviation_1_with_their_own_labels(digits):
    batch = ImageBatches(digits, len(digits.train), 0)(0)
    assert batch["images"].dtype == np.float32
    assert batch["labels"].dtype == np.int32
    assert abs(batch["images"].mean()) < 1e-5
    assert batch["images"].std() == pytest.approx(1, abs=1e-4)
    ids = ImageBatches(digits, len(digits.train), 0).ids(0)
    raw = batch["images"] * digits.deviation + digits.mean
    np.testing.assert_allclose(raw, digits.train.images[ids], atol=1e-4)
    np.testing.assert_array_equal(batch["labels"], digits.train.labels[ids])


def test_held_out_images_are_never_trained_on(tmp_path):
    images = load_images(archive(tmp_path), TINY)
    batches = ImageBatches(images, 2, 0)
    ids = np.concatenate([batches.ids(step) for step in range(40)])
    seen = {int(image[0, 0, 0]) for image in images.train.images[ids]}
    held = {int(image[0, 0, 0]) for image in images.held_out.images}
    assert held == {9, 19, 29, 39}
    assert not held & seen
    held_labels = np.concatenate([batch["labels"] for batch in batches.held_out(2)])
    assert held_labels.tolist() == [9, 9, 9, 9]


@given(st.integers(0, 9), st.integers(1, 50))
def test_every_image_is_seen_once_before_any_is_seen_again(digits, seed, batch):
    count = len(digits.train)
    steps = -(-2 * count // batch)
    ids = np.concatenate([ImageBatches(digits, batch, seed).ids(step) for step in range(steps)])
    for epoch in range(2):
        assert sorted(ids[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_rows_read_from_any_step_are_rows_of_the_whole_batch(digits):
    batches, rows = ImageBatches(digits, 64, 3), np.array([1, 5, 63])
    feed = batches.iterate(24, rows)  # the epoch ends within the next two steps
    for step in (24, 25, 26):
        part, whole = next(feed), batches(step)
        np.testing.assert_array_equal(part["images"], whole["images"][rows])
        np.testing.assert_array_equal(part["labels"], whole["labels"][rows])
    assert not np.array_equal(batches.ids(0), ImageBatches(digits, 64, 4).ids(0))


def test_colours_are_scaled_one_by_one(tmp_path):
    images = rng.normal(size=(40, 8, 8, 3)) * [1, 10, 0] + [0, 100, 7]
    colour = dataclasses.replace(TINY, channels=3)
    batch = ImageBatches(load_images(archive(tmp_path, images), colour), 36, 0)(0)["images"]
    np.testing.assert_allclose(batch.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(batch.std(axis=(0, 1, 2)), [1, 1, 0], atol=1e-3)


NAN = np.where(np.arange(40)[:, None, None] == 13, np.nan, np.zeros((40, 8, 8)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"images": NAN}, "images.npz: image 13 has a NaN or an infinity"),
        ({"images": np.where(np.isnan(NAN), -np.inf, NAN)}, "image 13 has a NaN or an infinity"),
        ({"labels": np.where(np.arange(40) == 7, 10, 0)}, "label 7 is 10, and vit-tiny has 10"),
        ({"labels": np.where(np.arange(40) == 7, -1, 0)}, "label 7 is -1"),
        ({"labels": np.zeros(40)}, "give every image one label, a whole number"),
        ({"labels": np.zeros(39, int)}, "40 images, and labels of shape"),
        ({"images": np.zeros((40, 8, 9))}, r"shape \(8, 9, 1\), and vit-tiny takes \(8, 8, 1\)"),
        ({"images": np.zeros((40, 8, 8, 3))}, r"shape \(8, 8, 3\)"),
        ({"images": np.zeros(40)}, "vit-tiny takes"),
        ({"images": np.full((40, 8, 8), "x")}, "images of type"),
        ({"images": np.full((40, 8, 8), object())}, "images holds Python objects"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(4, int)}, "has 4 images"),
    ],
)
def test_images_that_cannot_be_used_are_named(tmp_path, changed, says):
    with pytest.raises(InputError, match=says) as caught:
        load_images(archive(tmp_path, **changed), TINY)
    assert caught.value.field == "--data"


def test_a_file_that_is_no_archive_of_images_is_named(tmp_path):
    whole = Path(archive(tmp_path)).read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", images=np.zeros((40, 8, 8)))
    damaged = bytearray(whole)
    damaged[400:440] = b"\xff" * 40
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("single.npy", "cut.npz", "text.npz", "empty.npz", "other.npz", "damaged.npz", "."):
        with pytest.raises(InputError, match=r"cannot read|no array labels") as caught:
            load_images(str(tmp_path / name), TINY)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_images(str(tmp_path / "none.npz"), TINY)
