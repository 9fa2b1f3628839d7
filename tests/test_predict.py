"""What `ptft predict` reads, how it asks, and the tables that it writes; tests/test_cli.py has the verb
itself."""

import gzip
import itertools
import json
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from ptft import data, objectives
from ptft.cli import predict, tables, texts
from ptft.core import config, mesh
from ptft.core.errors import UserError
from ptft.train import evaluate


def options(**values):
    return config.resolve(values, data.SPEC)


def read(path, pairs="", named=False, **values):
    return list(texts.read_file(path, options(**values), named, pairs))


def said(items):
    return [one["text"] for _, one in items]


CSV = 'n,text\n1,"a, b"\n2,c\n'
FILES = {
    "x.csv": CSV,
    "x.CSV": CSV,
    "x.tsv": "n\ttext\n1\ta, b\n2\tc\n",
    "x.jsonl": '{"n": 1, "text": "a, b"}\n{"n": 2, "text": "c"}\n',
    "x.csv.gz": CSV,
    "x.txt": "a, b\nc\n",
    "x.txt.gz": "a, b\nc\n",
    "x": "a, b\nc\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_its_name_says(tmp_path, name):
    (tmp_path / name).write_bytes(
        gzip.compress(FILES[name].encode()) if name.endswith(".gz") else FILES[name].encode()
    )
    items = read(tmp_path / name)
    assert said(items) == ["a, b", "c"]
    first = (
        {"text": "a, b"}
        if "txt" in name or name == "x"
        else {"n": 1 if name == "x.jsonl" else "1", "text": "a, b"}
    )
    assert items[0][0] == first and items[1][1]["where"].startswith(f"{tmp_path / name}:")


def test_parquet_and_the_runs_own_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"a": ["x", "y"], "b": ["p", "q"], "n": [1, 2]}), tmp_path / "x.parquet"
    )
    items = read(tmp_path / "x.parquet", text="b", text_b="a")
    assert [(one["text"], one["text_b"]) for _, one in items] == [("p", "x"), ("q", "y")] and items[1][0] == {
        "a": "y",
        "b": "q",
        "n": 2,
    }


def test_a_name_without_meaning_is_read_as_the_runs_files_were(tmp_path):
    (tmp_path / "x.txt").write_text("text\tlabel\na\t1\n")
    assert said(read(tmp_path / "x.txt", format="tsv")) == ["a"] and len(read(tmp_path / "x.txt")) == 2


def test_columns_of_a_command():
    own = options(text="t", text_b="u", label="y")
    assert texts.columns(own, []) == own
    assert [texts.columns(own, ["a", "b"], "z")[k] for k in ("text", "text_b", "label", "header")] == [
        "a",
        "b",
        "z",
        True,
    ]
    assert texts.columns(own, [], "z")["text"] == "t" and texts.columns(options(), ["a"])["text"] == "a"
    with pytest.raises(
        UserError,
        match="this run classifies pairs: expected two columns, --text-column given twice, got 'a' alone",
    ):
        texts.columns(own, ["a"])
    assert [texts.columns(own, ["0", "2"])[k] for k in ("text", "text_b", "header")] == ["0", "2", False]
    with pytest.raises(UserError, match=r"columns 0, label: expected names, or numbers from 0 .* not both"):
        texts.columns(options(), ["0"], "label")
    with pytest.raises(UserError, match="--text-column a b c: expected one column, or two"):
        texts.columns(own, ["a", "b", "c"])


def test_numbers_are_columns_of_a_table_without_a_header(tmp_path):
    (tmp_path / "x.csv").write_text("1,a\n0,b\n")
    items = list(texts.read_file(tmp_path / "x.csv", texts.columns(options(), ["1"]), True, ""))
    assert said(items) == ["a", "b"] and items[0][0] == {"0": "1", "1": "a"}


