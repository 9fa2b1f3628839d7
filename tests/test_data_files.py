"""`files:` sources: every format, broken rows, labels; the sentence splitter."""

import gzip
import json
from pathlib import Path

import pytest

from ptft import data
from ptft.core import config
from ptft.core.errors import UserError
from ptft.data import _sentences

SHARED = Path(__file__).parents[2] / "shared" / "data"


def load(path: object, known: tuple[str, ...] = (), **options: object) -> data.Source:
    return data.load(f"files:{path}", config.resolve(options, data.SPEC), known)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def texts(source: data.Source) -> list[tuple[object, ...]]:
    return [tuple(v for k, v in r.items() if k != "where") for r in source.records]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Is it?", ["One is here.", "Two is there!", "Is it?"]),
        ("Mr. J. R. Smith of the U.S. Army met Dr. Who.", ["Mr. J. R. Smith of the U.S. Army met Dr. Who."]),
        ("He left the U.S. The rest stayed, e.g. me.", ["He left the U.S.", "The rest stayed, e.g. me."]),
        (
            "It cost 3.5 dollars (see Fig. 3). 5 men came.",
            ["It cost 3.5 dollars (see Fig. 3).", "5 men came."],
        ),
        ('"Stop!" he said. "Why?" "So."', ['"Stop!" he said.', '"Why?"', '"So."']),
        ("A line\nanother line", ["A line", "another line"]),
        ("他說：「好。」然後走了！真的嗎？是", ["他說：「好。」", "然後走了！", "真的嗎？", "是"]),
        ("真好!我也去", ["真好!", "我也去"]),
        (" \n ", []),
    ],
)
def test_sentences(text, expected):
    assert _sentences.sentences(text) == expected


def test_lines_are_sentences_and_a_blank_line_ends_a_document(tmp_path):
    path = write(tmp_path, "a.txt", "\nOne. Still one.\nTwo.\n\n\nThree.\n")
    source = load(path)
    assert texts(source) == [(["One. Still one.", "Two."],), (["Three."],)]
    assert [r["where"] for r in source.records] == [f"{path}:2", f"{path}:6"]
    assert texts(load(path, format="paragraphs")) == [(["One.", "Still one.", "Two."],), (["Three."],)]


def test_files_are_sorted_and_each_starts_a_document(tmp_path):
    write(tmp_path, "b.txt", "Second.")
    write(tmp_path, "a.txt.gz", "First.")
    assert texts(load(tmp_path / "*.txt*")) == texts(load(tmp_path)) == [(["First."],), (["Second."],)]


def test_fingerprint_is_of_the_content(tmp_path):
    rows = "text\tlabel\ngood\tpos\nbad\tneg\n"
    one = load(write(tmp_path, "x.tsv", rows), label="label")
    same = load(write(tmp_path, "y.csv.gz", rows.replace("\t", ",")), label="label")
    other = load(write(tmp_path, "z.tsv", rows.replace("good", "nice")), label="label")
    swapped = load(tmp_path / "x.tsv", label="label", labels=["pos", "neg"])
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, swapped.fingerprint}) == 3


def test_both_wikiextractor_forms_give_the_same_documents(tmp_path):
    pages = [
        ("Cats & dogs", "They live. They play.\n\nHistory.\nA &lt;br&gt; B."),
        ("Empty", ""),
        ("April", "April is a month. It has 30 days."),
    ]
    rows = [
        json.dumps({"id": str(i), "revid": "7", "url": "u", "title": t, "text": text})
        for i, (t, text) in enumerate(pages)
    ]
    blocks = [
        f'<doc id="{i}" url="u" title="{t.replace("&", "&amp;")}">\n{t}\n\n{text}\n\n</doc>\n'
        for i, (t, text) in enumerate(pages)
    ]
    json_form, doc_form = (
        load(write(tmp_path, "wiki_00", "\n".join(rows) + "\n")),
        load(write(tmp_path, "wiki_01", "".join(blocks))),
    )
    expected = [
        (["They live.", "They play.", "History.", "A   B."],),
        (["April is a month.", "It has 30 days."],),
    ]
    assert texts(json_form) == texts(doc_form) == expected
    assert json_form.notes["empty_documents"] == doc_form.notes["empty_documents"] == 1
    assert [r["where"][-3:] for r in doc_form.records] == ["1:1", ":16"]


