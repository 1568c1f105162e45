import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.train.data import TextBatches, load_corpus, sample_ids, windows


@given(st.integers(1, 200), st.integers(0, 9), st.integers(1, 16))
def test_every_window_is_seen_once_before_any_is_seen_again(count, seed, batch):
    steps = -(-3 * count // batch)
    ids = np.concatenate([sample_ids(count, seed, step, batch) for step in range(steps)])
    for epoch in range(3):
        seen = ids[epoch * count : (epoch + 1) * count]
        assert sorted(seen) == list(range(count))


@given(st.integers(10, 1000), st.integers(0, 9), st.integers(0, 500))
def test_the_order_follows_seed_and_step_alone(count, seed, step):
    once, again = sample_ids(count, seed, step, 8), sample_ids(count, seed, step, 8)
    np.testing.assert_array_equal(once, again)
    if count >= 100:
        assert not np.array_equal(once, sample_ids(count, seed + 1, step, 8))


def test_targets_are_the_next_bytes(text):
    corpus = load_corpus(str(text), 32)
    batch = TextBatches(corpus, 32, 4, 0)(0)
    assert batch["inputs"].shape == batch["targets"].shape == (4, 32)
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert bytes(batch["inputs"][0].astype(np.uint8)) in bytes(corpus.train)


def test_held_out_text_is_never_trained_on(text):
    corpus = load_corpus(str(text), 96)
    assert len(corpus.train) + len(corpus.held_out) == text.stat().st_size
    assert 0.03 < len(corpus.held_out) / text.stat().st_size < 0.07
    for batch in TextBatches(corpus, 96, 4, 0).held_out(2):
        for row in batch["inputs"]:
            # The lines are numbered and shorter than this, so it is in one place alone.
            assert bytes(row.astype(np.uint8)) not in bytes(corpus.train)


def test_unigram_entropy_of_equal_bytes_is_the_log_of_their_number(tmp_path):
    (tmp_path / "even.txt").write_bytes(bytes(range(32, 96)) * 1000)
    assert load_corpus(str(tmp_path), 16).unigram_entropy == pytest.approx(np.log(64), rel=1e-3)


def test_the_default_text_is_pythons_own_library():
    corpus = load_corpus(None, 128)
    assert len(corpus.train) > 5e6
    assert corpus.files > 300
    assert 2.5 < corpus.unigram_entropy < 4
    assert windows(corpus.train, 128) > 30_000


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b.txt").write_text("b" * 3000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("a" * 3000)
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    corpus = load_corpus(str(tmp_path), 16)
    assert corpus.files == 2
    assert bytes(corpus.train[:1]) == b"a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"a\0b" * 9999, "is not text"),
        (b"\xff\xfe" * 9999, "not text"),
        (b"ab", "too few"),
    ],
)
def test_text_that_cannot_be_used_is_named(tmp_path, content, says):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load_corpus(str(path), 32)
    assert caught.value.field == "--data"
