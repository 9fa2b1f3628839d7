"""Every shipped page, shrunk, trains one step, and every key of it is read."""

import contextlib
import json
import sys
from pathlib import Path

import flow
import pyarrow
import pyarrow.parquet
import pytest

from ptft.bench import cell as work
from ptft.bench import identity, protocol, runner, running, search_space, section
from ptft.bench.cell_result import CellResult
from ptft.core import config as configs
from ptft.core import pages
from ptft.core.config import Config
from ptft.core.errors import UserError
from ptft.data import tasks
from ptft.train import build, dataset, spec, train

PAGES = Path(__file__).parents[1] / "configs"
SMALL = {"layers": 1, "hidden": 64, "max_len": 32}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pretraining run in `pre`, and below `data` every task's files as its authors lay them out."""
    folder = tmp_path_factory.mktemp("home")
    flow.pretrained(folder)
    data = folder / "data"
    for name in ("cola/raw", "sst2_glue", "mrpc", "rte", "chnsenticorp", "simplewiki/AA", "zhwiki/AA"):
        (data / name).mkdir(parents=True)
    texts = [line.split("\t")[0] for line in flow.table(folder / "t.tsv", 12).read_text().splitlines()[1:]]
    rows = [(text, i % 2) for i, text in enumerate(texts)]

    def write(path, header, line):
        (data / path).write_text(
            "".join(f"{x}\n" for x in [*header, *(line(text, label) for text, label in rows)]),
            encoding="utf-8",
        )

    for split in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        write(f"cola/raw/{split}.tsv", [], lambda text, label: f"gj04\t{label}\t\t{text}")
    for split in ("train", "dev", "test"):
        write(f"sst2_glue/{split}.tsv", ["sentence\tlabel"], lambda text, label: f"{text}\t{label}")
        write(f"chnsenticorp/{split}.tsv", ["label\ttext_a"], lambda text, label: f"{label}\t很好 {text}")
    for split in ("train", "test"):
        header = ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        write(
            f"mrpc/msr_paraphrase_{split}.txt",
            header,
            lambda text, label: f'{label}\t1\t2\t{text}\tand "{text}',
        )
    columns = {"sentence1": texts, "sentence2": texts, "label": [label for _, label in rows]}
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.table(columns), data / f"rte/{split}-00000-of-00001.parquet")
    for split in ("train", "val", "test"):
        for i, (text, label) in enumerate(rows):
            file = data / "aclImdb" / split / ("neg", "pos")[label] / f"{i}_7.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for name, dev in (("simplewiki", "99"), ("zhwiki", "39")):
        for number in ("00", dev):
            page = {"id": "1", "url": "x", "title": "T", "text": "\n".join(text + "." for text in texts)}
            (data / name / "AA" / f"wiki_{number}").write_text(
                "".join(json.dumps({**page, "id": str(i)}) + "\n" for i in range(8))
            )
    return folder


def load(page, arg=""):
    return pages.load(f"{PAGES / page}.py:{arg}")


def classes(config):
    """The data are a folder a class, and have no columns."""
    return "/aclImdb" in config.data.train


def plain(config):
    """The data are no table."""
    return classes(config) or not config.data.label


# Keys that say nothing to some runs, and to which. A page of the other kind shows that they are read.
IDLE = {
    "init_weights": lambda config: not config.init_from,
    "data.vocab_size": lambda config: config.init_from,
    "data.lowercase": lambda config: config.init_from,
    "data.text": plain,
    "data.text_b": classes,
    "data.label": classes,
    "data.header": lambda config: plain(config) or ".parquet" in config.data.train,
}


@contextlib.contextmanager
def recorded():
    """The dotted names of the keys that are asked for by name. To go through a section is not to read it."""
    read = set()

    def get(config, key):
        if not isinstance(value := config._values[key], Config):
            read.add(config._prefix + key)
        return value

    for name, module in list(sys.modules.items()):  # what a cache knows, was read before
        for function in vars(module).values() if name.startswith("ptft.") else ():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "__getitem__", get)
        patch.setattr(Config, "values", lambda config: config._values.values())
        patch.setattr(Config, "items", lambda config: config._values.items())
        yield read


