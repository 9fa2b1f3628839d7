"""The command line: mistakes end with one clear message, exit code 2, and nothing written; and what the verbs
print."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flow
import pytest

from ptft import data
from ptft.cli import predict as predicting
from ptft.cli import using
from ptft.cli.main import main
from ptft.core import checkpoint, record, stored
from ptft.report import figures
from ptft.train import build, contract, dataset, evaluate, spec

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pretraining run `pre`, a finetuned `fine`, one of pairs `pairs`, and pages for all of them."""
    folder = tmp_path_factory.mktemp("home")
    flow.pretrained(folder)
    fine = flow.finetuning(folder, folder / "pre", **{"data.names": ["no", "yes"], "data.dev_size": 7})
    flow.run(fine, folder / "fine")
    flow.table(folder / "pairs.tsv", header="sentence\tother\tlabel")
    one = {
        "data.train": f"files:{folder}/pairs.tsv",
        "data.dev": "",
        "data.test": "",
        "data.text_b": "other",
        "train_for": "1 step",
    }
    flow.run(flow.finetuning(folder, folder / "pre", **one), folder / "pairs")
    flow.page(folder / "pre.py", flow.pretraining(folder))
    flow.page(folder / "fine.py", fine)
    return folder


def mistake(capsys, *args):
    """Runs a command that must fail as a user's mistake; its message."""
    capsys.readouterr()
    assert flow.ptft(*args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"ptft {args[0]}: ") and "Traceback" not in captured.err
    return captured.err.removeprefix(f"ptft {args[0]}: ").strip()


# ----------------------------------------------------------------------------------- mistakes in the config

