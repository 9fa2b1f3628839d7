import copy
import functools
import json
import math
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft.core import config, duration, pages
from ptft.core.config import Config, Field
from ptft.core.errors import UserError
from ptft.train import spec

SPEC = {
    "lr": Field(1e-3, float, lo=0, hi=1),
    "batch": Field(32, int, lo=1),
    "size": Field("mini", str, choices=("tiny", "mini")),
    "flag": Field(False, bool),
    "rules": Field((), tuple),
    "train_for": Field("3 epochs", (str, int), check=duration.check),
    "optim": {"clip": Field(1.0, float, lo=0), "name": Field("adamw", str)},
    "model": lambda section: {
        "name": Field("bert", str),
        **({"cell": Field(1, int)} if section.get("name") == "lstm" else {}),
    },
}


def problems(values):
    with pytest.raises(UserError) as e:
        config.resolve(values, SPEC)
    return str(e.value)


# ------------------------------------------------------------------------------------------------ resolve


def test_defaults_are_filled_in():
    c = config.resolve({"lr": 0.5, "optim": {}}, SPEC)
    assert (c.lr, c.batch, c.optim.clip, c.model.name) == (0.5, 32, 1.0, "bert")


def test_all_problems_are_told_at_once():
    said = problems(
        {
            "batsh": 3,
            "lr": 2.0,
            "size": "huge",
            "optim": {"clip": -1, "klip": 1},
            "flag": 1,
            "train_for": "3 epoks",
        }
    )
    assert said.splitlines()[0] == "the config has 7 problems:"
    for part in (
        "lr: 2.0 is out of range; expected 0 … 1",
        "size: 'huge' is not one of tiny, mini",
        "flag: expected True or False, got 1",
        "train_for: expected a duration such as '500 steps', '3 epochs' or '20000 examples', got '3 epoks'",
        "optim.clip: -1 is out of range; expected >= 0",
        "unknown key batsh; did you mean 'batch'?",
        "unknown key optim.klip; did you mean 'clip'?",
    ):
        assert f"\n  {part}" in said


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"lr": "fast"}, "lr: expected a number, got 'fast'"),
        ({"lr": math.inf}, "lr: inf is out of range"),
        ({"lr": math.nan}, "lr: nan is out of range"),
        ({"lr": True}, "lr: expected a number, got True"),
        ({"batch": 3.0}, "batch: expected a whole number, got 3.0"),
        ({"batch": 0}, "batch: 0 is out of range; expected >= 1"),
        ({"rules": "full"}, "rules: expected a list, got 'full'"),
        ({"optim": 3}, "optim: expected a section of keys, got 3"),
        ({"model": "bert"}, "model: expected a section of keys, got 'bert'"),
        ({"model": {"name": 3}}, "model.name: expected text, got 3"),
        ({"model": {"cell": 3}}, "unknown key model.cell; there is: name"),
        ({"clip": 3}, "unknown key clip; did you mean 'optim.clip'?"),
        ({"zzz": 3}, "unknown key zzz; there is: batch"),
    ],
)
def test_one_problem(values, part):
    assert problems(values).startswith("the config has a problem:\n  " + part)


def test_a_section_may_choose_its_spec():
    assert config.resolve({"model": {"name": "lstm", "cell": 3}}, SPEC).model.cell == 3


def test_a_missing_plug_in_is_one_of_the_problems():
    with pytest.raises(
        UserError,
        match=r"2 problems(.|\n)*seed: -1(.|\n)*model.name: there is no models/brt.py; did you mean 'bert'",
    ):
        spec.resolve({"model": {"name": "brt"}, "seed": -1})


def test_what_is_right_is_accepted():
    c = config.resolve({"lr": 1, "flag": True, "rules": [("a", "train")], "train_for": 100}, SPEC)
    assert c.lr == 1 and c.flag is True and c.rules == (("a", "train"),) and c.train_for == 100


# ------------------------------------------------------------------------------------------------ reading


def test_an_absent_key_is_an_error():
    c = config.resolve({}, SPEC)
    with pytest.raises(AttributeError, match=r"config has no key optim\.momentum"):
        _ = c.optim.momentum
    assert c.optim.get("momentum", 7) == 7


def test_replace_leaves_the_original():
    c = config.resolve({}, SPEC)
    d = c.replace(**{"optim.clip": 5.0, "batch": 8})
    assert (d.optim.clip, d.batch, c.optim.clip, c.batch) == (5.0, 8, 1.0, 32)