def trained(config, workdir):
    """Trains one step; no key of the config may be left unread."""
    with recorded() as read:
        result = train.run(config, workdir, quiet=True)
    unread = {key for key in configs.leaves(config.to_dict()) if key not in read}
    assert result["steps"] == 1 and not [key for key in unread if key not in IDLE or not IDLE[key](config)]
    return result


def one_step(values, workdir, **changes):
    return trained(
        spec.resolve(flow.changed(values, {"train_for": "1 step", "batch": 4, "eval_batch": 4, **changes})),
        workdir,
    )


def test_the_plug_ins_that_no_page_names(tmp_path):
    values = flow.tagging(
        tmp_path, train_for="1 step", model={"name": "modernbert", "heads": 2, "ffn": 64, **SMALL}
    )
    trained(spec.resolve(values), tmp_path / "run")


def test_every_key_of_a_benchmark_and_of_a_search_is_read(home):
    values = flow.changed(
        load("bench", f"task=sst2,init={home / 'pre'},root={home / 'data'}"),
        {"data.train_size": 8, "objective.seq_len": 16},
    )
    with recorded() as read:
        protocol.cells(values, spec.resolve)
        searched = configs.resolve({"tune": {}}, {"tune": search_space.SPEC})
        config = spec.resolve({k: v for k, v in values.items() if k != "bench"})
        search_space.resolve(config, searched.tune, Path("unused"), ())
    assert {f"bench.{key}" for key in section.SPEC} | {f"tune.{key}" for key in search_space.SPEC} <= read


def test_every_page_has_a_test():
    tested = {"pretrain", "finetune", "bench", "strategies", "imdb_lstm", "quickstart", "published"}
    assert {p.stem for p in PAGES.glob("*.py")} == tested


@pytest.mark.parametrize("page", sorted(p.stem for p in PAGES.glob("*.py")))
def test_a_page_says_its_command_and_is_a_page(page):
    text = (PAGES / f"{page}.py").read_text()
    doc = text.split('"""')[1]
    assert ("ptft " in doc or "bash launch/" in doc) and "Cost" in doc and "esult" in doc
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("corpus", ["simplewiki", "zhwiki"])
def test_pretrain(corpus, home, tmp_path):
    values = load("pretrain", f"corpus={corpus},root={home}/data,seq_len=32")
    assert values["batch"] == 128
    one_step(values, tmp_path / "run", model={**values["model"], **SMALL}, **{"data.vocab_size": 120})


def test_pretrain_on_the_embedded_corpus_or_on_any_other(home, tmp_path):
    assert load("pretrain")["data"]["train"] == "corpus:documents@train"
    values = load("pretrain", "size=base,corpus=zhwiki,root=there")
    assert (
        values["model"]["size"] == "base" and values["data"]["train"] == "files:there/zhwiki/AA/wiki_?[0-8]"
    )
    with pytest.raises(UserError, match=r"no corpus 'zhwik'; did you mean 'zhwiki'"):
        load("pretrain", "corpus=zhwik")


@pytest.mark.parametrize("task", sorted(tasks.FILES))
def test_finetune(task, home, tmp_path):
    values = load("finetune", f"task={task},init={home / 'pre'},root={home / 'data'},seq_len=32,freeze=head")
    result = one_step(values, tmp_path / "run")
    assert {"dev", "test"} <= result.keys() and result["trainable"] == 130
    metrics = result["dev"]
    assert set(metrics) == {"loss", "accuracy", "macro_f1", "matthews"}
    notes = result["data"]["notes"]["train"]
    assert notes["rows"] == (10 if task in ("mrpc", "rte") else 12) and not notes.get("skipped_rows")


