import jax
import numpy as np
import pytest

from ptft.core import mesh
from ptft.core.errors import UserError


def test_a_mesh_takes_the_first_devices():
    assert mesh.make().size == 4 and mesh.make(2).size == 2
    assert list(mesh.make(2).devices) == jax.devices()[:2]
    with pytest.raises(UserError, match=r"asked for 9, this machine has 4 \(cpu\)"):
        mesh.make(9)


def test_batches_are_split_by_rows_and_keep_their_values():
    grid = mesh.make(4)
    batch = {"tokens": np.arange(24, dtype=np.uint16).reshape(8, 3), "weight": np.ones(8, np.float32)}
    put = mesh.put(batch, grid)
    for name, x in batch.items():
        np.testing.assert_array_equal(put[name], x)
        assert put[name].dtype == x.dtype and put[name].sharding == mesh.by_rows(grid)
    for shard in put["tokens"].addressable_shards:
        np.testing.assert_array_equal(shard.data, batch["tokens"][shard.index])
        assert shard.data.shape == (2, 3)


@pytest.mark.parametrize(
    ("batch", "accumulate", "near"),
    [(10, 1, "8 and 12"), (3, 1, "4"), (20, 2, "16 and 24"), (33, 8, "32 and 64")],
)
def test_a_batch_that_does_not_divide_names_the_nearest(batch, accumulate, near):
    with pytest.raises(
        UserError, match=rf"batch: {batch} is not divisible by 4 devices.*; the nearest sizes are {near}$"
    ):
        mesh.check_batch(batch, accumulate, mesh.make(4))


def test_a_batch_that_divides():
    mesh.check_batch(16, 4, mesh.make(4))
    mesh.check_batch(3, 1, mesh.make(1))


def test_start_without_a_coordinator_does_nothing(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.delenv("JAX_DISTRIBUTED", raising=False)
    mesh.start()
    assert not jax.distributed.is_initialized()
