"""The order of the samples: it follows from seed and position, on any hosts, after any restart."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exajax.train.data.corpus import Corpus, Part
from exajax.train.data.text_batches import TextBatches, segments
from exajax.train.data.tokenizer import ByteTokenizer
from exajax.train.data.windows import WindowsInMemory

SEQ = 4


def corpus(*counts, weights=None):
    """A corpus whose every window tells its part and number: its tokens count up from 1,000 x."""
    parts = []
    for number, count in enumerate(counts):
        stream = np.arange(count * SEQ + 1) + 1_000_000 * number
        windows = WindowsInMemory(stream, SEQ)
        weight = (weights or [1 / len(counts)] * len(counts))[number]
        parts.append(Part(f"part {number}", weight, "", 1, windows, windows))
    return Corpus("test", tuple(parts), ByteTokenizer(), SEQ)


def take(batches, start, rows, steps):
    """Returns the first inputs of some rows of some steps, [steps, rows]."""
    feed = batches.iterate(start, np.asarray(rows))
    read = np.stack([batch["inputs"][:, 0] for batch in itertools.islice(feed, steps)])
    feed.close()
    return read


@given(st.integers(1, 200), st.integers(0, 2**40), st.integers(1, 16))
def test_every_window_is_seen_once_before_any_is_seen_again(count, seed, batch):
    batches = TextBatches(corpus(count), batch, seed)
    steps = -(-3 * count // batch)
    ids = np.concatenate([batches.ids(step) for step in range(steps)])
    epochs = ids[: 3 * count].reshape(3, count)
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count >= 50:
        assert not np.array_equal(epochs[0], epochs[1])
        other = TextBatches(corpus(count), batch, seed + 1)
        assert not np.array_equal(ids[:batch * 50], np.concatenate(
            [other.ids(step) for step in range(50)])[:len(ids)])  # fmt: skip


@settings(max_examples=20)
@given(
    st.integers(0, 9),
    st.integers(0, 1000),
    st.sampled_from([(50,), (30, 70), (9, 40, 100)]),
    st.permutations(range(8)),
)
def test_the_samples_do_not_depend_on_the_number_of_hosts(seed, start, counts, devices):
    batches = TextBatches(corpus(*counts), 8, seed)
    whole = take(batches, start, range(8), 3)
    for hosts in (1, 2, 4):
        together = np.empty_like(whole)
        for rows in np.sort(np.reshape(devices, (hosts, -1)), axis=1):  # any rows, with gaps
            together[:, rows] = take(batches, start, rows, 3)
        np.testing.assert_array_equal(together, whole)


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(0, 60))
def test_a_resumed_run_goes_on_with_the_next_sample(seed, step):
    batches = TextBatches(corpus(30, 50), 4, seed)
    straight = take(batches, 0, range(4), step + 2)
    np.testing.assert_array_equal(take(batches, step, range(4), 2), straight[step:])


def test_the_ids_name_the_windows_that_are_read():
    batches = TextBatches(corpus(30, 50), 4, 0)
    read = take(batches, 5, range(4), 10)
    for step, firsts in enumerate(read, 5):
        ids = batches.ids(step)
        expected = np.where(ids < 30, ids * SEQ, (ids - 30) * SEQ + 1_000_000)
        np.testing.assert_array_equal(firsts, expected)


@pytest.mark.slow
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=4), st.integers(0, 9))
def test_a_mixture_holds_its_weights_all_the_time(raw, seed):
    weights = [weight / sum(raw) for weight in raw]
    counts = [10 * (i + 1) for i in range(len(raw))]
    batches = TextBatches(corpus(*counts, weights=weights), 25, seed)
    edges = np.cumsum([0, *counts])
    seen = np.zeros(len(raw))
    for step in range(20):
        seen += np.histogram(batches.ids(step), edges)[0]
        share = seen / seen.sum()
        # Within two samples of each part, and the hundredth of Grain's whole-number weights.
        np.testing.assert_allclose(share, weights, atol=2 / seen.sum() + 0.01)


def test_targets_are_the_next_tokens():
    batch = next(TextBatches(corpus(50), 8, 0).iterate(0, np.arange(8)))
    assert batch["inputs"].shape == batch["targets"].shape == (8, SEQ)
    assert batch["inputs"].dtype == np.int32
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])


def test_held_out_batches_spread_over_the_parts_by_weight():
    batches = TextBatches(corpus(100, 300, weights=[0.25, 0.75]), 8, 0)
    read = [batch["inputs"][:, 0] for batch in batches.held_out(4)]
    assert [len(rows) for rows in read] == [8] * 4
    firsts = np.concatenate(read)
    assert (firsts < 1_000_000).sum() == 8
    assert len(set(firsts)) == 32
    assert firsts.max() - 1_000_000 > 290 * SEQ
    few = list(TextBatches(corpus(3), 8, 0).held_out(4))
    assert [len(batch["inputs"]) for batch in few] == [8]


def test_segments_number_the_documents_of_a_window():
    tokens = np.array([[5, 0, 6, 7, 0, 0, 8], [0, 5, 5, 5, 5, 5, 0], [5, 5, 5, 5, 5, 0, 5]])
    expected = [[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(segments(tokens, 0), expected)


def test_packed_batches_say_their_segments():
    batches = TextBatches(corpus(50), 8, 0, packed=True)
    batch = next(batches.iterate(0, np.array([1, 5])))
    assert batch["segments"].shape == (2, SEQ)
    assert batch["segments"].dtype == np.int32
    assert batches.identity != TextBatches(corpus(50), 8, 0).identity


def test_the_target_behind_the_end_of_a_document_does_not_count():
    tokens = np.array([5, 6, 0, 7, 8, 9, 9, 0, 9, 9, 9, 9, 9, 9, 0, 9, 9])
    windows = WindowsInMemory(tokens, 4)
    text = Corpus("test", (Part("part", 1.0, "", 1, windows, windows),), ByteTokenizer(), 4)
    packed = TextBatches(text, 4, 0, packed=True)
    batch = next(packed.iterate(0, np.arange(4)))
    plain = next(dataclasses.replace(packed, packed=False).iterate(0, np.arange(4)))
    ends = plain["inputs"] == packed.corpus.vocabulary.end_of_document
    assert ends[:, -1].any()  # the last place too, which segments do not reach
    np.testing.assert_array_equal(batch["targets"], np.where(ends, -1, plain["targets"]))
    np.testing.assert_array_equal(batch["inputs"], plain["inputs"])
    assert (batch["targets"] == 0).any()  # the end itself is the target of what precedes it


def test_an_error_while_reading_ahead_reaches_the_reader():
    class Broken:
        def __len__(self):
            return 9

        def read(self, ids):
            raise OSError("the disk is gone")

    broken = Corpus("x", (Part("x", 1.0, "", 1, Broken(), Broken()),), ByteTokenizer(), SEQ)
    with pytest.raises(OSError, match="the disk is gone"):
        next(TextBatches(broken, 4, 0).iterate(0, np.arange(4)))
