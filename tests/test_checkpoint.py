import collections
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from ptft.core import checkpoint
from ptft.core.errors import UserError


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax itself mixes dtypes (a float to the power of an int32 count); nothing is computed in
    ptft.checkpoint."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SHAPES = {
    "backbone/stem/embedding": (40, 8),
    "backbone/block_0/attention/query/kernel": (8, 8),
    "backbone/block_0/norm/scale": (8,),
    "head/dense/kernel": (8, 4),
    "head/dense/bias": (4,),
}


def make(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def adam(params, steps=2):
    """An AdamW state that is not all zeros."""
    tx = optax.adamw(optax.linear_schedule(1e-3, 0, 100), weight_decay=0.1)
    state = tx.init(params)
    for _ in range(steps):
        _, state = tx.update(params, state, params)
    return state


def like(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def same(a, b):
    """Equal structure, dtypes and bytes."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def everything_in(folder):
    """The files of a folder and their bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def disk(monkeypatch):
    def set_free(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(free))

    return set_free


# Round trips.

LABELS = {name: "live" if name.startswith("head") else "slow" for name in SHAPES}
OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "schedule": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0, 9))),
    "masked decay": optax.adamw(1e-3, mask=lambda p: {k: v.ndim > 1 for k, v in p.items()}),
    "partition": optax.partition({"live": optax.adamw(1e-2), "slow": optax.set_to_zero()}, LABELS),
    "multi_steps": optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adamw)(1e-3),
    "lamb": optax.lamb(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "bf16 moments": optax.adam(1e-3, mu_dtype=jnp.bfloat16),
    "no leaves": optax.sgd(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_come_back_bit_for_bit(tmp_path, name):
    params, tx = make(), OPTIMIZERS[name]
    state = tx.init(params)
    for i in range(3):
        _, state = jax.jit(tx.update)(make(i + 1), state, params)
    checkpoint.save(tmp_path, 3, params, state, {})
    got_params, got_state = checkpoint.restore(tmp_path, 3, like(params), like(tx.init(params)))
    same(got_params, params)
    same(got_state, state)
    same(tx.update(make(9), got_state, params), tx.update(make(9), state, params))


def test_arrays_serve_as_like_and_order_is_that_of_like(tmp_path):
    params, state = make(), adam(make())
    checkpoint.save(tmp_path, 1, params, state, {})
    backwards = dict(reversed(params.items()))
    got, got_state = checkpoint.restore(tmp_path, 1, backwards, state)
    assert list(got) == list(backwards)
    same(got, params)
    same(got_state, state)


def test_odd_values_and_dtypes_survive(tmp_path):
    params = {
        "backbone/a": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45], jnp.float32),
        "backbone/b.c-d e": jnp.array([1.5, -2], jnp.bfloat16),
        "head/scalar": jnp.float32(3),
        "head/ids": jnp.array([2**31 - 1, -1], jnp.int32),
        "head/flag": jnp.array([True, False]),
    }
    checkpoint.save(tmp_path, 1, params, (), {})
    same(checkpoint.restore(tmp_path, 1, like(params), ())[0], params)


def test_nothing_is_printed_when_all_is_well(tmp_path, capfd):
    checkpoint.save(tmp_path, 1, make(), adam(make()), {})
    checkpoint.save_best(tmp_path, 1, make(), {})
    checkpoint.restore(tmp_path, checkpoint.newest(tmp_path), like(make()), like(adam(make())))
    checkpoint.load_params(tmp_path, like(make()))
    assert capfd.readouterr() == ("", "")


def test_meta_is_json_and_holds_no_more_than_was_given(tmp_path):
    meta = {"config": {"lr": 1e-3, "names": ["a", "b"]}, "best": None, "done": True, "文": "é"}
    checkpoint.save(tmp_path, 1, make(), (), {"step": 1})
    checkpoint.save(tmp_path, 2, make(), (), meta)
    checkpoint.save_best(tmp_path, 1, make(), {"accuracy": 0.5})
    assert checkpoint.read_meta(tmp_path) == meta
    assert checkpoint.read_meta(tmp_path, 1) == {"step": 1}
    assert checkpoint.read_meta(tmp_path, best=True) == {"accuracy": 0.5}