@pytest.mark.parametrize("task", sorted(tasks.TFDS))
def test_finetune_through_tfds_resolves(task, home):
    config = spec.resolve(load("finetune", f"task={task},init={home / 'pre'}"))
    assert (
        config.data.train.startswith("tfds:") and config.data.dev and config.data.text and config.data.label
    )
    assert bool(config.data.text_b) == (task not in ("cola", "sst2", "imdb"))


def test_an_unknown_task_shows_the_known_ones():
    with pytest.raises(UserError, match=r"no task 'sst3' in TFDS.*did you mean 'sst2'"):
        load("finetune", "task=sst3")
    with pytest.raises(
        UserError, match=r"no task 'qqp' as files; there is|no task 'qqp' as files; did you mean"
    ):
        load("finetune", "task=qqp,root=/data")


def cells(values, workdir):
    """One seed of a benchmark, a step each; no key of any cell may be left unread."""
    seen = []

    def one(cell, folder):
        if cell.kind != "train":
            return work.run_cell(cell, folder, "accuracy")
        result = trained(cell.config, folder)
        seen.append(cell.config)
        return CellResult.of(result)

    changes = {
        "train_for": "1 step",
        "batch": 4,
        "eval_batch": 4,
        "objective.seq_len": 16,
        "data.train_size": 8,
        "bench.seeds": [3],
    }
    values = flow.changed(values, {**changes, "bench.lr_factors": [1], "bench.repeat": False})
    found = protocol.cells(values, spec.resolve, identity.content)
    here = running.Bench(workdir, "accuracy", "ptft bench")
    rows = runner.run(found, workdir, runner.Workers(lambda cell: running.run_in_process(cell, here, one)))
    # eight texts may have no word
    assert {r["status"] for r in rows if r["kind"] != "tfidf"} == {"ok"}, [r["error"] for r in rows]
    assert {r["kind"] for r in rows} == {"train", *section.REFERENCES} and len(seen) == sum(
        r["kind"] == "train" for r in rows
    )
    assert all(config.data.train_size == 8 and config.seed == 3 for config in seen)
    return rows


def test_bench(home, tmp_path):
    values = load("bench", f"task=sst2,init={home / 'pre'},root={home / 'data'}")
    names = [s["name"] for s in values["bench"]["strategies"]]
    assert names[0] == "full" and "full, random init" in names and len(names) == 10
    # Three stand for the ten: the others differ in the strategy's name alone, which every strategy's own test
    # covers.
    values["bench"]["strategies"] = [
        s for s in values["bench"]["strategies"] if s["name"] in ("full", "bitfit", "full, random init")
    ]
    rows = cells(values, tmp_path / "bench")
    assert rows[1]["trainable"] < rows[0]["trainable"] == rows[2]["trainable"] and {
        r["metric"] for r in rows
    } == {"accuracy"}


def test_every_strategy_of_the_benchmarks_fits_its_model(home):
    here = f"init={home / 'pre'},root={home / 'data'}"
    published = flow.changed(
        load("published", f"task=mrpc,{here}"), {"bench.sizes": [], "bench.random_init": False}
    )
    shallow = [
        s
        for s in published["bench"]["strategies"]
        if s["name"] not in ("top-4", "top-3", "top-2", "bottom-2")
    ]
    published["bench"]["strategies"] = shallow  # the model here has one layer
    for values in (load("bench", here), load("quickstart", f"stage=bench,init={home / 'pre'}"), published):
        found = [c for c in protocol.cells(values, spec.resolve) if c.kind == "train"]
        rates = len(values["bench"].get("lr_factors", [1]))
        assert len(found) == 5 * rates * (len(values["bench"]["strategies"]) + 1)  # and the A/A check
        loaded = dataset.load_data(spec.resolve(flow.finetuning(home, home / "pre")))
        for cell in {c.strategy: c for c in found}.values():
            net = build.net(cell.config.replace(**{"objective.seq_len": 16}), loaded.tokenizer, loaded.labels)
            assert build.phases(cell.config, net, 100, 100)


