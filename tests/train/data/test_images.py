"""Images: real digits, real files, and the order of samples."""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.models.presets import PRESETS
from exajax.train.data import image_file
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.images import load_images

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
    assert caught.value.field == "data"


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


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"images": np.full((40, 8, 8), 1e300)}, "image 0 has a number that float32 does not hold"),
        ({"images": np.zeros((40, 8, 8), "c8")}, "images of type complex64"),
        ({"labels": np.zeros(40, "m8[s]")}, "type timedelta64"),
        ({"labels": np.full(40, 2**64 - 1, "u8")}, "label 0 is 18446744073709551615"),
        ({"labels": np.full(40, "1", object)}, "labels holds Python objects"),
        ({"images": np.float64(1)}, r"shape \(\)"),
    ],
)
def test_numbers_that_cannot_be_trained_on_are_named(tmp_path, changed, says):
    with pytest.raises(InputError, match=says):
        load_images(archive(tmp_path, **changed), TINY)


def header(shape, dtype="<f4"):
    """Returns the first bytes of an array of any shape, without its numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": dtype}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (header((10**12, 8, 8)), "images has 0 bytes, and shape"),
        (header((-1, 8, 8)), "images has 0 bytes, and shape"),
        (header((40, 8, 8)) + bytes(7), "images has 7 bytes, and shape"),
        (header((40, 8, 8), "|V100000000"), "images has 0 bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535, "cannot read|Header info length"),
        (b"\x93NUMPY\x09\x00" + bytes(99), r"of format \(9, 0\)"),
        (b"", "cannot read"),
    ],
)
def test_an_array_that_promises_what_it_does_not_hold_is_named(tmp_path, images, says):
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("images.npy", images)
        made.writestr("labels.npy", header((40,), "<i8") + bytes(320))
    with pytest.raises(InputError, match=says) as caught:
        load_images(str(path), TINY)
    assert len(str(caught.value)) < 600


def test_what_unpacks_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "ALWAYS_UNPACKED_BYTES", 1 << 20)
    count = 100_000
    np.savez_compressed(
        tmp_path / "a.npz", images=np.zeros((count, 8, 8), "u1"), labels=np.zeros(count, "u1")
    )
    with pytest.raises(InputError, match="unpacks to more than"):
        load_images(str(tmp_path / "a.npz"), TINY)


def test_what_is_in_the_file_besides_is_counted(tmp_path):
    found = load_images(archive(tmp_path, names=np.zeros(3), more=np.zeros(1)), TINY).to_json()
    assert found["read"]["npz"]["files"] == 1
    assert found["left_out"] == {"array": {"files": 2, "size_bytes": 288, "first": "names.npy"}}


def test_colours_that_hardly_vary_are_not_divided_by_nothing(tmp_path):
    images = np.tile(np.arange(40.0)[:, None, None] * 1e-60, (1, 8, 8))
    batch = ImageBatches(load_images(archive(tmp_path, images), TINY), 36, 0)(0)["images"]
    assert np.isfinite(batch).all()