# Devices.


def place(tree, devices, spread):
    if len(jax.devices()) < devices:
        pytest.skip("needs XLA_FLAGS=--xla_force_host_platform_device_count=4")
    if devices == 0:
        return jax.tree.map(lambda _: None, tree)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def sharding(x):
        first = x.ndim and spread and x.shape[0] % devices == 0
        return NamedSharding(mesh, PartitionSpec("data") if first else PartitionSpec())

    return jax.tree.map(sharding, tree)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (4, 2), (2, 4), (4, 0), (4, 4)])
def test_restores_onto_another_number_of_devices(tmp_path, before, after, spread):
    state = (make(), adam(make()))
    checkpoint.save(tmp_path, 1, *jax.device_put(state, place(state, before, spread)), {})
    shardings = place(state, after, spread) if after else None
    want = (
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
        if after
        else like(state)
    )
    got = checkpoint.restore(tmp_path, 1, *want)
    same(got, state)
    for leaf, asked in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert leaf.sharding.is_equivalent_to(
            asked.sharding or SingleDeviceSharding(jax.devices()[0]), leaf.ndim
        )


def test_load_params_places_as_wanted(tmp_path):
    params = make()
    checkpoint.save(tmp_path, 1, params, (), {})
    shardings = place(params, 4, True)
    want = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=shardings[k]) for k, v in params.items()}
    got, _ = checkpoint.load_params(tmp_path, want)
    assert all(got[k].sharding == shardings[k] for k in got)


# What stays and what goes.


@pytest.mark.promise("R13")
def test_keep_prunes_steps_with_their_manifests(tmp_path):
    for step in (2, 10, 9, 11, 100):
        checkpoint.save(tmp_path, step, make(step), (), {}, keep=3)
    assert names(tmp_path / "checkpoints") == ["100", "11", "9"]  # 10 went when the run fell back to 9
    assert names(tmp_path / "manifests") == [
        "checkpoints-100.json",
        "checkpoints-11.json",
        "checkpoints-9.json",
    ]
    assert checkpoint.newest(tmp_path) == 100
    checkpoint.save(tmp_path, 101, make(), (), {}, keep=1)
    assert names(tmp_path / "checkpoints") == ["101"] and names(tmp_path / "manifests") == [
        "checkpoints-101.json"
    ]


def test_pruning_never_prefers_a_damaged_later_step(tmp_path):
    """Fallen back from 30 to 10: saving 20 must not push 10 and 20 out in favour of 30."""
    for step in (10, 30):
        checkpoint.save(tmp_path, step, make(step), (), {}, keep=2)
    damage_one(tmp_path / "checkpoints" / "30")
    checkpoint.save(tmp_path, 20, make(20), (), {}, keep=2)
    assert names(tmp_path / "checkpoints") == ["10", "20"] and checkpoint.newest(tmp_path) == 20


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 1, make(1), (), {"n": 1})
    checkpoint.save(tmp_path, 1, make(2), (), {"n": 2})
    same(checkpoint.restore(tmp_path, 1, like(make()), ())[0], make(2))
    assert checkpoint.read_meta(tmp_path, 1) == {"n": 2}


def test_left_over_temporary_folders_are_removed(tmp_path):
    for left in (
        "checkpoints/5.orbax-checkpoint-tmp",
        "checkpoints/5.new",
        "checkpoints/5.new.orbax-checkpoint-tmp",
        "best/5.new",
    ):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "data").write_bytes(b"x" * 100)
    cut_short = [tmp_path / ".run.json.7.tmp", tmp_path / "manifests" / ".best-5.json.7.tmp"]
    for path in cut_short:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{")
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, 6, make(), (), {})
    assert not any(path.exists() for path in cut_short)
    assert names(tmp_path / "checkpoints") == ["6"] and names(tmp_path / "best") == []


def test_a_new_best_replaces_the_old_one(tmp_path):
    checkpoint.save_best(tmp_path, 5, make(5), {"accuracy": 0.5})
    # after falling back, a lower step may be the best
    checkpoint.save_best(tmp_path, 3, make(3), {"accuracy": 0.6})
    assert names(tmp_path / "best") == ["3"] and names(tmp_path / "manifests") == ["best-3.json"]
    got, loaded = checkpoint.load_params(tmp_path, like(make()), skip="", new_ok="")
    same(got, make(3))
    assert loaded.step == 3