@pytest.mark.parametrize("page", ["bench", "published", "strategies"])
def test_a_benchmark_takes_a_table_of_ones_own(page, home, tmp_path, capsys):
    """As configs/finetune.py does, and with all of its rows; without a test split it says what to do."""
    flow.table(tmp_path / "mine.tsv", 30, header="words\tkind")
    few = [
        "bench.strategies=[{'name': 'head', 'freeze': 'head', 'lr': 0.01}]",
        "bench.lr_factors=[1]",
        "bench.sizes=[]",
        "batch=4",
    ]
    own = [
        f"data.train=files:{tmp_path}/mine.tsv[:80%]",
        "data.text=words",
        "data.label=kind",
        "bench.random_init=False",
    ]
    start = [
        "bench",
        "--config",
        f"{PAGES / page}.py:task=,init={home / 'pre'},seq_len=16",
        "--workdir",
        tmp_path / "it",
        "--check",
    ]
    start += [f"--config.{x}" for x in [*few, *own]]
    assert flow.ptft(*start) == 2
    assert "a benchmark quotes numbers of a test split" in capsys.readouterr().err
    assert flow.ptft(*start, f"--config.data.test=files:{tmp_path}/mine.tsv[80%:]") == 0
    said = capsys.readouterr().out
    assert f"files:{tmp_path}/mine.tsv[:80%], all examples" in said and "head: 5 cells" in said.replace(
        "1 cell", "5 cells"
    )


def test_strategies(home, tmp_path):
    values = load("strategies", f"init={home / 'pre'},root={home / 'data'}")
    six = {
        "batch": 8,
        "model": {**SMALL, "layers": 6},
        "objective": {"name": "classify", "seq_len": 16},
        "data": {"vocab_size": 100},
    }
    for strategy in values["bench"]["strategies"]:
        assert build.outline(spec.resolve({**six, "freeze": strategy["freeze"]})).plan.trainable, strategy
    values["bench"]["strategies"] = [
        s for s in values["bench"]["strategies"] if s["name"] in ("full", "head")
    ]
    cells(values, tmp_path / "bench")


def test_imdb_lstm(home, tmp_path):
    values = load("imdb_lstm", f"root={home / 'data'}/aclImdb")
    result = one_step(
        values,
        tmp_path / "run",
        **{"objective.seq_len": 6, "data.vocab_size": 120, "model.embedding": 8, "model.hidden": 8},
    )
    assert result["trainable"] == result["total"] and result["data"]["notes"]["train"]["truncated"] > 0
    assert load("imdb_lstm")["data"]["train"] == "tfds:imdb_reviews@train[:90%]"


def test_quickstart(home, tmp_path):
    values = load("quickstart", "pretrain")
    data = {
        "data.train": f"files:{home}/docs.txt",
        "data.dev": f"files:{home}/docs_dev.txt",
        "data.vocab_size": 120,
        "data.dev_size": 9,
    }
    model = {**values["model"], **SMALL, "heads": 1}
    one_step(values, tmp_path / "pre", model=model, **{"objective.seq_len": 32}, **data)
    values, use = (load("quickstart", f"{stage},init={tmp_path / 'pre'}") for stage in ("bench", "use"))
    assert values["data"] == use["data"] and use["data"]["test"] == "corpus:blanks@test"
    for page in (values, use):
        for split in ("train", "dev", "test"):
            table = (
                (home / f"data/sst2_glue/{split}.tsv")
                .read_text()
                .replace("\t", " ___\t")
                .replace("sentence ___", "sentence")
            )
            (tmp_path / f"{split}.tsv").write_text(table)
            page["data"][split] = f"files:{tmp_path}/{split}.tsv"
        page["data"]["label"] = "label"
    values["bench"]["strategies"] = [
        s for s in values["bench"]["strategies"] if s["name"] in ("full", "head")
    ]
    cells(values, tmp_path / "bench")
    one_step(use, tmp_path / "use", **{"objective.seq_len": 16, "data.train_size": 8})