def test_names_are_columns_of_a_table_with_a_header_whatever_the_run_was_trained_on(tmp_path):
    (tmp_path / "x.csv").write_text("n,note\n1,a\n")
    own = options(header=False, text="1", label="0")
    assert not texts.columns(own, [])["header"]
    items = list(texts.read_file(tmp_path / "x.csv", texts.columns(own, ["note"]), True, ""))
    assert said(items) == ["a"] and items[0][0] == {"n": "1", "note": "a"}


def test_what_parts_the_columns_is_found_without_a_label(tmp_path):
    (tmp_path / "x.csv").write_text("text;n, m\na, b;1\n")
    assert read(tmp_path / "x.csv", label="label")[0][0] == {"text": "a, b", "n, m": "1"}
    (tmp_path / "x.csv").write_text("a;1\nb, c;0\n")
    assert said(read(tmp_path / "x.csv", header=False, text="0", label="1")) == ["a", "b, c"]


MISTAKES = {
    "no such column": (
        "x.csv",
        "texts,n\na,1\n",
        {},
        r"x.csv has no column 'text'; name one with --text-column; did you mean 'texts'\?",
    ),
    "another column": (
        "x.csv",
        "texts,n\na,1\n",
        {"text": "text_a"},
        r"no column 'text_a'; .* did you mean 'texts'",
    ),
    "nothing": (
        "x.jsonl",
        '{"text": "a"}\n{"text": null}\n',
        {},
        r"x.jsonl:2: expected text in 'text', got 'None'",
    ),
    "a number": ("x.jsonl", '{"text": 3}\n', {}, r"x.jsonl:1: expected text in 'text', got '3'"),
    "too few cells": (
        "x.tsv",
        "a\ttext\n1\tb\n1\n",
        {"on_bad_row": "skip"},
        r"x.tsv:3: expected 2 columns, got 1$",
    ),
    "no gzip": ("x.txt.gz", "a\n", {}, r"x.txt.gz cannot be read: Not a gzipped file"),
    "half of a gzip": (
        "x.txt.gz",
        gzip.compress(b"a\nb\n")[:-9],
        {},
        r"x.txt.gz cannot be read: Compressed file ended",
    ),
    "other bytes": ("x", b"a\n\xff\n", {}, r"x:2: expected UTF-8, got other bytes"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_bad_row_stops_with_its_line(tmp_path, case):
    name, text, values, message = MISTAKES[case]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, **values)


def test_a_column_of_lines_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"--text-column: .*x.txt is read as one text a line"):
        read(tmp_path / "x.txt", named=True)


def test_what_makes_a_pair():
    def of(pairs, text):
        ((own, one),) = texts.of_texts([("here", text)], pairs)
        assert own == {k: one[k] for k in own} and one["where"] == "here"
        return own.get("text"), own.get("text_b")

    assert of("", "a\tb") == ("a\tb", None)  # of a run that was trained on single texts, a blank
    assert of("tab", "a\tb") == of("always", "a\tb") == ("a", "b")
    assert (
        of("tab", "a") == ("a", None)
        and of("tab", "a\tb\tc") == ("a\tb\tc", None)
        and of("always", "a\tb\tc") == ("a", "b\tc")
    )
    with pytest.raises(UserError, match="expected two texts with a tab between them, got 'a'"):
        of("always", "a")


@pytest.mark.parametrize("tags", [(), ("O",)])
def test_a_pipe_is_read_once(tags):
    read_end, write_end = os.pipe()
    os.write(write_end, b"a\nb O\n")
    os.close(write_end)
    path = Path(f"/dev/fd/{read_end}")
    predict.check(predict.Request(file=path))
    assert said(texts.read_file(path, options(), False, "", tags)) == ["a", "b O"]
    os.close(read_end)


def test_lines_are_read_when_they_are_asked_for():
    endless = texts.of_texts(texts.read_lines((b"%d\n" % i for i in itertools.count()), "pipe"), "")
    assert said(itertools.islice(endless, 3)) == ["0", "1", "2"]