@pytest.mark.promise("R13")
def test_keeping_checkpoints_leaves_the_best_alone(tmp_path):
    checkpoint.save_best(tmp_path, 1, make(1), {})
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, make(step), (), {}, keep=1)
    assert names(tmp_path / "best") == ["1"]


@pytest.mark.parametrize("step", [1, 2])
def test_the_best_survives_a_failing_successor(tmp_path, monkeypatch, step):
    """Also when the successor has the same step, as after a resume."""
    checkpoint.save_best(tmp_path, 1, make(1), {})
    before = everything_in(tmp_path)

    def fail(self, directory, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save_best(tmp_path, step, make(2), {})
    assert everything_in(tmp_path) == before
    monkeypatch.undo()
    same(checkpoint.load_params(tmp_path, like(make()), skip="", new_ok="")[0], make(1))


def test_the_best_survives_a_kill_before_the_manifest(tmp_path, monkeypatch, capsys):
    checkpoint.save_best(tmp_path, 1, make(1), {})

    class Killed(BaseException):
        pass

    def kill(path, value):
        raise Killed

    monkeypatch.setattr(checkpoint.record, "write_json", kill)
    with pytest.raises(Killed):
        checkpoint.save_best(tmp_path, 2, make(2), {})
    same(checkpoint.load_params(tmp_path, like(make()), skip="", new_ok="")[0], make(1))
    assert "step 2" in capsys.readouterr().err


# Damage: whatever happens to any file of a step, the step before is used, and the file is named.


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_one(folder):
    flip(max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))


HARM = {
    "flipped": flip,
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-2]),
    "deleted": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
}


@pytest.mark.promise("R7")
@pytest.mark.parametrize("harm", HARM)
def test_no_damaged_file_is_ever_used(tmp_path, capsys, harm):
    good, new = (make(1), adam(make(1))), (make(2), adam(make(2), 5))
    checkpoint.save(tmp_path, 1, *good, {"n": 1})
    checkpoint.save(tmp_path, 2, *new, {"n": 2})
    files = [p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file()] + [
        tmp_path / "manifests" / "checkpoints-2.json"
    ]
    assert len(files) > 10
    for path in files:
        kept = path.read_bytes()
        HARM[harm](path)
        assert checkpoint.newest(tmp_path) == 1, path
        said = capsys.readouterr().err
        assert "WARNING" in said and str(path.relative_to(tmp_path)) in said
        with pytest.raises(UserError, match=re.escape(path.name)):
            checkpoint.restore(tmp_path, 2, like(new[0]), like(new[1]))
        with pytest.raises(UserError, match=re.escape(path.name)):
            checkpoint.read_meta(tmp_path, 2)
        assert checkpoint.read_meta(tmp_path) == {"n": 1}
        assert checkpoint.load_params(tmp_path, like(new[0]))[1].step == 1
        path.write_bytes(kept)
    same(checkpoint.restore(tmp_path, 1, like(good[0]), like(good[1])), good)
    assert checkpoint.newest(tmp_path) == 2  # put back, the step is trusted again


def test_orbax_alone_would_have_used_a_flipped_bit(tmp_path):
    """Why the manifest is there: without the check the wrong numbers come back without a word."""
    params = {"backbone/a": jnp.asarray(np.random.default_rng(0).normal(size=(200, 50)), jnp.float32)}
    checkpoint.save(tmp_path, 1, params, (), {})
    folder = tmp_path / "checkpoints" / "1"
    damage_one(folder)
    got = checkpoint._read(folder, "params", {"backbone/a": checkpoint._abstract(params["backbone/a"])})
    assert not np.array_equal(got["backbone/a"], params["backbone/a"])
    with pytest.raises(UserError, match="SHA-256"):
        checkpoint.restore(tmp_path, 1, params, ())


