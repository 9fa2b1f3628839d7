"""`ptft tune`: it goes on where it was stopped, tries cheaply first, never takes a run that diverged, and
looks at test once."""

import json
import shlex
import subprocess
import sys

import flow
import pytest

from ptft.bench import identity, tune
from ptft.core import signals
from ptft.core.errors import UserError
from ptft.train import spec, train

TINY = {"devices": 1, "train_for": "4 steps", "eval_every": "0", "save_every": "2 steps"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    flow.run(flow.pretraining(folder, **{"model.layers": 3, "train_for": "2 steps"}), folder / "pre")
    return folder


def values(home, strategies=("top-2", "head"), **changes):
    return {
        **flow.finetuning(home, home / "pre", **{**TINY, **changes}),
        "tune": {"strategies": list(strategies)},
    }


class Runs:
    """Stands in for `train.run`: the dev accuracy is what a function says of a config; remembers what was
    asked for."""

    def __init__(self, monkeypatch, say):
        self.asked, self.say = [], say
        monkeypatch.setattr(train, "run", self)
        monkeypatch.setattr(tune, "_test", lambda config, folder: {"accuracy": 0.5})

    def __call__(self, config, folder, quiet, chosen):
        self.asked.append(config)
        return {"dev": {"accuracy": self.say(config)}}


def cheap(config):
    return not config.frozen_dropout or config.train_for != "4 steps"


def near(config):
    """The best learning rate is 2e-3."""
    return 1 / (1 + abs(config.optim.lr - 2e-3) * 1e3)


def test_a_search_of_real_runs(home, tmp_path, capsys):
    page = flow.page(tmp_path / "page.py", values(home))
    assert (
        flow.ptft(
            "tune", "--config", page, "--workdir", tmp_path / "t", "--trials", 2, "--config.tune.lr=[0.5,2]"
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "t" / "tune.json").read_text())
    assert (
        len(found["trials"]) == 2
        and {r["state"] for r in found["trials"]} == {"complete"}
        and "0 of 2 trials were pruned" in "".join(out)
    )
    assert found["best"]["dev"] == max(r["dev"] for r in found["trials"])
    assert all(5e-4 <= r["lr"] <= 2e-3 for r in found["trials"])
    # The command that is printed gives what the search found, on dev and on the test split that no trial saw.
    command = shlex.split(out[-1])
    assert command[:2] == ["ptft", "train"] and not any("tune" in word for word in command[:-1])
    assert flow.ptft(*command[1:]) == 0
    result = json.loads((tmp_path / "t" / "best" / "result.json").read_text())
    assert result["dev"]["accuracy"] == found["best"]["dev"] and result["test"] == pytest.approx(
        found["best"]["test"]
    )
    assert len(list((tmp_path / "t" / "runs").glob("*"))) == 1, "only the best run is kept"


def test_a_cheap_try_freezes_deeper_or_stops_sooner(home):
    def of(freeze):
        config = tune.cheaper(
            spec.resolve(
                flow.finetuning(home, home / "pre", **TINY | {"train_for": "30 steps"}, freeze=freeze)
            )
        )
        return (config.freeze, config.train_for, config.frozen_dropout)

    assert of("full") == ("full&top-1", "30 steps", False)
    assert of("bitfit+layers=1@decay=0.9") == ("bitfit+layers=1&top-1@decay=0.9", "30 steps", False)
    for freeze in (
        "head",
        "top-1",
        "embeddings",
        "lora=4",
        "head; 50%: full",
        "gradual",
        "auto(budget=0.5 params)",
        (("head/.*", "train"), (".*", "freeze")),
    ):
        assert of(freeze) == (freeze, "10 steps", True)
    assert of("head; 20: full") == ("head; 20: full", "30 steps", True), (
        "in a third of the steps it would not begin"
    )


def test_what_looks_bad_cheaply_is_not_finished(home, tmp_path, monkeypatch):
    runs = Runs(monkeypatch, near)
    found = tune.run(values(home), tmp_path / "t", 16, [])
    pruned = [r for r in found["trials"] if r["state"] == "pruned"]
    assert 3 < len(pruned) < 12 and all(r["dev"] is None and r["cheap"]["dev"] is not None for r in pruned)
    assert sum(map(cheap, runs.asked)) == 16 and len(runs.asked) == 32 - len(pruned)
    assert all(not c.data.test for c in runs.asked)
    done = [r for r in found["trials"] if r["state"] == "complete"]
    assert found["best"]["dev"] == max(r["dev"] for r in done) and "16 trials were pruned" in tune.table(
        found
    )
    assert max(r["cheap"]["dev"] for r in pruned) <= max(r["cheap"]["dev"] for r in done)


def test_a_run_that_diverges_is_never_the_best(home, tmp_path, monkeypatch):
    """Neither one that ends with an error nor one whose metric is not a number, in a cheap try or a whole
    run."""

    def say(config):
        if config.optim.lr > 2.5e-3:
            raise UserError("the training loss is nan at step 2: it diverged")
        return float("nan") if config.optim.lr > 1e-3 and not cheap(config) else near(config)

    Runs(monkeypatch, say)
    found = tune.run(values(home), tmp_path / "t", 12, [])
    diverged = [r for r in found["trials"] if r["state"] == "diverged"]
    assert {bool(r["cheap"]["error"]) for r in diverged} == {True, False} and all(
        r["dev"] is None for r in diverged
    )
    assert "diverged" in tune.table(found)
    assert (
        found["best"]["dev"] == max(r["dev"] for r in found["trials"] if r["dev"] is not None)
        and found["best"]["lr"] <= 1e-3
    )

    Runs(monkeypatch, lambda config: float("nan"))
    with pytest.raises(UserError, match="none of 3 trials gave a finite dev accuracy"):
        tune.run(values(home), tmp_path / "none", 3, [])


def shape(found):
    return [(r["freeze"], r["lr"], r["state"], r["dev"]) for r in found["trials"]]


def test_a_search_that_is_stopped_goes_on(home, tmp_path, monkeypatch):
    Runs(monkeypatch, near)
    whole = tune.run(values(home), tmp_path / "whole", 14, [])
    assert len({r["lr"] for r in whole["trials"]}) == 14

    cut = Runs(monkeypatch, near)

    def stop(config):
        if len(cut.asked) == 20:
            raise SystemExit(signals.PREEMPTED)  # as train.run does, once it has saved
        return near(config)

    cut.say = stop  # among those that TPE proposes: the first ten are drawn at random
    with pytest.raises(SystemExit) as e:
        tune.run(values(home), tmp_path / "cut", 14, [])
    assert e.value.code == 75
    interrupted = cut.asked[-1]
    some = json.loads((tmp_path / "cut" / "tune.json").read_text())
    assert 10 < len(some["trials"]) < 14 and some["best"] is None
    again = Runs(monkeypatch, near)
    found = tune.run(values(home), tmp_path / "cut", 14, [])
    assert again.asked[0].optim.lr == interrupted.optim.lr and again.asked[0].freeze in (
        interrupted.freeze,
        f"{interrupted.freeze}&top-1",
    )
    assert shape(found) == shape(whole)

    # More trials go on from there; as many as there are do nothing, and do not look at test again.
    monkeypatch.setattr(tune, "_test", lambda config, folder: pytest.fail("test was evaluated twice"))
    again.asked.clear()
    assert tune.run(values(home), tmp_path / "cut", 14, [])["best"] == found["best"] and not again.asked
    monkeypatch.setattr(tune, "_test", lambda config, folder: {"accuracy": 0.5})
    assert len(tune.run(values(home), tmp_path / "cut", 15, [])["trials"]) == 15


def test_what_is_tried_is_said_before_it_runs(home, tmp_path, monkeypatch, capsys):
    runs = Runs(monkeypatch, near)
    first = []
    runs.say = lambda config: first.append(capsys.readouterr().out) or near(config)
    found = tune.run(values(home, ["full", "head", "bitfit"]), tmp_path / "t", 1, [])
    (trial,) = found["trials"]
    less = {"full": "as full&top-1", "head": "for 2 steps", "bitfit": "as bitfit&top-1"}[trial["freeze"]]
    assert (
        first[0] == f"trial 1/1 {trial['freeze']}, lr {trial['lr']:g}: tried {less}\n" and trial["trial"] == 1
    )
    rest = [name for name in ("full", "head", "bitfit") if name != trial["freeze"]]
    assert found["untried"] == rest and f"tried in no trial: {', '.join(rest)}" in tune.table(found)


def test_a_signal_between_trials_stops_it(home, tmp_path, monkeypatch, capsys):
    runs = Runs(monkeypatch, near)

    def say(config):
        if len(runs.asked) == 2:
            flow.sigterm()
        return near(config)

    runs.say = say
    with pytest.raises(SystemExit) as e:
        tune.run(values(home), tmp_path / "t", 8, [])
    assert (
        e.value.code == 75
        and len(runs.asked) == 2
        and "the same command goes on from here" in capsys.readouterr().out
    )


def test_a_run_that_is_stopped_goes_on_from_its_checkpoint(home, tmp_path, monkeypatch, capsys):
    page = flow.page(tmp_path / "page.py", values(home, ["head"], train_for="12 steps"))
    command = ("tune", "--config", page, "--workdir", tmp_path / "t", "--trials", 1)
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        flow.at_batch(m, 2, flow.sigterm)
        flow.ptft(*command)
    assert e.value.code == 75 and "saved step 2" in capsys.readouterr().out
    assert flow.ptft(*command) == 0
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    assert [r["state"] for r in json.loads((tmp_path / "t" / "tune.json").read_text())["trials"]] == [
        "complete"
    ]


MISTAKES = {
    "no dev": ({"data.dev": ""}, {}, r"judged on dev; expected data\.dev='KIND:WHERE'"),
    "no such strategy": ({}, {"strategies": ["tpo-1"]}, "'tpo-1' is no strategy; did you mean 'top-K'"),
    "no strategies": ({}, {"strategies": []}, "expected strategies"),
    "a range upside down": ({}, {"lr": [2, 1]}, r"tune\.lr: expected \[LOW, HIGH\]"),
    "a range without an end": ({}, {"lr": [0.1, float("inf")]}, r"tune\.lr: expected \[LOW, HIGH\]"),
    "a factor that is no number": ({}, {"strategies": [{"freeze": "head", "lr": "x"}]}, "a factor above 0"),
    "a strategy twice": (
        {},
        {"strategies": ["head", {"freeze": "head", "lr": 3}]},
        "is there twice; expected each once",
    ),
    "an unknown key": ({}, {"lrs": [1, 2]}, r"unknown key tune\.lrs; did you mean 'lr'"),
    "an unknown key of a strategy": ({}, {"strategies": [{"freeze": "head", "lrs": 3}]}, "a factor above 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_before_anything_runs(home, tmp_path, case):
    changes, section, message = MISTAKES[case]
    with pytest.raises(UserError, match=message):
        tune.run({**values(home, **changes), "tune": section}, tmp_path / "t", 2, [])
    assert not (tmp_path / "t").exists()


def test_a_test_split_that_is_dev_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="test rows 10 stand in dev, too"):
        tune.run(values(home, **{"data.test": f"files:{home}/dev.tsv"}), tmp_path, 1, [])


def test_a_page_for_bench_is_refused_before_anything_runs(home, tmp_path, capsys):
    page = flow.page(
        tmp_path / "page.py", {**values(home), "bench": {"strategies": [{"name": "full", "freeze": "full"}]}}
    )
    assert flow.ptft("tune", "--config", page, "--workdir", tmp_path / "t") == 2
    assert (
        "is a page for ptft bench; expected one for ptft train" in capsys.readouterr().err
        and not (tmp_path / "t").exists()
    )


def test_another_config_needs_another_folder(home, tmp_path, monkeypatch):
    Runs(monkeypatch, near)
    tune.run(values(home), tmp_path / "t", 1, [])
    with pytest.raises(UserError, match=r"a search of another config(.|\n)*batch: 8 -> 4"):
        tune.run(values(home, batch=4), tmp_path / "t", 1, [])


def test_other_data_under_the_same_path_need_another_folder(home, tmp_path, monkeypatch):
    Runs(monkeypatch, near)
    given = values(home)
    given["data"]["dev"] = f"files:{flow.table(tmp_path / 'dev.tsv', 10, 1)}"
    tune.run(given, tmp_path, 1, [])
    before = (tmp_path / "tune.json").read_text()
    flow.table(tmp_path / "dev.tsv", 10, 2)
    identity._sources.cache_clear()  # as a new process
    with pytest.raises(
        UserError, match=r"other files, though their paths are the same: data.dev; .*another --workdir"
    ):
        tune.run(given, tmp_path, 2, [])
    assert (tmp_path / "tune.json").read_text() == before


def test_two_searches_in_one_folder_are_refused(home, tmp_path, monkeypatch):
    Runs(monkeypatch, near)
    hold = (
        "import sys; from pathlib import Path; from ptft.bench import tune; from ptft.core import locks\n"
        "with locks.of(Path(sys.argv[1])) as held: print(held.take(tune.ALL), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "True\n"
        with pytest.raises(UserError, match="another process searches in"):
            tune.run(values(home), tmp_path, 1, [])
        assert not (tmp_path / "tune.json").exists()  # what the other writes is left alone
    assert len(tune.run(values(home), tmp_path, 1, [])["trials"]) == 1


def test_without_optuna_the_extra_is_named(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    page = flow.page(tmp_path / "page.py", values(home))
    assert flow.ptft("tune", "--config", page, "--workdir", tmp_path / "t") == 2
    said = (
        "ptft tune: optuna is not installed; in a clone run: .venv/bin/pip install -c "
        "launch/constraints.txt -e '.[tune]'; elsewhere: pip install 'ptft[tune]'\n"
    )
    assert capsys.readouterr().err == said