def test_tsv_takes_quotes_byte_order_mark_and_windows_line_ends_as_they_come(tmp_path):
    text = '\ufeffQuality\t#1 String\t#2 String\r\n1\tHe said "no.\t"Yes" she\u2028said\r\n0\ta\tb\r\n'
    source = load(
        write(tmp_path, "msr.txt", text), format="tsv", label="Quality", text="#1 String", text_b="#2 String"
    )
    assert texts(source) == [('He said "no.', '"Yes" she\u2028said', 1), ("a", "b", 0)]


def test_columns_by_number_without_a_header(tmp_path):
    source = load(
        write(tmp_path, "cola.tsv", "gj04\t1\t\tFine.\ngj04\t0\t*\tFine not.\n"),
        header=False,
        text="3",
        label="1",
    )
    assert texts(source) == [("Fine.", 1), ("Fine not.", 0)]


def test_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = write(tmp_path, "x.csv", 'label,text\n1,"a, ""b""\nc"\n0,d\n')
    source = load(path, label="label")
    assert texts(source) == [('a, "b"\nc', 1), ("d", 0)]
    assert source.records[1]["where"] == f"{path}:4"


def test_a_row_without_a_label_is_no_class_of_its_own(tmp_path):
    path = write(tmp_path, "x.tsv", "text\tlabel\ngood\t1\nwhat\t\nbad\t0\n")
    with pytest.raises(UserError, match=r"x\.tsv:3: the label is empty; expected one of '0', '1'"):
        load(path, label="label")
    assert load(path, label="label", on_bad_row="skip").labels == ("0", "1")
    assert load(path, label="label", labels=["", "0", "1"]).labels == ("", "0", "1"), "where it is meant"
    table = write(tmp_path, "x.jsonl", '{"text": "x", "label": 1.0}\n{"text": "y", "label": NaN}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: expected text in 'label', got nan"):
        load(table, label="label")


def test_jsonl_with_numbers_as_labels_and_rows_without_label_as_documents(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"text": "One. Two.", "label": 1}\n{"label": 0, "text": "Three."}\n')
    assert texts(load(path, label="label")) == [("One. Two.", 1), ("Three.", 0)]
    assert texts(load(path)) == [(["One.", "Two."],), (["Three."],)]


@pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz"])
def test_parquet(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"a": ["x", "y"], "b": ["p", "q"], "label": [1, 0]}), sink)
    source = load(write(tmp_path, name, sink.getvalue().to_pybytes()), text="a", text_b="b", label="label")
    assert texts(source) == [("x", "p", 1), ("y", "q", 0)]
    with pytest.raises(UserError, match="not a parquet file"):
        load(write(tmp_path, "no.parquet", "PAR"), text="a", label="label")


def test_folder_with_a_subfolder_a_class(tmp_path):
    for name, text in {
        "pos/1_9.txt": "Good.\n",
        "pos/0_8.txt": "Fine.",
        "neg/0_1.txt": "Bad.",
        "unsup/0_0.txt": "So.",
    }.items():
        write(tmp_path / "train", name, text)
    write(tmp_path, "test/pos/0_9.txt", "Great.")
    source = load(tmp_path / "train")
    assert source.labels == ("neg", "pos")
    assert texts(source) == [("Bad.", 0), ("Fine.", 1), ("Good.", 1)]
    assert texts(load(tmp_path / "test", source.labels)) == [("Great.", 1)]
    assert len(load(f"{tmp_path}/t*").records) == 4
    with pytest.raises(UserError, match="subfolder a class"):
        load(tmp_path / "train" / "pos", format="folder")


def test_labels_are_sorted_as_numbers_or_in_the_order_given(tmp_path):
    path = write(tmp_path, "x.tsv", "text\tlabel\n" + "".join(f"t\t{i}\n" for i in (10, 9, 2)))
    assert load(path, label="label").labels == ("2", "9", "10")
    assert load(path, label="label", labels=["10", 9, "2"]).records[0]["label"] == 0
    with pytest.raises(UserError, match="twice"):
        load(path, label="label", labels=["2", "2"])


def test_an_unknown_label_names_its_row(tmp_path):
    path = write(tmp_path, "dev.tsv", "text\tlabel\na\t1\nb\t-1\n")
    with pytest.raises(UserError, match=r"dev\.tsv:3: label '-1' is unknown; expected one of '0', '1'"):
        load(path, ("0", "1"), label="label")
    source = load(path, ("0", "1"), label="label", on_bad_row="skip")
    assert (source.labels, len(source.records), source.notes["skipped_rows"]) == (("0", "1"), 1, 1)


