"""What is frozen is kept thinner: the bytes, the error, and that nobody but the step ever sees it."""

import json

import flow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptft.freeze import quantize
from ptft.train import build, programs, spec

RNG = np.random.default_rng(0)
KERNEL, TABLE = "backbone/block_0/ffn/up/kernel", "backbone/embeddings/word/embedding"
PARAMS = {
    # Channels, and rows of a table, of very different size: one scale for all would lose the small ones.
    KERNEL: (RNG.standard_normal((32, 48)) * 10.0 ** RNG.uniform(-4, 2, 48)).astype(np.float32),
    TABLE: (RNG.standard_normal((100, 16)) * 10.0 ** RNG.uniform(-4, 2, (100, 1))).astype(np.float32),
    "backbone/block_0/ffn/up/bias": RNG.standard_normal(48).astype(np.float32),
    "backbone/block_0/ffn_norm/scale": np.ones(32, np.float32),
    "adapter/block_0/ffn/up/kernel/fish/index": np.arange(5, dtype=np.int32),
}
BYTES = {"float32": 1.0, "bfloat16": 0.51, "int8": 0.28}  # vectors stay as they are


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    flow.run(
        flow.pretraining(folder, **{"train_for": "2 steps", "save_every": "0", "eval_every": "0"}),
        folder / "pre",
    )
    return folder


@pytest.fixture(scope="module")
def runs(home):
    """A finished run of each dtype, its best step the first that is evaluated or none."""
    out = {}
    for dtype in quantize.DTYPES:
        more = {"best": "last"} if dtype == "bfloat16" else {}
        flow.run(
            flow.finetuning(home, home / "pre", frozen_dtype=dtype, freeze="top-1!attention", **more),
            home / dtype,
        )
        out[dtype] = home / dtype
    return out


def test_matrices_shrink_and_nothing_else_does():
    assert quantize.quantize(PARAMS, "float32") is PARAMS
    half, eighth = quantize.quantize(PARAMS, "bfloat16"), quantize.quantize(PARAMS, "int8")
    for name, x in PARAMS.items():
        if x.ndim < 2:
            assert half[name] is x and eighth[name] is x
            continue
        assert half[name].dtype == jnp.bfloat16 and half[name].nbytes == x.nbytes / 2
        assert eighth[name].values.dtype == jnp.int8 and eighth[name].values.nbytes == x.nbytes / 4
        assert eighth[name].scale.dtype == jnp.float32
    assert eighth[KERNEL].scale.shape == (1, 48) and eighth[TABLE].scale.shape == (100, 1)


def test_eight_bits_err_by_at_most_half_a_level_of_the_channel():
    wide = quantize.dequantize(quantize.quantize(PARAMS, "int8"))
    for name, axis in ((KERNEL, 0), (TABLE, 1)):
        x = PARAMS[name]
        largest = np.abs(x).max(axis, keepdims=True)
        error = np.abs(np.asarray(wide[name]) - x)
        assert wide[name].dtype == jnp.float32 and (error <= largest / 127 * 0.5001).all() and error.max() > 0
        # The largest of each channel comes back, whatever its sign.
        np.testing.assert_allclose(np.abs(wide[name]).max(axis), largest.squeeze(axis), rtol=1e-6)
    near = np.asarray(quantize.dequantize(quantize.quantize(PARAMS, "bfloat16"))[KERNEL])
    np.testing.assert_allclose(near, PARAMS[KERNEL], rtol=2**-8)


def test_zeros_stay_zeros():
    x = PARAMS[KERNEL].copy()
    x[:, 3], x[2, 5] = 0, 0
    wide = np.asarray(quantize.dequantize(quantize.quantize({KERNEL: x}, "int8"))[KERNEL])
    assert (wide[:, 3] == 0).all() and wide[2, 5] == 0 and np.isfinite(wide).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_compiled_or_not_it_is_the_same_to_the_bit(dtype):
    """A run makes weights thin inside a program, an evaluation of its checkpoint outside of one."""
    many = {f"{i}/kernel": RNG.standard_normal((64, 512)).astype(np.float32) for i in range(4)} | PARAMS
    inside, outside = jax.jit(lambda p: quantize.quantize(p, dtype))(many), quantize.quantize(many, dtype)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def test_computed_takes_the_named_ones_and_leaves_the_others():
    found = quantize.computed(PARAMS, [KERNEL], "int8")
    assert found.keys() == PARAMS.keys() and found[TABLE] is PARAMS[TABLE]
    assert not np.array_equal(found[KERNEL], PARAMS[KERNEL])
    np.testing.assert_array_equal(
        found[KERNEL], quantize.dequantize(quantize.quantize({KERNEL: PARAMS[KERNEL]}, "int8"))[KERNEL]
    )


def test_bytes_of_the_frozen_part_fall(home):
    """Of what the devices keep, and of what the compiled step takes."""
    kept, arguments = {}, {}
    for dtype in quantize.DTYPES:
        run = build.build(
            spec.resolve(flow.finetuning(home, home / "pre", frozen_dtype=dtype, freeze="head", devices=1))
        )
        shapes = {n: s for n, s in run.net.shapes().items() if not n.startswith("head/")}
        kept[dtype] = sum(
            x.size * x.dtype.itemsize
            for x in jax.tree.leaves(jax.eval_shape(lambda p, d=dtype: quantize.quantize(p, d), shapes))
        )
        arguments[dtype] = programs.program(run).cost.argument_bytes
    for dtype, share in BYTES.items():
        assert kept[dtype] <= share * kept["float32"]
        assert arguments["float32"] - arguments[dtype] == pytest.approx(
            kept["float32"] - kept[dtype], abs=4096
        )


def test_a_checkpoint_holds_the_original_bytes(home, runs):
    """The frozen weights are those of the pretraining run in every dtype; what moves differs."""
    base, states = (
        flow.state(home / "pre", 2),
        {dtype: flow.state(folder, 8) for dtype, folder in runs.items()},
    )
    rows = json.loads((runs["int8"] / "freeze_ledger.json").read_text())["rows"]
    frozen = [f"params {r['name']}" for r in rows if not r["rate"]]
    assert f"params {KERNEL}".replace("ffn/up", "attention/query") in frozen
    for dtype, found in states.items():
        assert all(found[n] == base[n] for n in frozen), dtype
        assert json.loads((runs[dtype] / "freeze_ledger.json").read_text())["holds"]
    assert len({s[f"params {KERNEL}"] for s in states.values()}) == 3


def test_training_differs_from_float32_by_little(runs):
    losses = {d: [line["loss"] for line in flow.lines(folder)] for d, folder in runs.items()}
    for dtype in ("bfloat16", "int8"):
        n = min(map(len, losses.values()))
        assert losses[dtype][:n] != losses["float32"][:n]
        np.testing.assert_allclose(losses[dtype][:4], losses["float32"][:4], rtol=0.02)


@pytest.mark.parametrize("dtype", quantize.DTYPES)
def test_eval_and_predict_compute_as_the_run_did(runs, dtype, capsys):
    """With the best step's weights, or the last's; on weights as the steps saw them."""
    result = json.loads((runs[dtype] / "result.json").read_text())
    for split in ("dev", "test"):
        assert flow.ptft("eval", "--workdir", runs[dtype], "--split", split) == 0
        said = json.loads(capsys.readouterr().out)
        assert (
            said["loss"] == pytest.approx(result[split]["loss"], rel=1e-6)
            and said["accuracy"] == result[split]["accuracy"]
        )
    assert flow.ptft("predict", "--workdir", runs[dtype], "--text", "alpha beta good") == 0