def test_words_with_and_without_tags(tmp_path):
    (tmp_path / "x.conll").write_text("-DOCSTART- O\n\nAnn B-PER\nsleeps O\n\nx O\n")
    (tmp_path / "y.conll").write_text("Ann\nsleeps\n\n\nx")
    for name in ("x.conll", "y.conll"):
        assert [one["words"] for _, one in read(tmp_path / name)] == [["Ann", "sleeps"], ["x"]]
    (tmp_path / "z.conll").write_text("-DOCSTART- -X- O\n# sent_id = 1\nAnn\n#\n-DOCSTART-\nx\n\n# the end\n")
    assert [one["words"] for _, one in read(tmp_path / "z.conll")] == [["Ann", "#"], ["x"]]
    (tmp_path / "z.conll").write_text("# id = 1\n#rain O\nx O\n")  # of tagged words, too
    assert [one["words"] for _, one in read(tmp_path / "z.conll")] == [["#rain", "x"]]
    (tmp_path / "x.conll").rename(tmp_path / "x.txt")  # as CoNLL's own files are called
    for tags, n in ((("B-PER", "O"), 2), (("B-LOC",), 4)):
        assert (
            len(
                [
                    1
                    for _, one in texts.read_file(tmp_path / "x.txt", options(), False, "", tags)
                    if one.get("words") or one["text"]
                ]
            )
            == n
        )


def test_rows_of_any_length_get_what_they_get_together():
    """In their order, out of batches of rows of like length; few lengths, so that few programs are
    compiled."""
    net = tiny.net("bert", dropout=0.0, layers=1, max_len=40)
    net, params = net._replace(objective=tiny.objective("classify", seq_len=40)), tiny.params(net)
    records = [{"text": " ".join(f"w{i + n}" for i in range(n))} for n in (50, 3, 20, 39, 0)]
    rows = net.objective.ask(records, tiny.TOKENIZER)
    evaluate._output_step.cache_clear()
    found = predict.outputs(net, params, rows, 2)
    assert evaluate._output_step(net, mesh.make(1))._cache_size() == 2  # of 32 and of 40 tokens
    batch = rows.batch(np.arange(5))
    want = jax.nn.softmax(jax.jit(lambda p, b: net.predict(p, objectives.pair_inputs(b)))(params, batch))
    np.testing.assert_allclose([row["probabilities"] for row in found], want, atol=1e-5)
    assert [row["length"] for row in found] == batch["length"].tolist() == [40, 5, 22, 40, 2]


def test_gaps_are_the_mask_token_and_nothing_else_is():
    t = tiny.TOKENIZER
    ids = t.encode_gaps("w1 [MASK]w2[MASK] [SEP]")
    assert ids[:4] == [*t.encode(["w1"])[0], t.mask, *t.encode(["w2"])[0], t.mask] and t.sep not in ids
    o = tiny.objective("mlm_nsp")
    records = [
        {"text": "[MASK] w1 [MASK]", "where": ""},
        {"text": "w1", "text_b": "w2 " * 20 + "[MASK]", "where": ""},
    ]
    rows = o.ask(records, t)
    batch = rows.batch(np.arange(2))
    assert (
        batch["gaps"].tolist() == [2, 0]
        and batch["position"][0].tolist() == [1, 3]
        and batch["segment_b"].tolist() == [5, 3]
    )
    assert batch["length"].tolist() == [5, 16] and rows.notes == {"truncated": 1}
    with pytest.raises(UserError, match=r"here: this run fills gaps: expected \[MASK\] in the text"):
        o.ask([{"text": "w1", "where": "here"}], t)