# ------------------------------------------------------------------------------------------------ identity


def test_json_round_trip():
    c = config.resolve({"rules": (("a.*", "train"), ("b", "freeze")), "size": "tiny"}, SPEC)
    back = json.loads(config.to_json(c))
    assert back == c.to_dict()
    assert config.difference(back, config.resolve(back, SPEC).to_dict()) == []
    assert config.digest(back) == config.digest(c) == config.digest(config.resolve(back, SPEC))


def test_free_keys_do_not_count():
    base = spec.resolve({}).to_dict()
    for key, value in {
        "log_every": "7 steps",
        "save_every": "9",
        "keep": 5,
        "tensorboard": True,
        "devices": 2,
        "parallel": "pmap",
        "shard": "all",
        "shard_over": 2,
        "strict_cost": True,
    }.items():
        assert key in config.FREE
        other = {**base, key: value}
        assert config.digest(other) == config.digest(base) and config.difference(base, other) == []
    assert len(config.FREE) == 10


@pytest.mark.parametrize("key", ["seed", "optim.lr", "data.train", "model.dropout", "freeze"])
def test_every_other_key_counts(key):
    base = spec.resolve({})
    other = base.replace(**{key: 1})
    assert config.digest(other) != config.digest(base)
    (line,) = config.difference(base.to_dict(), other.to_dict())
    assert line.startswith(f"{key}: ") and line.endswith("-> 1")


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert config.digest({"a": 1, "b": {"c": 2, "d": 3}}) == config.digest({"b": {"d": 3, "c": 2}, "a": 1})


# ------------------------------------------------------------------------------------------------ durations


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500", 500), (500, 500), ("500 steps", 500), ("1 step", 1), ("3 epochs", 19), ("0.5 epoch", 4),
    ("100 examples", 7),
     ("10%", 8), ("0", 0), (" 2  epochs ", 13), ("12.5%", 10)],
)  # fmt: skip
def test_durations(text, expected):
    assert duration.steps("warmup", text, batch=16, examples=100, total=80) == expected


@pytest.mark.parametrize(
    "text", ["3 epoks", "-3", "", "1.5 steps", "1.5", "three", "3 epochs 2", "1e3", "101%"]
)
def test_what_is_no_duration(text):
    with pytest.raises(UserError, match="warmup: "):
        duration.steps("warmup", text, batch=16, examples=100, total=80)


def test_a_share_needs_a_whole():
    with pytest.raises(UserError, match=r"train_for: expected a duration such as .*, got '10%'"):
        duration.steps("train_for", "10%", batch=16, examples=100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10 minutes", 600), ("1 minute", 60), (" 0.5 minutes", 30), ("2 hours", 7200), ("0 minutes", 0)]
    + [(text, 0) for text in ("10", "10 steps", "3 epochs", "10%", "10 minuets")],
)
def test_times(text, expected):
    assert duration.seconds(text) == expected


@pytest.mark.parametrize("key", ["train_for", "warmup", "eval_every", "log_every"])
def test_only_checkpoints_go_by_the_clock(key):
    assert spec.resolve({"save_every": "10 minutes"}).save_every == "10 minutes"
    for name, text in ((key, "10 minutes"), ("save_every", "0 minutes")):
        with pytest.raises(UserError, match=rf"{name}: expected a duration such as .*, got '{text}'"):
            spec.resolve({name: text})


@given(st.integers(1, 50), st.integers(1, 500), st.integers(1, 64))
def test_an_epoch_covers_every_example(epochs, examples, batch):
    n = duration.steps("train_for", f"{epochs} epochs", batch=batch, examples=examples)
    assert (n - 1) * batch < epochs * examples <= n * batch


# ---------------------------------------------------------------------------------- arguments and overrides


def test_arguments():
    a = pages.parse_arg("mini,seq_len=64,lr=1,flag=true", size="tiny", seq_len=128, lr=0.5, flag=False)
    assert (a.size, a.seq_len, a.lr, a.flag) == ("mini", 64, 1, True)
    assert pages.parse_arg("", size="tiny").size == "tiny"
    assert pages.parse_arg("init=runs/a=b", size="", init="").init == "runs/a=b"


