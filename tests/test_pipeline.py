import itertools
import time
from typing import ClassVar

import grain.python as grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptft.train import pipeline


class Numbers:
    """Rows that say which they are."""

    notes: ClassVar[dict[str, int]] = {}

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def batch(self, index):
        assert ((index >= 0) & (index < self.n)).all()
        return {"id": np.asarray(index)}


@pytest.fixture
def processes(monkeypatch):
    """Pretends to be process `index` of `count`."""

    def pretend(count, index):
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: index)

    return pretend


def train(n=10, seed=3, batch=4, start=0, stop=10, index=None):
    index = np.arange(n) if index is None else index
    return list(pipeline.train_batches(Numbers(n), index, seed, batch, start, stop))


def ids(batches):
    return np.concatenate([b["id"] for b in batches])


def test_a_batch_depends_on_seed_and_number_alone():
    whole = train(stop=12)
    assert len(whole) == 12
    for start in (1, 5, 11):
        np.testing.assert_array_equal(ids(train(start=start, stop=12)), ids(whole[start:]))
    np.testing.assert_array_equal(ids(train(stop=12)), ids(whole))
    assert (ids(train(seed=4, stop=12)) != ids(whole)).any()
    assert train(start=12, stop=12) == []


@pytest.mark.promise("R10")
@pytest.mark.parametrize("threads", [0, 2, 8])
def test_any_number_of_threads_reads_the_same_batches(monkeypatch, threads):
    """Also where later batches are ready first."""

    class Slow(Numbers):
        def batch(self, index):
            time.sleep(0.002 * int(index[0] % 3))
            return super().batch(index)

    monkeypatch.setitem(globals(), "Numbers", Slow)
    usual, options = train(stop=30), grain.ReadOptions
    made = options(num_threads=threads, prefetch_buffer_size=2 * threads)
    monkeypatch.setattr(grain, "ReadOptions", lambda **_: made)
    for a, b in zip(usual, train(stop=30), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_rows_carry_their_place_and_count():
    for batch in train(batch=4, stop=3):
        np.testing.assert_array_equal(batch["example_id"], np.arange(4))
        np.testing.assert_array_equal(batch["weight"], np.ones(4))
        assert batch["example_id"].dtype == np.int32 and batch["weight"].dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
def test_each_epoch_holds_every_row_once(n, batch, seed):
    steps = -(-3 * n // batch)
    seen = ids(train(n, seed, batch, 0, steps))[: 3 * n].reshape(3, n)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_epochs_are_shuffled_differently():
    epochs = ids(train(n=30, batch=30, stop=3))
    a, b, c = epochs.reshape(3, 30)
    assert (a != b).any() and (b != c).any() and (a != np.arange(30)).any()


def test_only_the_chosen_rows_are_used():
    index = np.array([2, 5, 7])
    assert set(ids(train(n=10, index=index, stop=5))) == {2, 5, 7}


@given(n=st.integers(1, 300), seed=st.integers(0, 2**31 - 1), data=st.data())
def test_subsets_are_nested(n, seed, data):
    small = data.draw(st.integers(1, n))
    large = data.draw(st.integers(small, n))
    a, b = pipeline.subset(n, small, seed), pipeline.subset(n, large, seed)
    assert len(set(a)) == len(a) == small and set(a) <= set(b) <= set(range(n))
    np.testing.assert_array_equal(a, np.sort(a))
    np.testing.assert_array_equal(pipeline.subset(n, 0, seed), np.arange(n))


def test_another_seed_is_another_subset():
    assert set(pipeline.subset(1000, 100, 0)) != set(pipeline.subset(1000, 100, 1))


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    size=st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_a_drawn_part_has_its_share_of_every_label(counts, size, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels if seed else np.random.default_rng(seed).permutation(labels)
    index = pipeline.looked_at(len(labels), size, labels)
    assert len(index) == min(size, len(labels)) and (np.diff(index) > 0).all(), (
        "each once, in the data's order"
    )
    np.testing.assert_array_equal(index, pipeline.looked_at(len(labels), size, labels))
    drawn = np.bincount(labels[index], minlength=len(counts))
    share = len(index) / len(labels)
    if size >= len(counts):
        assert (drawn >= 1).all()
    if len(set(counts)) == 1:
        assert np.ptp(drawn) <= 1
    assert (drawn <= np.asarray(counts) * share + 1 + len(counts) / 2).all()


def test_what_is_drawn_without_labels_lies_everywhere():
    index = pipeline.looked_at(1000, 100)
    assert len(set(index)) == 100 and index[0] < 100 and index[-1] > 900
    np.testing.assert_array_equal(pipeline.looked_at(7, 0), np.arange(7))
    np.testing.assert_array_equal(pipeline.looked_at(7, 9), np.arange(7))


@pytest.mark.parametrize(
    ("n", "batch", "limit"), [(10, 4, 0), (8, 4, 0), (3, 8, 0), (10, 4, 7), (10, 4, 99), (1, 1, 0)]
)
def test_evaluation_covers_each_row_once(n, batch, limit):
    batches = list(pipeline.eval_batches(Numbers(n), batch, limit))
    assert {len(b["id"]) for b in batches} == {batch}
    valid = np.concatenate([b["weight"] for b in batches]) > 0
    np.testing.assert_array_equal(ids(batches)[valid], pipeline.looked_at(n, limit))
    np.testing.assert_array_equal(np.concatenate([b["example_id"] for b in batches]), np.arange(len(valid)))


@pytest.mark.promise("R9")
@pytest.mark.parametrize("count", [2, 4])
def test_processes_tile_the_global_batch(processes, count):
    whole_train, whole_eval = train(batch=8, stop=5), list(pipeline.eval_batches(Numbers(13), 8))
    parts_train, parts_eval = [], []
    for index in range(count):
        processes(count, index)
        parts_train.append(train(batch=8, stop=5))
        parts_eval.append(list(pipeline.eval_batches(Numbers(13), 8)))
    for whole, parts in ((whole_train, parts_train), (whole_eval, parts_eval)):
        for k, batch in enumerate(whole):
            for name, value in batch.items():
                pieces = [p[k][name] for p in parts]
                assert {len(x) for x in pieces} == {8 // count}
                np.testing.assert_array_equal(np.concatenate(pieces), value)


def test_an_endless_order_is_made_in_no_time():
    """A million rows, far into the run: nothing is unrolled on the way."""
    order = pipeline.order(1_000_000, 0)
    assert 0 <= order[123_456_789] < 1_000_000
    first = [order[i] for i in itertools.chain(range(3), range(5_000_000, 5_000_003))]
    assert first == [
        pipeline.order(1_000_000, 0)[i] for i in itertools.chain(range(3), range(5_000_000, 5_000_003))
    ]