def test_the_newest_checkpoint_is_no_stand_in_for_a_damaged_best(tmp_path):
    checkpoint.save(tmp_path, 2, make(2), (), {})
    checkpoint.save_best(tmp_path, 1, make(1), {})
    damage_one(tmp_path / "best" / "1")
    with pytest.raises(
        UserError, match=r"the best step of .* is damaged: .*best/1.*; restore .*best, or remove"
    ):
        checkpoint.load_params(tmp_path, like(make()), skip="", new_ok="")
    same(checkpoint.load_params(tmp_path, like(make()), skip="", new_ok="", best=False)[0], make(2))


def test_a_step_without_manifest_is_not_used_and_is_cleared_away(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, make(1), (), {})
    checkpoint.save(tmp_path, 2, make(2), (), {})
    (tmp_path / "manifests" / "checkpoints-2.json").unlink()
    assert checkpoint.newest(tmp_path) == 1
    assert "interrupted" in capsys.readouterr().err
    checkpoint.save(tmp_path, 3, make(3), (), {}, keep=2)
    assert names(tmp_path / "checkpoints") == ["1", "3"]  # 2 does not count as one of the two


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "null",
        '{"step": 1, "files": {}}',
        '{"step": 9, "files": {"_CHECKPOINT_METADATA": [1, "a"]}}',
    ],
)
def test_a_wrong_manifest_proves_nothing(tmp_path, text):
    checkpoint.save(tmp_path, 1, make(1), (), {})
    (tmp_path / "manifests" / "checkpoints-1.json").write_text(text)
    assert checkpoint.newest(tmp_path) is None


def test_a_manifest_of_another_step_proves_nothing(tmp_path):
    checkpoint.save(tmp_path, 1, make(1), (), {})
    (tmp_path / "checkpoints" / "1").rename(tmp_path / "checkpoints" / "9")
    (tmp_path / "manifests" / "checkpoints-1.json").rename(tmp_path / "manifests" / "checkpoints-9.json")
    assert checkpoint.newest(tmp_path) is None


def test_everything_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    checkpoint.save(tmp_path, 1, make(1), (), {})
    damage_one(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="no usable checkpoint"):
        checkpoint.load_params(tmp_path, like(make()))


# Full disks.


def test_a_disk_that_would_be_full_is_said_before_anything_is_written(tmp_path, disk):
    checkpoint.save(tmp_path, 1, make(1), adam(make(1)), {})
    before = everything_in(tmp_path)
    disk(1000)
    with pytest.raises(UserError, match="not enough disk space") as e:
        checkpoint.save(tmp_path, 2, make(2), adam(make(2)), {})
    assert "step 2" in str(e.value) and "earlier steps are intact" in str(e.value)
    with pytest.raises(UserError, match="not enough disk space"):
        checkpoint.save_best(tmp_path, 2, make(2), {})
    assert everything_in(tmp_path) == before


def test_the_disk_must_hold_more_than_the_bare_bytes(tmp_path, disk):
    params = {"backbone/a": jnp.zeros((1024, 1024 * 4))}  # 16 MiB
    disk(19 * 2**20)
    with pytest.raises(UserError, match=r"20\.2 MiB"):
        checkpoint.save(tmp_path, 1, params, (), {})
    disk(21 * 2**20)
    checkpoint.save(tmp_path, 1, params, (), {})


FAILING_WRITE = """
import resource, sys
from pathlib import Path
sys.dont_write_bytecode = True  # the limit would cut these files short, too, for every later process
sys.path[:0] = sys.argv[3:]
import jax
from tests.test_checkpoint import adam, big
from ptft.core import checkpoint
from ptft.core.errors import UserError

jax.config.update("jax_numpy_dtype_promotion", "standard")
params = big(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    checkpoint.save(Path(sys.argv[1]), int(sys.argv[2]), params, adam(params), {})
except UserError as e:
    print(e)
"""


def big(seed):
    return make(seed, {"backbone/a": (300, 200)})


