"""Runs whose checkpoints hold what moved alone, and runs with added parameters: resumed, evaluated, exported,
built upon."""

import json
import math
import shutil
from pathlib import Path

import flow
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ptft.core import checkpoint, integrity
from ptft.core.errors import UserError
from ptft.freeze import quantize
from ptft.train import build, spec, train, weights

HUB = Path(__file__).parent / "golden" / "hub"
STRATEGIES = {"bitfit": "bitfit", "lora": "lora=2,query,ffn,dora+ia3@plus=16", "fish": "fish=0.02,8"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base in `pre`, another in `pre2`, and finished runs NAME (a whole checkpoint) and NAME_delta of every
    strategy; `prompt`."""
    folder = tmp_path_factory.mktemp("delta")
    for seed, name in enumerate(("pre", "pre2")):
        flow.run(pretraining(folder, seed=seed), folder / name)
    for name in STRATEGIES:
        for kind in ("full", "delta"):
            flow.run(values(folder, name, kind), folder / (name + "_delta" * (kind == "delta")))
    flow.run(values(folder, "prompt=2+prefix=2+houlsby=2", "full"), folder / "prompt")
    return folder


SHORT = {"train_for": "4 steps", "eval_every": "2 steps", "save_every": "0", "devices": 1}


def pretraining(folder, **changes):
    return flow.pretraining(folder, **{**SHORT, **changes})


def values(folder, name, kind="delta", **changes):
    base = {**SHORT, "freeze": STRATEGIES.get(name, name), "checkpoint": kind}
    return flow.finetuning(folder, folder / "pre", **{**base, **changes})


def said(capsys, *args):
    capsys.readouterr()
    code = flow.ptft(*args)
    out = capsys.readouterr()
    assert code == 0, out.err
    return out.out


def refused(capsys, *args):
    assert flow.ptft(*args) == 2
    return capsys.readouterr().err


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def ledger(workdir):
    return json.loads((workdir / "freeze_ledger.json").read_text())


# ------------------------------------------------------------------------- one run, two kinds of checkpoint


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_delta_computes_what_the_whole_checkpoint_does(home, name, capsys):
    whole, delta = home / name, home / f"{name}_delta"
    results = [json.loads((w / "result.json").read_text()) for w in (whole, delta)]
    assert results[0]["dev"] == results[1]["dev"] and results[0]["test"] == results[1]["test"]
    evals = [json.loads(said(capsys, "eval", "--workdir", w)) for w in (whole, delta)]
    assert evals[0] == evals[1] and evals[0]["loss"] == pytest.approx(results[0]["test"]["loss"], abs=1e-6)
    predicted = [
        said(capsys, "predict", "--workdir", w, "--json", "--text", "good alpha", "--text", "bad")
        for w in (whole, delta)
    ]
    assert predicted[0] == predicted[1] and len(predicted[0].splitlines()) == 2


@pytest.mark.parametrize("name", [*STRATEGIES, "prompt"])
def test_the_backbone_rests_and_what_is_added_moves(home, name):
    proof = ledger(home / name)
    assert proof["holds"] and not proof["not_moved"]
    moved = {r["name"] for r in proof["rows"] if r["verdict"] == "moved"}
    if name != "bitfit":
        assert moved == {
            r["name"]
            for r in proof["rows"]
            if r["name"].startswith(("adapter/", "head/")) and not r["name"].endswith("index")
        }
    if name != "prompt":
        assert proof == ledger(home / f"{name}_delta")


def test_prompts_are_read_by_eval_and_predict(home, capsys):
    found = json.loads(said(capsys, "eval", "--workdir", home / "prompt"))
    assert found["loss"] == pytest.approx(
        json.loads((home / "prompt" / "result.json").read_text())["test"]["loss"], abs=1e-6
    )
    assert (
        len(
            said(
                capsys, "predict", "--workdir", home / "prompt", "--text", "good", "--text", "bad"
            ).splitlines()
        )
        == 2
    )


def test_a_delta_holds_what_moved_and_no_more(home):
    for name in STRATEGIES:
        run = json.loads((home / f"{name}_delta" / "run.json").read_text())
        size_of = {
            r["name"]: 4 * math.prod(r["shape"])
            for r in run["freeze"]
            if r["rate"] or r["name"].startswith("adapter/")
        }
        stored = checkpoint._stored(integrity.step_folder(home / f"{name}_delta", "checkpoints", 4), "params")
        assert set(stored) == set(size_of)
        whole, delta = (size(home / n / "checkpoints" / "4" / "params") for n in (name, f"{name}_delta"))
        assert delta < sum(size_of.values()) + 4096 * len(stored)  # Orbax's own of every array
        assert delta < 0.5 * whole


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_delta_equals_an_uninterrupted_one(home, name, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        flow.at_batch(m, 3, flow.sigterm)
        with pytest.raises(SystemExit):
            flow.run(values(home, name), tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run") == 3
    flow.run(values(home, name), tmp_path / "run")
    one, two = flow.state(tmp_path / "run", 4), flow.state(home / f"{name}_delta", 4)
    assert one == two and any(n.startswith("opt ") for n in one)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        home / f"{name}_delta" / "metrics.jsonl"
    ).read_bytes()
    assert ledger(tmp_path / "run") == ledger(home / f"{name}_delta")


def test_phases_that_add_later_are_held_whole_by_a_delta(home, tmp_path, capsys):
    """What moves in any phase is in every checkpoint, the first one's best included."""
    done = flow.run(values(home, "bitfit; 2 steps: ia3"), tmp_path / "run")
    assert ledger(tmp_path / "run")["holds"] and not ledger(tmp_path / "run")["not_moved"]
    assert json.loads(said(capsys, "eval", "--workdir", tmp_path / "run"))["loss"] == pytest.approx(
        done["test"]["loss"], abs=1e-6
    )


# ------------------------------------------------------------------------ export, and runs that start on it


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_merged_export_is_the_run(home, name, tmp_path, capsys):
    for workdir in (home / name, home / f"{name}_delta"):
        said(capsys, "export", "--workdir", workdir, "--merge", "--to", tmp_path / workdir.name)
        said(capsys, "import", tmp_path / workdir.name, "--workdir", tmp_path / f"{workdir.name}_back")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in (name, f"{name}_delta"))
    assert (
        set(one) == set(two)
        and all(np.array_equal(one[n], two[n]) for n in one)
        and not any("adapter" in n for n in one)
    )
    texts = ["--json", "--text", "good alpha beta", "--text", "bad zeta"]
    ours, back = (
        [
            json.loads(line)["probabilities"]
            for line in said(capsys, "predict", "--workdir", w, *texts).splitlines()
        ]
        for w in (home / name, tmp_path / f"{name}_back")
    )
    assert [list(p.values()) for p in back] == [pytest.approx(list(p.values()), abs=1e-5) for p in ours]