@pytest.mark.parametrize(
    ("arg", "part"),
    [
        ("sice=mini", "no 'sice'; did you mean 'size'?"),
        ("seq_len=long", "config argument seq_len: expected a whole number, got 'long'"),
        ("mini,64", "config argument '64': no '64'"),
    ],
)
def test_wrong_arguments(arg, part):
    with pytest.raises(UserError) as e:
        pages.parse_arg(arg, size="tiny", seq_len=128)
    assert part in str(e.value)


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("lr=1e-3", "lr", 1e-3),
        ("batch=8", "batch", 8),
        ("flag=false", "flag", False),
        ("flag=True", "flag", True),
        ("train_for=100", "train_for", "100"),  # a text key stays text
        ("optim.name=sgd", "optim.name", "sgd"),
        ("new.key=x y", "new.key", "x y"),
        ("train_for=[('.*','train')]", "train_for", [(".*", "train")]),  # a list may stand in for a name
        ("path=a=b", "path", "a=b"),
    ],
)
def test_overrides(item, key, value):
    values = {"lr": 1.0, "batch": 1, "flag": True, "train_for": "3 epochs", "optim": {"name": "adamw"}}
    pages.override(values, [item])
    got = config.leaves(values)[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text", ["0", "1e3", "None", "none", "True", "no", "[1]", "('a',)", "{}", "0x1", "1_000"]
)
@pytest.mark.parametrize("page", [{}, {"text": ""}, {"text": "sentence"}])
def test_a_key_of_text_takes_what_looks_like_something_else(page, text):
    values = {"data": dict(page)}
    pages.override(values, [f"data.text={text}", "data.labels=['a', 1]", "batch=8"], spec.SPEC)
    assert values == {"data": {"text": text, "labels": ["a", 1]}, "batch": 8}


def test_the_dev_and_test_of_a_page_go_with_its_train(capsys):
    def splits(*items):
        values = {
            "data": {"train": "corpus:documents@train", "dev": "corpus:documents@dev", "test": "tfds:x@test"}
        }
        pages.override(values, list(items))
        return values["data"]["dev"], values["data"]["test"]

    own = ("corpus:documents@dev", "tfds:x@test")
    assert (
        splits()
        == splits("batch=3")
        == splits("data.train=corpus:documents@train[:500]")
        == splits("data.train=")
        == own
    )
    assert not capsys.readouterr().out
    assert splits("data.train=files:zh.txt") == ("", "")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "data.dev: left out, as corpus:documents@dev is of the page's own data, not of files:zh.txt; the "
        "last step counts" in said
    )
    assert "data.test: left out" in said
    assert splits("data.dev=files:d.txt", "data.train=files:zh.txt") == ("files:d.txt", "")
    assert splits("data.train=files:zh.txt", "data.dev=corpus:documents@dev", "data.test=") == (own[0], ""), (
        "asked for"
    )


@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("lr", "--config.lr: expected --config.KEY=VALUE"),
        ("lr.x=1", "--config.lr.x: 'lr' is a value, not a section"),
    ],
)
def test_wrong_overrides(item, part):
    with pytest.raises(UserError) as e:
        pages.override({"lr": 1.0}, [item])
    assert part in str(e.value)


# ------------------------------------------------------------------------------------------------ pages


def test_a_missing_page_shows_those_beside_it(tmp_path):
    (tmp_path / "pretrain.py").touch()
    with pytest.raises(UserError, match=r"finetune.py does not exist; did you mean 'configs/finetune.py'"):
        pages.load("finetune.py")
    with pytest.raises(UserError, match=r"pretrian.py does not exist; did you mean '.*pretrain\.py'"):
        pages.load(f"{tmp_path}/pretrian.py:size=tiny")