@pytest.mark.promise("R8")
@pytest.mark.parametrize("step", [1, 2])
def test_a_write_that_fails_leaves_earlier_steps_intact(tmp_path, step):
    """A real failure of the file system under Orbax, in a process whose files may not grow beyond 64 KiB.

    Also when the step is there already: the earlier save of it stays.
    """
    good = (big(1), adam(big(1)))
    checkpoint.save(tmp_path, 1, *good, {})
    before = everything_in(tmp_path)
    root = str(Path(__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-c", FAILING_WRITE, str(tmp_path), str(step), root],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"could not write step {step}" in child.stdout and "File too large" in child.stdout
    assert "ERROR:absl" not in child.stderr
    after = everything_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert checkpoint.newest(tmp_path) == 1
    same(checkpoint.restore(tmp_path, 1, like(good[0]), like(good[1])), good)
    checkpoint.save(tmp_path, 2, *good, {})
    assert names(tmp_path / "checkpoints") == ["1", "2"] and checkpoint.newest(tmp_path) == 2


def test_a_bug_is_not_dressed_up_as_a_full_disk(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, make(), (), {"not json": object()})
    assert names(tmp_path / "checkpoints") == []


# Restoring into something else.


def test_restore_refuses_another_shape_name_dtype_or_optimizer(tmp_path):
    params, state = make(), adam(make())
    checkpoint.save(tmp_path, 1, params, state, {})
    wider = {**params, "head/dense/bias": jnp.zeros(5)}
    with pytest.raises(UserError, match=r"head/dense/bias +float32\[4\] +float32\[5\]"):
        checkpoint.restore(tmp_path, 1, wider, state)
    with pytest.raises(UserError, match=r"adapter/a +missing +float32\[2\]"):
        checkpoint.restore(tmp_path, 1, {**params, "adapter/a": jnp.zeros(2)}, state)
    fewer = {k: v for k, v in params.items() if k != "head/dense/bias"}
    with pytest.raises(UserError, match=r"head/dense/bias +float32\[4\] +not wanted"):
        checkpoint.restore(tmp_path, 1, fewer, state)
    with pytest.raises(UserError, match=r"float32\[4\] +bfloat16\[4\]"):
        checkpoint.restore(tmp_path, 1, {**params, "head/dense/bias": jnp.zeros(4, jnp.bfloat16)}, state)
    with pytest.raises(UserError, match=r"opt\[0\]\.mu.*not wanted"):
        checkpoint.restore(tmp_path, 1, params, optax.sgd(1e-3).init(params))
    with pytest.raises(UserError, match=r"opt\[0\]\.mu\['head/dense/bias'\]"):
        checkpoint.restore(tmp_path, 1, params, adam(fewer))


def test_restore_of_a_step_that_is_not_there_lists_those_that_are(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, make(), (), {})
    with pytest.raises(UserError, match=r"no step 7.*2, 1"):
        checkpoint.restore(tmp_path, 7, make(), ())
    with pytest.raises(UserError, match="no step 7"):
        checkpoint.read_meta(tmp_path, 7, best=True)


# Loading from another run.


@pytest.fixture
def pretrained(tmp_path):
    folder = tmp_path / "pretrained"
    checkpoint.save(folder, 5, make(5), adam(make()), {})
    checkpoint.save_best(folder, 3, make(3), {})
    return folder


def test_heads_are_left_and_the_backbone_is_taken(pretrained):
    want = like({**make(), "head/classify/kernel": jnp.zeros((8, 2))})
    del want["head/dense/bias"]
    got, loaded = checkpoint.load_params(pretrained, want)
    backbone = sorted(n for n in SHAPES if n.startswith("backbone/"))
    assert sorted(loaded.loaded) == backbone and loaded.step == 3
    assert sorted(loaded.new) == ["head/classify/kernel", "head/dense/kernel"]
    assert sorted(loaded.unused) == ["head/dense/bias", "head/dense/kernel"]
    same(got, {n: make(3)[n] for n in backbone})
    assert sorted(loaded.loaded + loaded.new) == sorted(want) and sorted(
        loaded.loaded + loaded.unused
    ) == sorted(SHAPES)


def test_best_false_takes_the_newest(pretrained):
    got, loaded = checkpoint.load_params(pretrained, like(make()), skip="", new_ok="", best=False)
    assert sorted(loaded.loaded) == sorted(SHAPES) and loaded[1:4] == ([], [], 5)
    same(got, make(5))


@pytest.mark.promise("R15")
@pytest.mark.parametrize("name", SHAPES)
def test_each_missing_or_reshaped_leaf_is_caught(pretrained, name):
    """A partial Orbax restore hands back placeholders for these; here every one is refused by name."""
    unknown = like({**make(), name + "_renamed": make()[name]})
    with pytest.raises(UserError, match=rf"{name}_renamed +missing +float32"):
        checkpoint.load_params(pretrained, unknown, skip="", new_ok="")
    reshaped = like({**make(), name: jnp.zeros((*SHAPES[name], 2))})
    have, want = (re.escape(str([*shape])) for shape in (SHAPES[name], (*SHAPES[name], 2)))
    with pytest.raises(UserError, match=rf"path +have +want\n  {name} +float32{have} +float32{want}"):
        checkpoint.load_params(pretrained, reshaped, skip="", new_ok=".*")  # new_ok does not excuse a clash
    got, loaded = checkpoint.load_params(pretrained, unknown, skip="", new_ok=".*_renamed")
    assert loaded.new == [name + "_renamed"] and loaded.new[0] not in got
    assert all(isinstance(leaf, jax.Array) for leaf in got.values())
    fewer = like({k: v for k, v in make().items() if k != name})
    assert checkpoint.load_params(pretrained, fewer, skip="", new_ok="")[1].unused == [name]


def test_patterns_match_whole_names(pretrained):
    with pytest.raises(UserError, match=r"head/dense/kernel +missing"):
        checkpoint.load_params(pretrained, like(make()), skip="head/.*", new_ok="head")


def test_nothing_in_common_gives_no_arrays(pretrained):
    want = like({"head/other": jnp.zeros(2)})
    got, what = checkpoint.load_params(pretrained, want)
    assert got == {} and what[:4] == (
        [],
        ["head/other"],
        list(checkpoint._stored(pretrained / "best" / "3", "params")),
        3,
    )


def test_wanted_dtype_holds(pretrained):
    want = {k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in make().items()}
    got, _ = checkpoint.load_params(pretrained, want)
    same(got, {k: make(3)[k].astype(jnp.bfloat16) for k in got})


def test_a_long_table_is_cut(pretrained):
    want = like({f"backbone/block_{i}/kernel": jnp.zeros(2) for i in range(30)})
    with pytest.raises(UserError, match="and 10 more"):
        checkpoint.load_params(pretrained, want)


def test_a_folder_without_checkpoints_is_described(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.json").write_text("{}")
    (tmp_path / "runs" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no usable checkpoint.*config\.json, notes\.txt"):
        checkpoint.load_params(tmp_path / "runs", like(make()))
    with pytest.raises(UserError, match="no usable checkpoint"):
        checkpoint.read_meta(tmp_path / "runs")
    with pytest.raises(UserError, match=r"no folder .*did you mean 'runs'"):
        checkpoint.load_params(tmp_path / "rums", like(make()))
    assert checkpoint.newest(tmp_path / "runs") is None and checkpoint.newest(tmp_path / "rums") is None


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(Path("run"), 1, make(), (), {})
    assert checkpoint.newest(tmp_path / "run") == 1


def test_a_run_may_be_moved(tmp_path):
    checkpoint.save(tmp_path / "a", 1, make(), (), {})
    (tmp_path / "a").rename(tmp_path / "b")
    same(checkpoint.restore(tmp_path / "b", 1, make(), ())[0], make())


def test_the_manifest_lists_every_file(tmp_path):
    checkpoint.save(tmp_path, 1, make(), adam(make()), {})
    listed = json.loads((tmp_path / "manifests" / "checkpoints-1.json").read_text())["files"]
    assert set(listed) == set(everything_in(tmp_path / "checkpoints" / "1"))


def test_only_orbax_is_silenced():
    quiet = logging.LogRecord(
        "absl", logging.ERROR, "/site-packages/orbax/checkpoint/future.py", 1, "m", (), None
    )
    other = logging.LogRecord(
        "absl", logging.ERROR, "/site-packages/tensorflow_datasets/core.py", 1, "m", (), None
    )
    logger = logging.getLogger("absl")
    assert not logger.filter(quiet) and logger.filter(other)