def test_parts_are_not_exported_as_if_they_were_a_model(home, tmp_path, capsys):
    for name, what in (
        ("bitfit_delta", "a delta"),
        ("lora", "added parameters"),
        ("fish_delta", "a delta"),
    ):
        err = refused(capsys, "export", "--workdir", home / name, "--to", tmp_path / "out")
        assert f"{home / name} holds {what}, and no whole model by itself; --merge makes one" in err
    for merge in ([], ["--merge"]):  # which would not help
        err = refused(capsys, "export", "--workdir", home / "prompt", *merge, "--to", tmp_path / "out")
        assert "houlsby cannot be merged into the backbone's weights; those that can are lora, ia3" in err
    assert not (tmp_path / "out").exists()
    said(capsys, "export", "--workdir", home / "bitfit", "--to", tmp_path / "out")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_starts_on_a_delta_as_on_the_whole(home, name):
    starts = []
    for workdir in (home / name, home / f"{name}_delta"):
        run = build.build(spec.resolve(values(home, "head", init_from=str(workdir))))
        starts.append(weights.initial(run.config, run.net))
    assert set(starts[0]) == set(starts[1]) and all(
        np.array_equal(starts[0][n], starts[1][n]) for n in starts[0]
    )
    base = weights.initial(spec.resolve(values(home, "head")), run.net)
    # what moved is in it
    assert any(not np.array_equal(base[n], starts[0][n]) for n in base if n.startswith("backbone/"))


def test_prompts_cannot_be_built_upon(home):
    config = spec.resolve(values(home, "head", init_from=str(home / "prompt")))
    with pytest.raises(UserError, match="houlsby cannot be merged"):
        weights.initial(config, build.build(spec.resolve(values(home, "head"))).net)


def test_deltas_upon_deltas(home, tmp_path, capsys):
    """A chain of three: the base, a delta upon it, a delta upon that; the last is good for as long as all are
    what they were."""
    for folder in ("pre", "lora_delta"):
        shutil.copytree(home / folder, tmp_path / folder)
    config = json.loads((tmp_path / "lora_delta" / "config.json").read_text())
    (tmp_path / "lora_delta" / "config.json").write_text(
        json.dumps({**config, "init_from": str(tmp_path / "pre")})
    )
    done = flow.run(values(home, "bitfit", init_from=str(tmp_path / "lora_delta")), tmp_path / "last")
    twin = flow.run(values(home, "bitfit", "full", init_from=str(home / "lora")), tmp_path / "twin")
    assert done["dev"] == twin["dev"]
    assert json.loads(said(capsys, "eval", "--workdir", tmp_path / "last")) == json.loads(
        said(capsys, "eval", "--workdir", tmp_path / "twin")
    )
    shutil.rmtree(tmp_path / "pre")
    shutil.copytree(home / "pre2", tmp_path / "pre")
    assert "holds only what moved, on a base with the digest" in refused(
        capsys, "eval", "--workdir", tmp_path / "last"
    )