def test_empty_text_is_kept_and_counted(tmp_path):
    source = load(write(tmp_path, "x.tsv", "text\tlabel\n \t1\na\t0\n"), label="label")
    assert texts(source) == [(" ", 1), ("a", 0)]
    assert dict(source.notes) == {"records": 2, "empty_text": 1}


BROKEN = [
    ("x.tsv", b"text\tlabel\na\t1\nb\t0\tc\n", {}, ":3: expected 2 columns, got 3"),
    ("x.tsv", b"text\tlabel\na\t1\n\xff\t0\n", {}, ":3: expected UTF-8"),
    ("x.csv", b"text,label\na,1\nb\n", {}, ":3: expected 2 columns, got 1"),
    ("x.csv", b'text,label\na,1\n"b,0\n', {}, ":3: expected a row of comma-separated values"),
    ("x.csv", b"text,label\na,1\n\xff,0\n", {}, ":3: expected UTF-8"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', {}, ":2: expected one JSON object a line"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n[1]\n', {}, ":2: expected a JSON object"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"label": 1}\n', {}, ":2: expected text in 'text', got None"),
    (
        "x.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 1}\n',
        {},
        ":2: the text is not valid Unicode",
    ),
    ("x.txt", b"fine\n\xe9t\xe9\n", {"label": ""}, ":2: expected UTF-8"),
    ("wiki_00", b'<doc title="a">\na\n\nText.\n</doc>\nstray\n', {"label": ""}, ":6: expected <doc"),
    (
        "wiki_00",
        b'<doc title="a">\na\n\nText.\n</doc>\n<doc title="b">\n',
        {"label": ""},
        ":6: <doc> is not closed",
    ),
    (
        "wiki_00",
        b'{"id": "1", "url": "u", "text": "T."}\n{"id": "2", "url": "u"}\n',
        {"label": ""},
        ":2: expected a page with 'text'",
    ),
    ("c/pos/2.txt", b"\xff", {"label": ""}, "2.txt: expected UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), BROKEN)
def test_a_broken_row_stops_with_its_line_or_is_counted(tmp_path, name, content, options, message):
    path = write(tmp_path, name, content)
    if name.startswith("c/"):
        write(tmp_path, "c/pos/1.txt", "Fine.")
        path = tmp_path / "c"
    options = {"label": "label", **options}
    with pytest.raises(UserError) as e:
        load(path, **options)
    assert message in str(e.value)
    source = load(path, **options, on_bad_row="skip")
    assert (len(source.records), source.notes["skipped_rows"]) == (1, 1)


@pytest.mark.parametrize("skip", ["stop", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.tsv", b"text\tlabel\xff\na\t1\n", "1: expected UTF-8"),
        ("x.csv", b"text,label\xff\na,1\n", "1: expected UTF-8"),
        ("x.csv", b'\ntext,"label"x\ntext,label\na,1\n', "2: expected a row of comma-separated values"),
    ],
)
def test_a_broken_header_is_never_left_out(tmp_path, name, content, why, skip):
    with pytest.raises(UserError, match=rf"x...v:{why}") as e:
        load(write(tmp_path, name, content), label="label", on_bad_row=skip)
    assert "on_bad_row" not in str(e.value)
    if why.startswith("1"):
        rows = load(tmp_path / name, label="1", text="0", header=False, on_bad_row="skip")
        assert len(rows.records) == rows.notes["skipped_rows"] == 1


def test_json_beyond_what_python_reads_is_a_broken_row(tmp_path):
    for line, why in (
        ("[" * 100_000, "maximum recursion depth"),
        ('{"n": ' + "1" * 5000 + "}", "Exceeds the limit"),
    ):
        path = write(tmp_path, "x.jsonl", '{"text": "a", "label": 1}\n' + line)
        with pytest.raises(UserError, match=f"x.jsonl:2: expected one JSON object a line: {why}") as e:
            load(path, label="label")
        assert len(str(e.value)) < 1000
        assert load(path, label="label", on_bad_row="skip").notes["skipped_rows"] == 1


MISTAKES = [
    ("sst2/tran.tsv", {"label": "label"}, "no file matches .*did you mean 'train.tsv'"),
    ("nowhere/train.tsv", {}, "no file matches .*sst2/"),
    ("sst2/train.tsv", {"label": "labl"}, r"no column 'labl' \(data.label\); it has 'text', 'label'"),
    ("sst2/train.tsv", {"text": "3", "label": "1"}, "data.header=False"),
    ("sst2/train.tsv", {"text_b": "text"}, "pairs need labels"),
    ("sst2/train.tsv", {"format": "folder"}, "subfolder a class"),
    ("sst2/header.tsv", {"label": "label"}, "is empty: 0 records"),
    ("sst2/notes.md", {}, "set data.format"),
    ("sst2/plain.txt", {"label": "label"}, "plain text"),
    ("sst2/torn.tsv.gz", {"label": "label"}, "cannot be read"),
]


@pytest.mark.parametrize(("path", "options", "message"), MISTAKES)
def test_mistakes_are_said_clearly(tmp_path, path, options, message):
    for name, text in {
        "train.tsv": "text\tlabel\na\t1\n",
        "header.tsv": "text\tlabel\n",
        "notes.md": "# notes",
        "plain.txt": "a",
    }.items():
        write(tmp_path, f"sst2/{name}", text)
    (tmp_path / "sst2" / "torn.tsv.gz").write_bytes(gzip.compress(b"text\tlabel\na\t1\n")[:-9])
    with pytest.raises(UserError, match=message):
        load(tmp_path / path, **options)


@pytest.mark.parametrize(
    ("where", "message"),
    [("fles:x", "did you mean 'files'"), ("train.tsv", "expected KIND:WHERE"), ("files:", "KIND:WHERE")],
)
def test_a_missing_kind_lists_those_that_exist(where, message):
    with pytest.raises(UserError, match=message):
        data.load(where, config.resolve({}, data.SPEC))


REAL = [
    ("sst2_glue/train.tsv", {"label": "label"}, 60614),
    ("chnsenticorp/test.tsv", {"label": "label", "text": "text_a"}, 1200),
    (
        "mrpc/msr_paraphrase_test.txt",
        {"format": "tsv", "label": "Quality", "text": "#1 String", "text_b": "#2 String"},
        1725,
    ),
    ("cola/raw/in_domain_train.tsv", {"header": False, "label": "1", "text": "3"}, 8551),
    ("bert_sample_text/sample_text.txt", {}, 3),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("path", "options", "records"), REAL)
def test_real_files_are_read_to_the_last_row(path, options, records):
    assert len(load(SHARED / path, **options).records) == records


def test_a_part_of_the_records(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(11)))
    whole = load(path, label="label")
    parts = [load(f"{path}{part}", label="label") for part in ("[:90%]", "[90%:]")]
    assert [len(p.records) for p in parts] == [9, 2] and texts(parts[0]) + texts(parts[1]) == texts(whole)
    assert texts(load(f"{tmp_path}/*.tsv[3:5]", label="label")) == texts(whole)[3:5]
    assert len({whole.fingerprint, *(p.fingerprint for p in parts)}) == 3
    with pytest.raises(UserError, match="is empty"):
        load(f"{path}[11:]", label="label")
    write(tmp_path, "b[1:2].tsv", "sentence\tlabel\nx\t1\n")  # a file may be called so
    assert texts(load(tmp_path / "b[1:2].tsv", label="label")) == [("x", 0)]
    text = write(tmp_path, "c.txt", "One.\n\nTwo.")
    assert texts(load(f"{text}[1:]")) == [(["Two."],)]


@pytest.mark.parametrize("part", ["[:150%]", "[:500]", "[-5:]", "[:0.5%]", "[9:2]", "[a:]"])
def test_no_such_part(tmp_path, part):
    path = write(tmp_path, "a.tsv", "sentence\tlabel\n" + "x\t1\n" * 10)
    with pytest.raises(UserError, match=r"expected \[A:B\], records or per cent from 0 up to all 10"):
        load(f"{path}{part}", label="label")


def test_a_folder_of_classes_has_no_parts(tmp_path):
    for label in ("neg", "pos"):
        write(tmp_path, f"{label}/1.txt", "x")
    with pytest.raises(UserError, match="class by class"):
        load(f"{tmp_path}[:50%]")


# ----------------------------------------------------------------------------------------- what users bring


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "text,label,text\na,1,b\nc,0,d\n"),
        ("x.tsv", "text\ttext\tlabel\na\tb\t1\n"),
        ("x.jsonl", '{"text": "a", "label": 1, "text": "b"}\n'),
    ],
)
def test_a_column_that_is_there_twice(tmp_path, name, text):
    path = write(tmp_path, name, text)
    with pytest.raises(UserError, match=r"has the column 'text' \(data.text\) twice: rename"):
        load(path, label="label")
    assert load(write(tmp_path, "y.csv", "text,id,id,label\na,1,1,x\n"), label="label").labels == ("x",), (
        "nobody asked for it"
    )