def test_an_answer_does_not_take_the_place_of_a_column(tmp_path):
    assert predict.beside({"label": "1"}, {"label": "yes"}, "") == {"label": "1", "predicted_label": "yes"}
    with pytest.raises(UserError, match="x:3: there is a column 'predicted_label' already"):
        predict.beside({"predicted_label": "1"}, {"label": "yes"}, "x:3")
    row = predict.beside({"predicted_probabilities.neg": "1"}, {"probabilities": {"neg": 0.5}}, "x:3")
    for suffix in ("csv", "tsv"):  # their columns are flat
        with (
            pytest.raises(
                UserError, match=r"there is a column 'predicted_probabilities.neg' already; .*write .jsonl"
            ),
            tables.writer(tmp_path / f"x.{suffix}") as write,
        ):
            write(row)
    with tables.writer(tmp_path / "x.jsonl") as write:
        write(row)
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_column_that_is_there_twice_is_not_written(tmp_path):
    (tmp_path / "x.csv").write_text("text,id,id\na,1,2\n")
    ((own, one),) = read(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"x.csv:2: there is a column 'id' twice; rename one"):
        predict.beside(own, {"label": "yes"}, one["where"])


def test_what_cannot_be_written_is_said_of_the_table(tmp_path):
    (tmp_path / "x.csv").mkdir()
    message = rf"^--to {tmp_path}/x.csv cannot be written: Is a directory"
    with pytest.raises(UserError, match=message), tables.writer(tmp_path / "x.csv") as write:
        write({"a": 1})


ROWS = [
    {"text": 'a "b", c', "n": 1, "p": {"x": 0.5, "y": math.nan}, "l": ["é"]},
    {"text": "d\te\nf", "p": {"x": 1.0, "y": 0.0}, "l": []},
]
WANT = {
    "x.csv": 'text,n,p.x,p.y,l\n"a ""b"", c",1,0.5,,"[""é""]"\n"d\te\nf",,1.0,0.0,[]\n',
    "x.tsv": 'text\tn\tp.x\tp.y\tl\na "b", c\t1\t0.5\t\t["é"]\nd e f\t\t1.0\t0.0\t[]\n',
    "x.jsonl": "".join(
        json.dumps({**r, "p": {k: v if v == v else None for k, v in r["p"].items()}}, ensure_ascii=False)
        + "\n"
        for r in ROWS
    ),
}


@pytest.mark.parametrize("name", WANT)
def test_tables_appear_whole_or_not_at_all(tmp_path, name):
    with tables.writer(tmp_path / name) as write:
        for row in ROWS:
            write(row)
        assert not (tmp_path / name).exists()
    assert (tmp_path / name).read_bytes().decode() == WANT[name]
    with pytest.raises(KeyError), tables.writer(tmp_path / name) as write:
        write(ROWS[0])
        raise KeyError
    assert (tmp_path / name).read_bytes().decode() == WANT[name] and len(list(tmp_path.iterdir())) == 1


def test_a_column_that_the_first_row_lacks(tmp_path):
    with (
        pytest.raises(UserError, match=r"a row has 'z', which the first row lacks"),
        tables.writer(tmp_path / "x.csv") as write,
    ):
        write({"a": 1})
        write({"a": 1, "z": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "x.xlsx"}, r"--to x.xlsx: expected a name that ends in .csv, .tsv, .jsonl"),
        ({"to": "x.csv", "as_json": True}, "--json is for standard output, --to for a file"),
        ({"text": ["a"], "text_column": ["b"]}, "--text-column names a column of --file"),
    ],
)
def test_a_wrong_command_stops_before_anything_is_loaded(given, message, tmp_path):
    given = {**given, **({"to": tmp_path.__class__(given["to"])} if "to" in given else {})}
    with pytest.raises(UserError, match=message):
        predict.run(tmp_path / "no run", predict.Request(**given))


def test_progress_is_said_every_ten_seconds(monkeypatch, capsys):
    clock = iter([100.0, 105.0, 110.0, 119.0, 120.0])
    monkeypatch.setattr(predict.time, "monotonic", lambda: next(clock))
    progress = predict.Progress()
    for _ in range(5):
        progress(256)
    assert (
        capsys.readouterr().err
        == "ptft predict: 768 texts, 51 a second\nptft predict: 1,280 texts, 51 a second\n"
    )