CONFIG = {
    "an unknown key": (["batsh=8"], "unknown key batsh; did you mean 'batch'"),
    "a key without its section": (["lr=0.1"], "unknown key lr; did you mean 'optim.lr'?"),
    "a key of another section": (["model.bacth=1"], "unknown key model.bacth; did you mean"),
    "out of range": (["seed=-1"], "seed: -1 is out of range; expected 0 … 2147483647"),
    "of another type": (["batch=many"], "batch: expected a whole number, got 'many'"),
    "no choice": (["parallel=pmapp"], "parallel: 'pmapp' is not one of jit, pmap; did you mean 'pmap'?"),
    "no duration": (["train_for=3 epoks"], "train_for: expected a duration such as '500 steps', '3 epochs'"),
    "a share of nothing": (["train_for=10%"], "train_for: expected a duration such as"),
    "no step": (["train_for=0 steps"], "train_for: '0 steps' is no step at all"),
    "several at once": (["batsh=8", "seed=-1", "optim.lr=x", "warmup=ten"], (
        "the config has 4 problems:\n  seed: -1 "
        "is"
    )),
    "no such model": (["model.name=brt"], "model.name: there is no models/brt.py; did you mean 'bert'?"),
    "no such objective": (["objective.name=clasify"], (
        "objective.name: there is no objectives/clasify.py; did you mean "
        "'classify'?"
    )),
    "no such metric": (["best=acuracy"], (
        "best: 'acuracy' is no metric of this objective; did you mean "
        "'accuracy'"
    )),
    "early stop without a best": (["early_stop=2", "best=last"], "early_stop needs data.dev and a metric"),
    "another library's word": (["epochs=3", "learning_rate=1"], (
        "unknown key epochs; expected train_for\n  unknown key learning_rate; expected optim.lr"
    )),
    "no such strategy": (["freeze=tpo-1"], "'tpo-1' is no strategy; did you mean 'top-K'"),
    "too many blocks": (["freeze=top-3"], "freeze='top-3': the model has 1 blocks; expected top-1"),
    "a rule that matches nothing": (
        ["freeze=[('backbone/blok_0/.*','train'),('.*','freeze')]"],
        r"rule \('backbone/blok_0/.*', 'train'\) matches no parameter; did you mean 'backbone/block_0/",
    ),
    "a rule that never wins": (["freeze=[('.*','train'),('head/.*','freeze')]"], (
        r"never wins: rules above it claim all it "
        r"matches"
    )),
    "no rule for the rest": (["freeze=[('head/.*','train')]"], (
        "no rule claims backbone/.* end the list with a rule such "
        "as"
    )),
    "an unknown action": (["freeze=[('.*','thaw')]"], "thaw"),
    "nothing left to train": (["freeze=[('.*','freeze')]"], "leaves nothing to train"),
    "batch and devices": (["batch=6"], (
        "batch: 6 is not divisible by 4 devices; the nearest sizes are 4 and "
        "8"
    )),
    "batch and accumulation": (["accumulate=3"], (
        "batch: 8 is not divisible by 4 devices x 3 accumulation steps; the nearest sizes are "
        "12"
    )),
    "more devices than there are": (["devices=5"], r"devices: asked for 5, this machine has 4 \(cpu\)"),
    "rows longer than the model": (["objective.seq_len=64"], (
        "objective.seq_len: 64 tokens do not fit a model of 32 positions; .* "
        "32"
    )),
    "too many examples": (["data.train_size=21"], (
        "data.train_size: asked for 21 examples, files:.*train.tsv has "
        "20"
    )),
    "names for other labels": (["data.names=('a','b','c')"], (
        r"data.names: 3 names for 2 labels \('0', "
        r"'1'\)"
    )),
    "one name for two labels": (["data.names=('a','a')"], (
        "data.names has a name twice: 'a', 'a'; expected another for each "
        "label"
    )),
    "another model than the checkpoint's": (
        ["model.hidden=128"],
        r"path +have +want(.|\n)*backbone/embeddings/norm/bias +(float32)?\[64\] +(float32)?\[128\]",
    ),
    "a deeper model than the checkpoint's": (["model.layers=2"], (
        "backbone/block_1/attention/key/bias "
        "+missing"
    )),
    "init_from that does not exist": (["init_from={home}/prre"], (
        "prre is not the folder of a run: it does not exist; did you mean "
        "'pre'"
    )),
    "init_from that is no run": (["init_from={home}"], "is not the folder of a run: it has no config.json"),
    "another tokenizer": (["data.tokenizer={vocab}"], (
        r"txt \(10 entries\) is not the one that .*pre was trained with \(\d+ "
        r"entries\)"
    )),
    "a missing file": (["data.train=files:{home}/trian.tsv"], (
        "no file matches .*trian.tsv; in .* did you mean "
        "'train.tsv'"
    )),
    "no kind": (["data.train={home}/train.tsv"], (
        "there is no data/.*|expected KIND:WHERE with a KIND of corpus, files, "
        "tfds"
    )),
    "an unknown kind": (["data.train=file:{home}/train.tsv"], (
        "there is no data/file.py; did you mean "
        "'files'"
    )),
    "no training data": (["data.train="], "data.train is empty; expected KIND:WHERE"),
    "no such column": (["data.label=labels"], (
        "train.tsv has no column 'labels' .data.label.; it has 'sentence', "
        "'label'"
    )),
    "no label": (["data.label="], (
        r"classify needs at least two classes.*it is read as documents; set "
        r"data.label"
    )),
    "labels for documents": (["objective.name=mlm_nsp"], (
        "data.train: the objective reads 'sentences' of every record, these have "
        "text"
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG)
@pytest.mark.parametrize("check", [False, True], ids=["train", "check"])
def test_a_mistake_in_the_config(case, check, home, tmp_path, capsys):
    items, expected = CONFIG[case]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne\n")
    flags = [f"--config.{i.format(home=home, vocab=tmp_path / 'vocab.txt')}" for i in items]
    message = mistake(
        capsys,
        "train",
        "--config",
        home / "fine.py",
        "--workdir",
        tmp_path / "run",
        *flags,
        *["--check"] * check,
    )
    assert re.search(expected, message), message
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- mistakes in the data

DATA = {
    "empty": ("", r"data 'files:.*' is empty: 0 records"),
    "a header alone": ("sentence\tlabel\n", r"data 'files:.*' is empty: 0 records"),
    "one class": (
        "sentence\tlabel\n" + "a\t1\n" * 9,
        r"classify needs at least two classes; the training data has \['1'\]",
    ),
    "a row that is too short": (
        "sentence\tlabel\na\t1\nb\n",
        r"mine.tsv:3: expected 2 columns, got 1 .*on_bad_row='skip'",
    ),
    "other bytes": (b"sentence\tlabel\na\t1\n\xff\xfe\t0\n", r"mine.tsv:3: expected UTF-8, got other bytes"),
}


@pytest.mark.parametrize("case", DATA)
def test_a_mistake_in_the_data(case, home, tmp_path, capsys):
    content, expected = DATA[case]
    (tmp_path / "mine.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = [f"--config.data.train=files:{tmp_path}/mine.tsv", "--config.data.dev=", "--config.data.test="]
    message = mistake(capsys, "train", "--config", home / "fine.py", "--workdir", tmp_path / "run", *flags)
    assert re.search(expected, message), message
    assert not (tmp_path / "run").exists()


def test_a_dev_that_lacks_a_class_is_said(home, tmp_path, capsys):
    (tmp_path / "mine.tsv").write_text(
        "sentence\tlabel\n" + "alpha\t0\n" * 30 + "beta\t1\n" * 10 + "good\t2\n" * 10
    )
    args = [
        "train",
        "--config",
        home / "fine.py",
        "--check",
        f"--config.data.train=files:{tmp_path}/mine.tsv",
    ]
    more = [
        f"--config.data.dev=files:{tmp_path}/mine.tsv[80%:]",
        "--config.data.names=[]",
        f"--config.data.test=files:{tmp_path}/mine.tsv",
    ]
    assert flow.ptft(*args, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "WARNING: dev lacks 2 of the 3 labels, '0', '1': its scores say nothing of them; shuffle a sorted "
        "table" in said
    )
    assert "dev 10 records, 10 rows, 7 of them drawn" in said and "test lacks" not in said


def test_an_unknown_label_names_its_row(home, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na\t1\nb\t7\n")
    args = (
        "train",
        "--config",
        home / "fine.py",
        "--workdir",
        tmp_path / "run",
        f"--config.data.dev=files:{tmp_path}/dev.tsv",
    )
    assert re.search(r"dev.tsv:3: label '7' is unknown; expected one of '0', '1'", mistake(capsys, *args))


def test_broken_rows_may_be_skipped_and_are_counted(home, tmp_path, capsys):
    rows = (home / "train.tsv").read_text() + "alpha\nbeta\n"
    (tmp_path / "mine.tsv").write_text(rows)
    args = (
        "train",
        "--config",
        home / "fine.py",
        "--check",
        f"--config.data.train=files:{tmp_path}/mine.tsv",
    )
    assert "mine.tsv:22: expected 2 columns, got 1" in mistake(capsys, *args)
    assert flow.ptft(*args, "--config.data.on_bad_row=skip") == 0
    assert re.search(r"train +20 records, 2 skipped rows", capsys.readouterr().out)


def test_empty_and_long_texts_are_kept_and_counted(home, tmp_path, capsys):
    (tmp_path / "mine.tsv").write_text(
        (home / "train.tsv").read_text() + "\t0\n  \t1\n" + "alpha " * 40 + "\t1\n"
    )
    args = (
        "train",
        "--config",
        home / "fine.py",
        "--check",
        f"--config.data.train=files:{tmp_path}/mine.tsv",
    )
    assert flow.ptft(*args) == 0
    said = capsys.readouterr().out
    assert re.search(r"train +23 records, 2 empty text, 1 truncated", said)
    assert "23 rows" in said
    config = spec.resolve(flow.finetuning(home, home / "pre", **{"data.train": f"files:{tmp_path}/mine.tsv"}))
    loaded = dataset.load_data(config)
    batch = loaded.train.batch(build.np.arange(20, 23))
    assert batch["length"].tolist() == [2, 2, 16]
    assert loaded.tokenizer.tokens(batch["tokens"][0, :2].tolist()) == ["[CLS]", "[SEP]"]
    assert loaded.tokenizer.tokens(batch["tokens"][2].tolist())[-1] == "[SEP]"


# ---------------------------------------------------------------------------------- mistakes in the command


def test_a_misspelt_flag(home, capsys):
    assert "unknown argument '--workdri'; did you mean '--workdir'" in mistake(
        capsys, "train", "--config", home / "fine.py", "--workdri", "x"
    )
    why = mistake(capsys, "train", "--config", home / "fine.py", "--freeze", "full")
    assert "unknown argument '--freeze'; it is a key of the config: --config.freeze=…" in why
    assert "unknown argument '--config.seed=1'" in mistake(
        capsys, "eval", "--workdir", home / "fine", "--config.seed=1"
    )
    assert "--config.KEY=VALUE" in mistake(capsys, "train", "--config", home / "fine.py", "--confg.seed=1")
    said = mistake(capsys, "eval", "--workdir", home / "fine", "--label_column", "x")
    assert "unknown argument '--label_column'; did you mean '--label-column'" in said


def test_an_unknown_verb_or_a_missing_argument_is_code_2(capsys):
    for argv in (["trian"], [], ["eval"]):
        with pytest.raises(SystemExit) as e:
            main(argv)
        assert e.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_missing_page_or_workdir(home, tmp_path, capsys):
    assert re.search(
        r"fin.py does not exist; did you mean '.*fine.py'",
        mistake(capsys, "train", "--config", home / "fin.py"),
    )
    assert "--workdir DIR is missing" in mistake(capsys, "train", "--config", home / "fine.py")


def test_a_workdir_that_is_a_file(home, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    said = mistake(capsys, "train", "--config", home / "fine.py", "--workdir", tmp_path / "file")
    assert re.search("--workdir .*file is a file; expected a folder", said)
    said = mistake(capsys, "train", "--config", home / "fine.py", "--workdir", tmp_path / "file" / "below")
    assert said.endswith("Not a directory") and str(tmp_path) in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_of_another_config(home, capsys):
    before = flow.listing(home / "fine")
    for flags in ([], ["--check"]):
        said = mistake(
            capsys,
            "train",
            "--config",
            home / "fine.py",
            "--workdir",
            home / "fine",
            "--config.optim.lr=0.5",
            *flags,
        )
        assert re.search(
            r"holds a run of another config; these keys differ .there -> asked.:\n  optim.lr: 0.001 -> "
            r"0.5\nchoose",
            said,
        )
    assert flow.listing(home / "fine") == before


def test_a_start_that_may_not_be_meant_is_pointed_out(home, tmp_path, capsys):
    def said(**changes):
        page = flow.page(tmp_path / "page.py", {**flow.finetuning(home, home / "pre", **changes)})
        assert flow.ptft("train", "--config", page, "--check") == 0
        return re.findall("WARNING: (.*)", capsys.readouterr().out)

    assert said() == []
    random = "nothing is loaded (init_from, init_weights): what is frozen keeps its random weights"
    assert (
        said(init_weights=False, freeze="head") == [random] and said(init_weights=False, freeze="full") == []
    )
    shutil.copytree(home / "pre", tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    assert said(init_from=f"{tmp_path}/stopped") == [f"{tmp_path}/stopped has not finished its training"]
    shutil.copytree(home / "pre", tmp_path / "frozen")
    run = spec.read_run(tmp_path / "frozen", "run.json")
    rows = [{**r, "rate": r["rate"] * ("/pooler/" not in r["name"])} for r in run["freeze"]]
    record.write_json(tmp_path / "frozen" / "run.json", stored.sealed({**run, "freeze": rows}))
    stays = (
        f"the head reads backbone/pooler, which {tmp_path}/frozen never trained and this run freezes: it "
        "stays random; "
    )
    assert said(init_from=f"{tmp_path}/frozen", freeze="head") == [
        f"{stays}train it, too, such as freeze='head+pooler'"
    ]
    assert said(init_from=f"{tmp_path}/frozen", freeze="head+pooler") == []
    (tmp_path / "zh.tsv").write_text("sentence\tlabel\n" + "我非常喜欢这本书\tpos\n不好\tneg\n" * 8)
    foreign = said(**{"data.train": f"files:{tmp_path}/zh.tsv", "data.dev": "", "data.test": ""})
    assert [line.partition(" to the tokenizer")[0] for line in foreign] == [
        "100% of the training tokens are unknown"
    ]
    train = flow.table(tmp_path / "slip.tsv", 60, 1)
    lines = train.read_text().splitlines()
    train.write_text("\n".join([*lines, lines[-1].rpartition("\t")[0] + "\tmaybe"]) + "\n")
    slip = "label 'maybe' has 1 of 61 training rows: a slip? data.labels says which labels there are"
    lacks = (
        "lacks 1 of the 3 labels, 'maybe': its scores say nothing of them; shuffle a sorted table before it "
        "is parted"
    )
    assert said(**{"data.train": f"files:{train}"}) == [slip, f"dev {lacks}", f"test {lacks}"]


@pytest.mark.parametrize(
    ("verb", "marker"),
    [("train", "bench.json"), ("train", "tune.json"), ("bench", "run.json"), ("tune", "bench.json")],
)
def test_a_workdir_of_another_verb(home, tmp_path, capsys, verb, marker):
    (tmp_path / marker).write_text("{}")
    said = mistake(capsys, verb, "--config", home / "fine.py", "--workdir", tmp_path)
    assert re.search(rf"{tmp_path} holds a .*, not a .*; choose another --workdir", said)
    assert [p.name for p in tmp_path.iterdir()] == [marker]


def test_damaged_files_of_a_run(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "fine", run)
    for name in ("config.json", "run.json"):
        whole = (run / name).read_text()
        (run / name).write_text(whole[: len(whole) // 2])
        assert re.search(
            f"run/{name} is damaged .*; restore it",
            mistake(capsys, "predict", "--workdir", run, "--text", "x"),
        )
        (run / name).write_text(whole)
    (run / "tokenizer" / "vocab.txt").write_text(
        "\n".join(reversed((run / "tokenizer" / "vocab.txt").read_text().split())) + "\n"
    )
    said = mistake(capsys, "predict", "--workdir", run, "--text", "x")
    assert re.search(r"run/tokenizer \(\d+ entries\) is not the one that .*run was trained with", said)
    said = mistake(capsys, "train", "--config", home / "fine.py", "--check", f"--config.init_from={run}")
    assert re.search(r"run/tokenizer \(\d+ entries\) is not the one", said)
    shutil.rmtree(run / "tokenizer")
    assert "there is no vocabulary at" in mistake(capsys, "predict", "--workdir", run, "--text", "x")


ABSURD = {
    "model.layers": 2_000_000,
    "model.hidden": 64_000_000,
    "model.heads": 2**40,
    "model.ffn": 2**40,
    "model.embedding": 2**40,
    "model.vocab": 2**40,
    "model.max_len": 2**40,
    "model.offset": 2**40,
    "model.types": 2**40,
    "objective.seq_len": 2**40,
    "freeze": "+".join(["head"] * 100_000),
}


@pytest.mark.parametrize("key", ABSURD)
def test_a_strangers_config_is_refused_before_anything_is_built(key, home, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(home / "fine", run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(flow.changed(config, {key: ABSURD[key]})))
    monkeypatch.setattr(build, "net", None)
    said = mistake(capsys, "predict", "--workdir", run, "--text", "x")
    assert f"{run}/config.json is damaged" in said and f"the config has a problem:\n  {key}: " in said
    assert len(said) < 500
    assert re.search("is out of range; expected .* … |of 499,999 characters; expected at most 10,000", said)


@pytest.mark.parametrize("verb", ["predict", "eval", "export"])
def test_more_layers_than_a_checkpoint_has_are_not_traced(verb, home, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(home / "fine", run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(flow.changed(config, {"model.layers": 900})))
    monkeypatch.setattr(build, "net", None)
    more = {"predict": ["--text", "x"], "eval": [], "export": ["--to", tmp_path / "out"]}[verb]
    said = mistake(capsys, verb, "--workdir", run, *more)
    assert re.search(r"model.layers is 900, and the checkpoint holds \d+ parameters; restore the file", said)


READERS = {
    "config.json": ("eval", "predict", "export", "report"),
    "run.json": ("eval", "predict", "export", "report"),
    "result.json": ("export", "report"),
    "freeze_ledger.json": ("report",),
    "manifests/best-3.json": ("predict",),
    "tokenizer/tokenizer.json": ("predict",),
    "tokenizer/tokenizer_config.json": ("predict",),
}


@pytest.mark.promise("R7")
@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_in_a_json_file_gives_no_traceback(home, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(figures, "png", lambda panels: b"")
    monkeypatch.setattr(figures, "svg", lambda panel: "")
    run = shutil.copytree(home / "fine", tmp_path / "run")
    verbs = {
        "eval": ("eval", "--workdir", run),
        "predict": ("predict", "--workdir", run, "--text", "alpha good", "--json"),
        "export": ("export", "--workdir", run, "--to", tmp_path / "out"),
        "report": ("report", run, "--to", tmp_path / "out"),
    }

    def do(verb):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code = flow.ptft(*verbs[verb])
        return code, capsys.readouterr(), flow.listing(tmp_path / "out")

    clean = {verb: do(verb) for verb in READERS[name]}
    for same_types in flow.flipped(run / name, 12):
        for verb in READERS[name]:
            code, said, made = do(verb)
            if code == 0 and not same_types:  # as of a step that is passed over for another
                assert (said.out, made) == (clean[verb][1].out, clean[verb][2]) or str(run / name) in said.err
            elif code:
                assert code == 2 and (same_types or str((run / name).parent) in said.err), said.err
                assert "Traceback" not in said.err


def test_a_flipped_bit_is_found(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "fine", run)
    weights = max((p for p in (run / "best").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    said = mistake(capsys, "predict", "--workdir", run, "--text", "x")
    assert weights.name in said and "remove that folder to take the last step instead" in said
    shutil.rmtree(run / "best")
    assert flow.ptft("predict", "--workdir", run, "--text", "x") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # results may be piped
    shutil.rmtree(run / "checkpoints")
    assert (
        flow.ptft("predict", "--workdir", run, "--text", "x") == 2
        and "no usable checkpoint in" in capsys.readouterr().err
    )


def test_a_folder_that_is_no_run(home, tmp_path, capsys):
    for verb in ("eval", "predict"):
        said = mistake(capsys, verb, "--workdir", home / "fin")
        assert re.search("fin is not the folder of a run: it does not exist; did you mean 'fine'", said)
    assert re.search("it has no config.json", mistake(capsys, "eval", "--workdir", tmp_path))


def test_a_bench_page_is_not_trained(tmp_path, capsys):
    page = flow.page(tmp_path / "page.py", {"bench": {"seeds": [0]}})
    assert "is a page for ptft bench" in mistake(
        capsys, "train", "--config", page, "--workdir", tmp_path / "run"
    )


def test_debug_shows_the_traceback(home):
    with pytest.raises(build.UserError):
        flow.ptft("train", "--debug", "--config", home / "nowhere.py")


def test_a_real_process_ends_with_code_2_and_one_message(home):
    done = subprocess.run(
        [sys.executable, "-m", "ptft", "train", "--config", home / "fine.py", "--workdir", home / "x",
        "--config.batsh=1"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "ptft train: the config has a problem:\n  unknown key batsh; did you mean 'batch' or "
        "'eval_batch' or 'data'?\n"
    )


# ------------------------------------------------------------------------------------------------ predict


@pytest.fixture
def predict(home, capsys):
    def call(*args, run="fine"):
        capsys.readouterr()
        assert flow.ptft("predict", "--workdir", home / run, *args) == 0
        return capsys.readouterr()

    return call


def test_predict_texts(predict):
    out = predict("--text", "good good", "--text", "bad bad").out.splitlines()
    assert [line.split("\t")[2] for line in out] == ["good good", "bad bad"]
    for label, p, _ in (line.split("\t") for line in out):
        assert label in ("no", "yes") and 0.5 <= float(p) <= 1


def test_predict_keeps_the_order_of_a_file_and_of_standard_input(predict, tmp_path, monkeypatch):
    texts = [f"alpha {'beta ' * (i % 5)}{i}" for i in range(300)]  # more than one chunk
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    rows = [json.loads(line) for line in predict("--file", tmp_path / "in.txt", "--json").out.splitlines()]
    assert [r["text"] for r in rows] == texts
    for r in rows:
        assert set(r["probabilities"]) == {"no", "yes"} and sum(r["probabilities"].values()) == pytest.approx(
            1, abs=1e-5
        )
        assert r["label"] == max(r["probabilities"], key=r["probabilities"].get)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in.txt").read_bytes())))
    assert [json.loads(line) for line in predict("--json").out.splitlines()] == rows
    one = json.loads(predict("--json", "--text", texts[7]).out)
    assert one["probabilities"]["yes"] == pytest.approx(rows[7]["probabilities"]["yes"], abs=1e-6)


def test_predict_takes_empty_and_long_lines(predict, tmp_path):
    (tmp_path / "in.txt").write_bytes(
        "\ufeffalpha\r\n\r\n".encode() + b"beta " * 5000 + "\r\n中文\n".encode()
    )
    found = predict("--file", tmp_path / "in.txt", "--json")
    assert [r["text"] for r in map(json.loads, found.out.splitlines())] == [
        "alpha",
        "",
        "beta " * 5000,
        "中文",
    ]
    assert found.err == "ptft predict: cut texts longer than 16 tokens: 1\n"


def test_predict_nothing(predict, tmp_path):
    (tmp_path / "in.txt").touch()
    assert predict("--file", tmp_path / "in.txt").out == ""


def test_predict_pairs(predict, home, capsys):
    assert predict("--text", "good\tbad", run="pairs").out.endswith("\tgood\tbad\n")
    said = mistake(capsys, "predict", "--workdir", home / "pairs", "--text", "good bad")
    assert said == "this run classifies pairs: expected two texts with a tab between them, got 'good bad'"


def test_predict_wrong_files(home, tmp_path, capsys):
    (tmp_path / "texts.txt").write_bytes(b"alpha\n\xff\xfe\n")
    said = mistake(capsys, "predict", "--workdir", home / "fine", "--file", tmp_path / "text.txt")
    assert re.search("--file .*text.txt is no file; did you mean 'texts.txt'", said)
    said = mistake(capsys, "predict", "--workdir", home / "fine", "--file", tmp_path / "texts.txt")
    assert said.endswith("texts.txt:2: expected UTF-8, got other bytes")
    assert "is no file" in mistake(capsys, "predict", "--workdir", home / "fine", "--file", tmp_path)


def test_predict_reads_and_writes_tables(predict, home, tmp_path):
    """By the run's own columns (here the usual name); what was there stays, beside what was predicted."""
    (tmp_path / "in.csv").write_text('id,sentence,label\n7,"good, good",0\n8,"bad\nbad",1\n')
    rows = [json.loads(line) for line in predict("--file", tmp_path / "in.csv", "--json").out.splitlines()]
    assert [r["text"] for r in rows] == ["good, good", "bad\nbad"] and len(
        predict("--file", tmp_path / "in.csv").out.splitlines()
    ) == 2
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"sentence": r["text"], "of": [1]}) + "\n" for r in rows)
    )
    assert [
        json.loads(line) for line in predict("--file", tmp_path / "in.jsonl", "--json").out.splitlines()
    ] == rows
    found = predict("--file", tmp_path / "in.csv", "--to", tmp_path / "new" / "out.csv")
    assert found.out == "" and found.err == f"ptft predict: {tmp_path}/new/out.csv: 2 rows\n"
    with (tmp_path / "new" / "out.csv").open(newline="") as f:
        table = list(csv.DictReader(f))
    assert [(r["id"], r["sentence"], r["label"]) for r in table] == [
        ("7", "good, good", "0"),
        ("8", "bad\nbad", "1"),
    ]
    for r, want in zip(table, rows, strict=True):
        assert (
            r["predicted_label"] == want["label"]
            and float(r["predicted_probabilities.yes"]) == want["probabilities"]["yes"]
        )
    predict("--file", tmp_path / "in.jsonl", "--to", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [
        {"sentence": r["text"], "of": [1], **{f"predicted_{k}": r[k] for k in ("label", "probabilities")}}
        for r in rows
    ]


def test_predict_stops_at_a_bad_row_and_leaves_no_table(home, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"sentence": "good"}\n{"sentence": null}\n')
    said = mistake(
        capsys,
        "predict",
        "--workdir",
        home / "fine",
        "--file",
        tmp_path / "in.jsonl",
        "--to",
        tmp_path / "out.csv",
    )
    assert said.endswith("in.jsonl:2: expected text in 'sentence', got 'None'")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("rows", "to", "expected"),
    [
        ("good\n", "in.csv", r"--to .*in.csv is --file itself, which would be overwritten"),
        ("good\n", "link/in.csv", r"--to .*link/in.csv is --file itself"),
        ("", "out.csv", r"in.csv has no rows; --to .*out.csv is not written"),
    ],
)
def test_predict_writes_no_table_over_its_input_and_none_that_is_empty(
    home, tmp_path, capsys, rows, to, expected
):
    (tmp_path / "in.csv").write_text(f"sentence\n{rows}")
    (tmp_path / "link").symlink_to(tmp_path)
    said = mistake(
        capsys, "predict", "--workdir", home / "fine", "--file", tmp_path / "in.csv", "--to", tmp_path / to
    )
    assert re.search(expected, said), said
    assert (tmp_path / "in.csv").read_text() == f"sentence\n{rows}" and not (tmp_path / "out.csv").exists()


def test_predict_fills_gaps(predict, home, capsys):
    pair, alone = map(
        json.loads,
        predict(
            "--text", "alpha [MASK]\tbeta [MASK] good", "--text", "[MASK]", "--json", run="pre"
        ).out.splitlines(),
    )
    assert pair["text_b"] == "beta [MASK] good" and 0 < pair["follows"] < 1 and "follows" not in alone
    assert [len(gap) for gap in pair["gaps"]] == [5, 5] and len(alone["gaps"]) == 1
    for gap in pair["gaps"]:
        shares = [w["probability"] for w in gap]
        assert (
            shares == sorted(shares, reverse=True)
            and 0 < sum(shares) < 1
            and len({w["word"] for w in gap}) == 5
        )
    best = pair["gaps"][1][0]
    line = predict("--text", "alpha [MASK]\tbeta [MASK] good", run="pre").out.rstrip("\n").split("\t")
    assert line[0] == f"follows {pair['follows']:.4f}" and line[2].startswith(
        f"{best['word']} {best['probability']:.4f} "
    )
    assert line[3:] == ["alpha [MASK]", "beta [MASK] good"]
    said = mistake(capsys, "predict", "--workdir", home / "pre", "--text", "alpha")
    assert said == (
        "--text: this run fills gaps: expected [MASK] in the text, or two texts with a tab between "
        "them; got 'alpha'"
    )


# -------------------------------------------------------------------------------- eval, plan, train --check


@pytest.mark.parametrize(("run", "split"), [("fine", "dev"), ("fine", "test"), ("pre", "dev")])
def test_eval_gives_the_numbers_of_the_run(run, split, home, capsys):
    capsys.readouterr()
    assert flow.ptft("eval", "--workdir", home / run, "--split", split) == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((home / run / "result.json").read_text())[split]
    assert {k: found[k] for k in result} == result
    assert found["rows"] == ({"dev": 7, "test": 11}[split] if run == "fine" else found["rows"])


def test_eval_on_other_data(home, capsys):
    capsys.readouterr()
    assert flow.ptft("eval", "--workdir", home / "fine", "--data", f"files:{home}/train.tsv") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20
    assert "the run has no data.test; give another --split, or a source with --data" in mistake(
        capsys, "eval", "--workdir", home / "pre"
    )
    said = mistake(capsys, "eval", "--workdir", home / "fine", "--data", f"files:{home}/docs.txt")
    assert "is plain text and has no column 'label'" in said
    (home / "broken.tsv").write_text("sentence\tlabel\na\t1\nb\n")
    said = mistake(capsys, "eval", "--workdir", home / "fine", "--data", f"files:{home}/broken.tsv")
    assert said.endswith("broken.tsv:3: expected 2 columns, got 1"), "eval has no data.on_bad_row"
    flow.table(home / "other.tsv", header="words\tlabel")
    assert (
        flow.ptft(
            "eval", "--workdir", home / "fine", "--data", f"files:{home}/other.tsv", "--text-column", "words"
        )
        == 0
    )


def test_eval_says_what_the_run_names_before_it_reads_it(home, tmp_path, capsys, monkeypatch):
    def opened(*args):
        assert f"test: 'files:{home}/test.tsv', as the run's config names it; --data ev" in err()
        raise build.UserError("no file matches it")

    def err():
        return capsys.readouterr().err

    err()
    monkeypatch.setattr(data, "load", opened)
    assert flow.ptft("eval", "--workdir", home / "fine") == 2
    more = "\nthe run's own data.test cannot be read here; name another source with --data\n"
    assert err() == "ptft eval: no file matches it" + more
    monkeypatch.undo()
    assert flow.ptft("eval", "--workdir", home / "fine", "--data", "files:nowhere.tsv") == 2
    said = err()
    assert "no file matches nowhere.tsv" in said and "run's" not in said


def test_eval_makes_no_batch_far_above_the_rows(home, tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(using, "MOST", 16)
    monkeypatch.setattr(evaluate, "evaluate", lambda net, params, split: made.append(split.batch) or {})
    loaded = _with_batch(predicting.load_run(home / "fine"))
    monkeypatch.setattr(predicting, "load_run", lambda workdir: loaded)
    for part, size in (("", 20), ("[:3]", 16)):
        where = f"files:{home}/train.tsv{part}"
        assert flow.ptft("eval", "--workdir", home / "fine", "--data", where) == 0
        assert made.pop() == size


def _with_batch(loaded):
    config, *rest = loaded
    return config.replace(eval_batch=10**12), *rest


def test_plan_prints_counts_and_cost(home, capsys):
    before = flow.listing(home)
    capsys.readouterr()
    assert (
        flow.ptft("plan", "--config", home / "fine.py", "--freeze", "head", "--freeze", "full", "--rules")
        == 0
    )
    said = capsys.readouterr().out
    counts = re.findall(r"trainable ([\d,]+) of ([\d,]+) parameters", said)
    assert counts[0][0] == "130" and counts[1][0] == counts[1][1] == counts[0][1]
    verdicts = re.findall(r"^  (\S+/\S+) +[\d,]+ +(freeze|train) ", said, re.MULTILINE)
    names = sum(name == "backbone/block_0/attention/query/bias" for name, _ in verdicts)
    assert names == 2 and {v for n, v in verdicts if n.startswith("head/")} == {"train"}
    head, full = (line.split() for line in said.splitlines()[-2:])
    assert head[:2] == ["head", "130"] and full[:3] == ["full", counts[0][1], "100.00%"]
    assert float(head[4]) < 0.6 and float(full[4]) == 1 and flow.listing(home) == before


def test_plan_knows_strategies(home, capsys):
    assert "is no strategy; did you mean" in mistake(
        capsys, "plan", "--config", home / "fine.py", "--freeze", "heed"
    )


def test_check_trains_and_writes_nothing(home, tmp_path, capsys, monkeypatch):
    before = flow.listing(home)
    monkeypatch.chdir(tmp_path)
    assert flow.ptft("train", "--config", home / "fine.py", "--workdir", "run", "--check") == 0
    said = capsys.readouterr().out
    for part in (
        "20 records",
        "trainable ",
        "a step costs",
        "8 steps of 8 examples",
        "new: head/classifier/bias",
        "nothing was trained",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == [] and flow.listing(home) == before


def test_check_holds_the_step_to_its_plan(home, capsys, monkeypatch):
    monkeypatch.setattr(contract, "problem", lambda *args: "it costs too much")
    assert flow.ptft("train", "--config", home / "fine.py", "--check") == 0
    assert "it costs too much" in capsys.readouterr().out
    assert "it costs too much" in mistake(
        capsys, "train", "--config", home / "fine.py", "--check", "--config.strict_cost=True"
    )


def test_train_prints_the_result(home, capsys):
    assert flow.ptft("train", "--config", home / "fine.py", "--workdir", home / "fine") == 0
    said = capsys.readouterr().out
    result = json.loads((home / "fine" / "result.json").read_text())
    assert f"test: loss {result['test']['loss']:.4f}, accuracy {result['test']['accuracy']:.4f}" in said
    assert f"these are of step {result['best_step']}, the best by accuracy, of 8 in " in said


def test_the_run_can_be_loaded_without_its_page(home, tmp_path):
    """eval and predict read the folder alone: moved, and with its data and pages gone, it still predicts."""
    shutil.copytree(home / "fine", tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    config["init_from"] = str(tmp_path / "gone")
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    assert flow.ptft("predict", "--workdir", tmp_path / "moved", "--text", "good") == 0
    assert checkpoint.newest(tmp_path / "moved") == 8


def test_plan_takes_a_list_of_rules(home, capsys):
    rules = "[['head/.*', 'train'], ['.*', 'freeze']]"
    assert flow.ptft("plan", "--config", home / "fine.py", "--freeze", rules) == 0
    assert "head/classifier" in capsys.readouterr().out


def test_predict_text_and_file_are_one_too_many(home, capsys):
    assert "expected one of them" in mistake(
        capsys, "predict", "--workdir", home / "fine", "--text", "good", "--file", "there.txt"
    )