def test_a_later_key_that_is_there_twice_is_a_broken_row(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0, "label": 1}\n')
    with pytest.raises(UserError, match=r"x.jsonl:2: expected text in 'label', got it twice"):
        load(path, label="label")


def test_a_parquet_column_that_is_there_twice(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names, columns = ["text", "label", "text"], [["a", "b"], [1, 0], ["c", "d"]]
    parquet.write_table(
        pyarrow.table([pyarrow.array(c) for c in columns], names=names), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match=r"has the column 'text' .* twice"):
        load(tmp_path / "x.parquet", label="label")


@pytest.mark.parametrize(
    "labels",
    [
        [f"{i * 0.137:.3f}" for i in range(1, 9)],  # a measure
        ["0.5", "1.0", "1.5", "2.0"],
        [f"{i / 7:.2f}".replace(".", ",") for i in range(1, 9)],
        [str(1200 + 13 * i) for i in range(30)],  # prices
        [f"{i}.5%" for i in range(5)],
    ],
)
def test_numbers_that_measure_are_no_classes(tmp_path, labels):
    path = write(tmp_path, "x.tsv", "text\tlabel\n" + "".join(f"t\t{n}\n" for n in labels))
    with pytest.raises(
        UserError,
        match=r"x.tsv:\d+: label .* is a number, one of .* has no regression yet; if .* data.labels='\[",
    ):
        load(path, label="label")
    assert len(load(path, label="label", labels=labels).labels) == len(labels), "classes, if the user says so"


@pytest.mark.parametrize(
    "labels",
    [
        ["0", "1"],
        [str(i) for i in range(40)],
        [str(i) for i in range(1, 60, 2)],
        ["3", "70", "71"],
        ["1.2", "beta", "rc"],
    ],
)
def test_numbers_that_count_are_classes(tmp_path, labels):
    path = write(tmp_path, "x.tsv", "text\tlabel\n" + "".join(f"t\t{n}\n" for n in labels))
    assert set(load(path, label="label").labels) == set(labels)


def test_a_whole_number_is_one_label_however_it_is_stored(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for i, labels in enumerate([[0, 1], [0.0, 1.0], ["0", "1.00"]]):
        parquet.write_table(
            pyarrow.table({"text": ["a", "b"], "label": labels}), tmp_path / f"shard-{i}.parquet"
        )
    write(tmp_path, "x.jsonl", '{"text": "a", "label": "0"}\n{"text": "b", "label": 1.0}\n')
    source = load(tmp_path, label="label")
    assert (
        source.labels == ("0", "1")
        and [r["label"] for r in source.records] == [0, 1] * 4
        and not source.doubts
    )
    assert load(tmp_path, ("0.0", "1.0"), label="label").records == source.records, "an old run's labels"
    true = load(
        write(tmp_path, "b/x.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": "False"}\n'),
        label="label",
    )
    assert true.labels == ("False", "True")


def test_labels_that_look_alike_are_kept_apart_and_named(tmp_path):
    path = write(
        tmp_path,
        "x.tsv",
        "text\tlabel\n" + "".join(f"t\t{n}\n" for n in ("neg", "Neg", "pos ", "pos", " so", "n\u200beg")),
    )
    source = load(path, label="label")
    assert len(source.labels) == 6
    alike, pos, so = source.doubts
    assert (
        alike.startswith("labels 'Neg', 'neg', 'n\\u200beg' differ in capitals, blanks")
        and "'pos', 'pos '" in pos
        and "' so'" in so
    )
    assert not load(path, label="label", labels=source.labels).doubts, "meant"


@pytest.mark.parametrize("skip", ["stop", "skip"])
@pytest.mark.parametrize(
    "rows",
    ['a,1\n"b,0\nc,1\nd,0\n', 'a,1\n"b,0\nc,1\n"d",0\n', 'a,1\n"b,0\nc,1\nd",0,1\n'],
    ids=["to the end", "to the next", "a row"],
)
def test_an_open_quote_loses_no_row(tmp_path, rows, skip):
    path = write(tmp_path, "x.csv", "text,label\n" + rows)
    with pytest.raises(UserError, match=r"x.csv:3: .* 3 lines: .*a quote opens there that is not closed"):
        load(path, label="label", on_bad_row=skip)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
def test_a_csv_file_with_another_separator(tmp_path, sign, header):
    rows = [["text", "label"]] * header + [["fine, or not", "1"], ["so", "0"], [f'"a{sign}b"', "1"]]
    path = write(tmp_path, "x.csv", "".join(sign.join(row) + "\n" for row in rows))
    columns = {} if header else {"header": False, "text": "0"}
    label = "label" if header else "1"
    if header:
        assert texts(load(path, label=label, **columns)) == [("fine, or not", 1), ("so", 0), (f"a{sign}b", 1)]
        with pytest.raises(UserError, match=r"has no column 'labl' \(data.label\); it has 'text', 'label'"):
            load(path, label="labl")
    else:
        write(tmp_path, "x.csv", path.read_text().replace("fine, or not", "fine"))
        assert texts(load(path, label=label, **columns)) == [("fine", 1), ("so", 0), (f"a{sign}b", 1)]


def test_long_values_are_shortened(tmp_path):
    long = "x" * 300_000
    for name, text, message in (
        ("a.tsv", f"text\t{long}\na\t1\n", "it has 'text', 'xxx"),
        ("b.jsonl", json.dumps({"text": {"a": long}, "label": 1}), "expected text in 'text', got {'a': 'xxx"),
        (
            "c.tsv",
            "\t".join(f"c{i}" for i in range(30_000)) + "\n" + "x\t" * 29_999 + "\n",
            "has no column 'text'",
        ),
        ("d.tsv", f"text\tlabel\na\t-{'1' * 300_000}\n", "is negative"),
        ("e.conll", f"{long}\n", "expected a word and its tag"),
    ):
        with pytest.raises(UserError, match=message) as e:
            load(write(tmp_path, name, text), label="" if name == "e.conll" else "label")
        assert len(str(e.value)) < 2000
    with pytest.raises(UserError, match="is unknown; expected one of 'xxx") as e:
        load(write(tmp_path, "f.tsv", f"text\tlabel\na\t{long}y\n"), (long,), label="label")
    assert len(str(e.value)) < 2000


def test_what_is_hidden_is_left_out_and_links_are_followed(tmp_path):
    rows, home = "text\tlabel\na\t1\n", tmp_path / "home"
    for name in (
        "t.tsv",
        ".ipynb_checkpoints/t-checkpoint.tsv",
        "__MACOSX/._t.tsv",
        "._t.tsv",
        ".DS_Store",
        "deep/.git/x.tsv",
    ):
        write(home, name, rows)
    write(tmp_path, "other/u.tsv", rows)
    (home / "linked").symlink_to(tmp_path / "other")
    (home / "v.tsv").symlink_to(tmp_path / "other" / "u.tsv")
    (home / "deep" / "round").symlink_to(home)
    (home / "deep" / "again").symlink_to("..")
    expected = [f"{home}/linked/u.tsv:2", f"{home}/t.tsv:2", f"{home}/v.tsv:2"]
    for where in (home, f"{home}/**/*.tsv", f"{home}/**"):
        assert sorted(r["where"] for r in load(where, label="label").records) == expected
    (home / "w.tsv").symlink_to("gone.tsv")
    for where in (home, f"{home}/*.tsv", f"{home}/w.tsv", f"{home}/**/w.tsv"):
        with pytest.raises(
            UserError,
            match=r"w.tsv is a link to gone.tsv, which is not there: restore it, or delete the link",
        ):
            load(where, label="label")


def test_hidden_files_and_links_in_a_folder_of_classes(tmp_path):
    for name in ("c/pos/1.txt", "c/pos/._1.txt", "c/neg/1.txt", "c/.neg/1.txt", "c/__MACOSX/1.txt"):
        write(tmp_path, name, "x")
    (tmp_path / "c" / "neg" / "2.txt").symlink_to(tmp_path / "c" / "pos" / "1.txt")
    source = load(tmp_path / "c")
    assert source.labels == ("neg", "pos") and len(source.records) == 3
    (tmp_path / "c" / "neg" / "3.txt").symlink_to("gone.txt")
    with pytest.raises(UserError, match=r"3.txt is a link to gone.txt"):
        load(tmp_path / "c")