# ------------------------------------------------------------------------------------------- the wrong base


def test_another_base_fails_loudly(home, tmp_path, capsys):
    """Every way to use the run, and a resume, after what it was trained on has been replaced."""
    shutil.copytree(home / "pre", tmp_path / "pre")
    shutil.copytree(home / "bitfit_delta", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "init_from": str(tmp_path / "pre")}))
    said(capsys, "eval", "--workdir", tmp_path / "run")
    shutil.rmtree(tmp_path / "pre")
    shutil.copytree(home / "pre2", tmp_path / "pre")
    digest = json.loads((tmp_path / "run" / "run.json").read_text())["base"]
    for args in (["eval"], ["predict", "--text", "x"], ["export", "--merge", "--to", tmp_path / "out"]):
        err = refused(capsys, args[0], "--workdir", tmp_path / "run", *args[1:])
        assert f"on a base with the digest {digest}; {tmp_path / 'pre'} is another" in err
        assert "restore the base that it was trained on" in err
    with pytest.raises(UserError, match=digest):
        weights.whole(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match=digest):
        flow.run(values(home, "bitfit", init_from=str(tmp_path / "pre")), tmp_path / "run")


def test_random_weights_are_a_base_too(home, tmp_path, capsys):
    """They come back from the seed alone; another seed is another base."""
    whole, delta = (
        flow.run(pretraining(home, freeze="top-1", checkpoint=kind), tmp_path / kind)
        for kind in ("full", "delta")
    )
    assert whole["dev"] == delta["dev"]
    evals = [
        said(capsys, "eval", "--workdir", tmp_path / kind, "--split", "dev") for kind in ("full", "delta")
    ]
    assert evals[0] == evals[1]
    stored = checkpoint._stored(
        integrity.step_folder(tmp_path / "delta", "best", delta["best_step"]), "params"
    )
    assert stored and not any(n.startswith("backbone/embeddings/") for n in stored)
    file = tmp_path / "delta" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seed": 7}))
    assert "the initial weights of seed 7 are another" in refused(
        capsys, "eval", "--workdir", tmp_path / "delta", "--split", "dev"
    )


def test_a_delta_on_a_folder_of_another_library(home, tmp_path, capsys):
    shutil.copytree(HUB / "bert_classify", tmp_path / "base")
    done = flow.run(
        values(home, "lora=2", init_from=str(tmp_path / "base"), **{"objective.seq_len": 12}),
        tmp_path / "run",
    )
    found = json.loads(said(capsys, "eval", "--workdir", tmp_path / "run"))
    assert found["loss"] == pytest.approx(done["test"]["loss"], abs=1e-6)
    said(capsys, "export", "--workdir", tmp_path / "run", "--merge", "--to", tmp_path / "out")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["bert.embeddings.word_embeddings.weight"][0, 0] += 1e-6
    save_file(tensors, file)
    assert f"{tmp_path / 'base'} is another" in refused(capsys, "eval", "--workdir", tmp_path / "run")


# ----------------------------------------------------------------------------------- thinner frozen weights


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_thin_weights_under_a_delta_are_those_that_the_run_computed_with(home, dtype, tmp_path, capsys):
    done = flow.run(values(home, "lora=2", frozen_dtype=dtype), tmp_path / "run")
    found = json.loads(said(capsys, "eval", "--workdir", tmp_path / "run"))
    assert found["loss"] == pytest.approx(done["test"]["loss"], abs=1e-6)
    said(capsys, "export", "--workdir", tmp_path / "run", "--merge", "--to", tmp_path / "out")
    name = "backbone/block_0/attention/key/kernel"
    base = checkpoint.load_params(home / "pre", None, skip="")[0][name]
    out = load_file(tmp_path / "out" / "model.safetensors")[
        "bert.encoder.layer.0.attention.self.key.weight"
    ].T
    np.testing.assert_array_equal(out, quantize.dequantize(quantize.quantize({name: base}, dtype))[name])
    assert not np.array_equal(out, base)


def test_a_run_is_not_trained_twice(home):
    """A finished delta gives its result without its base."""
    assert train.finished(spec.resolve(values(home, "bitfit")), home / "bitfit_delta")["steps"] == 4