def test_a_page_without_get_config(tmp_path):
    (tmp_path / "page.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"page.py has no get_config\(\)"):
        pages.load(f"{tmp_path}/page.py")


def test_a_page_forked_from_an_older_one_is_told_to_compare_its_imports(tmp_path):
    page = tmp_path / "page.py"
    page.write_text("from ptft.core.config import parse_arg\n\n\ndef get_config(arg=''):\n    return {}\n")
    with pytest.raises(UserError, match=r"page.py: cannot import name 'parse_arg'.*; compare its imports"):
        pages.load(str(page))


def test_a_page_that_is_not_python(tmp_path):
    (tmp_path / "page.json").write_text("{}")
    with pytest.raises(UserError, match=r"page\.json is not a Python file"):
        pages.load(f"{tmp_path}/page.json")


def test_a_page_gets_its_argument(tmp_path):
    (tmp_path / "page.py").write_text("def get_config(arg):\n    return {'arg': arg}\n")
    assert pages.load(f"{tmp_path}/page.py:a=1,b=2") == {"arg": "a=1,b=2"}
    assert pages.load(f"{tmp_path}/page.py") == {"arg": ""}


def test_a_page_that_changes_within_a_second_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    page = tmp_path / "page.py"
    for batch in (4, 8):
        page.write_text(f"def get_config(arg): return {{'batch': {batch}}}")
        os.utime(page, (1, 1))
        assert pages.load(str(page)) == {"batch": batch}


def test_a_config_is_read_only():
    c = Config({"a": 1, "b": {"c": [1, [2, {"d": []}]]}})
    with pytest.raises(TypeError):
        c["a"] = 2  # type: ignore[index]
    with pytest.raises(
        AttributeError, match=r"a config never changes; b\.c: take config\.replace\(\*\*\{'b\.c': …\}\)"
    ):
        c.b.c = 2
    with pytest.raises(AttributeError, match="a config never changes; a stays"):
        del c.a
    assert c.b.c[:1] == (1,) and c.b.c[1][1].d == ()
    assert c.to_dict() == {"a": 1, "b": {"c": [1, [2, {"d": []}]]}}, "as JSON has it"


def test_a_config_is_a_value():
    def made(**values):
        return Config({"a": 1, "b": {"c": [1, {"d": "x"}]}, **values})

    known = functools.lru_cache(lambda config, asked=[]: asked.append(config) or len(asked))
    again = [made().replace(a=2).replace(a=1), copy.deepcopy(made()), pickle.loads(pickle.dumps(made()))]
    assert {known(config) for config in (made(), *again)} == {1}
    others = [
        made(a=1.0),
        made(a=True),
        made(a="1"),
        made(e=0),
        made().without("a"),
        made(b={"c": [{"d": "x"}, 1]}),
    ]
    assert len({made(), *others}) == 7, "what JSON writes in another way is another config"
    assert made().b.without("c") == Config({}) and made().b == Config({"c": [1, {"d": "x"}]})


def test_a_comma_inside_a_strategy_separates_no_arguments():
    arg = pages.parse_arg("task=sst2,freeze=layers=0,2,5-7,epochs=4", task="", freeze="full", epochs=3)
    assert (arg.task, arg.freeze, arg.epochs) == ("sst2", "layers=0,2,5-7", 4)
    assert pages.parse_arg("freeze=bitfit=query,up", freeze="full").freeze == "bitfit=query,up"
    with pytest.raises(UserError, match="no 'tiny'"):
        pages.parse_arg("freeze=head,tiny", freeze="full", size="mini")


def test_commas_inside_of_phases_separate_no_arguments():
    arg = pages.parse_arg("freeze=head; plateau=2: layers=0,2,task=b", freeze="", task="a")
    assert (arg.freeze, arg.task) == ("head; plateau=2: layers=0,2", "b")


def test_an_argument_may_hold_a_strategy_with_options():
    given = pages.parse_arg(
        "task=sst2,freeze=lora=8,attention,ffn,alpha=16,dora,init=there", task="", init="", freeze="full"
    )
    assert given.to_dict() == {
        "task": "sst2",
        "init": "there",
        "freeze": "lora=8,attention,ffn,alpha=16,dora",
    }
    with pytest.raises(UserError, match="no 'taks'"):
        pages.parse_arg("task=sst2,taks=x", task="", freeze="full")


def test_old_names_are_read_in_old_files():
    stored = {
        "cache_prefix": "off",
        "bench": {"strategies": [{"freeze": "auto(budget=0.5 flops, signal=snr)"}]},
        "text": "begun",
    }
    new = {
        "cache_features": "off",
        "bench": {"strategies": [{"freeze": "auto(budget=0.5 flops, score=snr)"}]},
        "text": "begun",
    }
    assert config.renamed(stored) == new == config.renamed(new)
    # a class that a user calls by an old name of another file's key is left alone
    mine = {"labels": {"signal": 1, "begun": 2, "cache_features": 3}}
    assert config.renamed(mine) == mine
    assert config.renamed({"signal": "snr", "begun": 1}, "auto") == {"score": "snr", "begun": 1}
