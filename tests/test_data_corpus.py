"""The embedded corpus: prose from docstrings, splits by module, words taken out, prepared once."""

import pytest

from ptft import data
from ptft.core import config
from ptft.core.errors import UserError
from ptft.data import _blanks, _docstrings, corpus
from ptft.data._prose import prose

DOC = """Compute the mean of :func:`~numpy.random.values` along ``axis``.

.. math:: x = y

Parameters
----------
a, b : array_like
    The first of the arrays that are to be averaged,
    as `float64`.
keepdims : bool, optional

    .. versionadded:: 1.2 It is kept for the old code that needs it.

See Also
--------
median : The middle of the values in an array.

Notes
-----
The result is **not** exact [1]_. It is used as follows::

    mean(x)  # this is not for the eyes of the reader

.. code-block:: python

    this is code that is in the text

- a bullet is a paragraph of its own, too.

References
----------
.. [1] A. Author, "The book of the means", 1999.

Examples
--------
The mean of a list is a number:

>>> mean([1, 2])
1.5 is the mean of the list
"""

GOOGLE = """Scale the updates by a number that is fixed.

Args:
  rate (float): the number by which the
    updates are scaled.
  x: y

Returns:
  A pair of functions that can be used as usual.
"""


def test_prose_of_a_numpy_style_docstring():
    assert prose(DOC) == [
        "Compute the mean of values along axis.",
        "The first of the arrays that are to be averaged, as float64.",
        "It is kept for the old code that needs it.",
        "The result is not exact. It is used as follows:",
        "a bullet is a paragraph of its own, too.",
        "The mean of a list is a number:",
    ]


def test_prose_of_a_google_style_docstring():
    assert prose(GOOGLE) == [
        "Scale the updates by a number that is fixed.",
        "the number by which the updates are scaled.",
        "A pair of functions that can be used as usual.",
    ]


SAME = "This is the text that both of the libraries have in common, word for word, and it tells nothing."


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two little libraries of 40 modules with three paragraphs each, and a cache of their own."""
    for library in ("alpha", "beta"):
        for i in range(40):
            number = " ".join(
                ["one", "two", "three", "four", "five"][int(d) % 5] for d in f"{i:06b}"
            ) + "." * (i % 2)
            lines = [
                f"{part} of {library} is in {number}, open to all the others who have it."
                for part in ("First", "Last")
            ]
            path = tmp_path / "site" / f"tiny_{library}" / f"m{i}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f'"""{lines[0]}\n\n{SAME}"""\ndef f():\n    """{lines[1]} """\nraise SystemExit("imported")\n'
            )
        (path.parent / "__init__.py").write_text("")
        (path.parent / "broken.py").write_text(
            '"""This is a file that is not Python but its text is read."""\ndef'
        )
        (path.parent / "tests").mkdir()
        (path.parent / "tests" / "t.py").write_text(
            '"""This is a test and the text of a test is not in the corpus."""'
        )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(_docstrings, "PACKAGES", {"tiny_alpha": "", "tiny_beta": ""})
    monkeypatch.setattr(_blanks, "MOST", {"train": 5, "dev": 2, "test": 3})
    monkeypatch.setenv("PTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(where: str, labels: tuple[str, ...] = ()) -> data.Source:
    return data.load(f"corpus:{where}", config.resolve({}, data.SPEC), labels)


def test_harvest_reads_all_modules_in_order_and_no_paragraph_twice(tiny):
    modules = corpus.harvest()
    assert modules == corpus.harvest()
    assert [m.path for m in modules[:2]] == ["tiny_alpha/broken.py", "tiny_alpha/m0.py"]
    found = [p for m in modules for p in m.paragraphs]
    assert len(found) == len(set(found)) and found.count(SAME) == 1
    assert not any("not in the corpus" in p for p in found)


def test_labelled_splits_share_no_module_and_no_text(tiny):
    splits = {s: load(f"blanks@{s}") for s in ("train", "dev", "test")}
    modules = {s: {r["where"] for r in source.records} for s, source in splits.items()}
    texts = {s: {r["text"] for r in source.records} for s, source in splits.items()}
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not modules[a] & modules[b] and not texts[a] & texts[b]
    documents = load("documents@train").records
    pretraining = {r["where"] for r in documents}
    assert not pretraining & (modules["dev"] | modules["test"])
    assert pretraining >= modules["train"]
    known = {s for r in documents for s in r["sentences"]}
    for name, source in splits.items():
        assert source.labels == _blanks.BLANKS
        whole = [r["text"].replace("___", source.labels[r["label"]]) for r in source.records]
        assert {s in known for s in whole} == {name == "train"}
        counts = [sum(r["label"] == k for r in source.records) for k in range(4)]
        assert len(set(counts)) == 1 and 1 <= counts[0] <= _blanks.MOST[name]


def test_a_sentence_of_two_splits_is_in_none():
    said = tuple(
        f"{word} is one of the words that are given to the many of us." for word in ("This", "That", "It")
    )
    modules = [_docstrings.Module(f"m{i}", said) for i in range(40)]
    assert set(_blanks.held_out(modules).values()) == {"dev", "test"}
    assert not any(_blanks.blanks(modules).values())


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It returns a number of rows that are open.", ("It returns a number ___ rows that are open.", "of")),
        ("The number of rows.", None),  # too short
        (f"It is one of the {'very ' * 20} long ones.", None),
        ("It returns a number (of rows) that are open.", None),  # no whole word
        ("It returns a number of rows that are ___ open.", None),
    ],
)
def test_one_word_is_taken_out(sentence, expected):
    assert _blanks.blanked(sentence) == expected


def test_strings_that_stand_alone_are_read_whatever_else_has_quotes(tmp_path):
    file = tmp_path / "m.py"
    file.write_text(
        '# it\'s """ a comment\nx = "\'\'\' no"\ny = """no\n"""\nr\'\'\'raw \\d\'\'\'\n'
        'add_newdoc("f", "g",\n    """\n    Added\\tlater."""\n)\nz = f"""{x}"""\n"""Last \\""" one."""\n'
    )
    assert _docstrings._docs(file) == ["raw \\d", "\n    Added\tlater.", 'Last """ one.']


def test_documents_are_modules_in_sentences(tiny):
    document = next(r for r in load("documents@train").records if len(r["sentences"]) > 1)
    assert document["where"].startswith("tiny_")
    assert document["sentences"][0].startswith("First of") and document["sentences"][-1].startswith("Last of")


def test_prepared_once_the_same_again_and_anew_for_another_environment(tiny, monkeypatch):
    first, folder = load("blanks@train"), corpus.prepare()
    harvest = corpus.harvest
    monkeypatch.setattr(corpus, "harvest", lambda: 1 / 0)
    assert load("blanks@train").fingerprint == first.fingerprint
    monkeypatch.setattr(corpus, "_versions", lambda: ["another"])
    with pytest.raises(ZeroDivisionError):
        corpus.prepare()
    assert list(tiny.iterdir()) == [folder]  # nothing half-made stays
    monkeypatch.setattr(corpus, "harvest", harvest)
    assert corpus.prepare() != folder
    assert load("blanks@train").fingerprint == first.fingerprint


def damage(folder, how):
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        if how == "cut" and "array_record" in file.name:
            file.write_bytes(file.read_bytes()[:-10])
        elif how == "deleted" or (how == "of an older ptft" and file.name == corpus.FILES):
            file.unlink()
        elif how == "a broken list" and file.name == corpus.FILES:
            file.write_text("[")


@pytest.mark.parametrize("how", ["cut", "deleted", "of an older ptft", "a broken list"])
def test_a_damaged_folder_is_prepared_anew(tiny, capsys, how):
    first, folder = load("blanks@train"), corpus.prepare()
    damage(folder, how)
    capsys.readouterr()
    assert load("blanks@train").fingerprint == first.fingerprint
    assert f"{folder} is not as this ptft prepares it" in capsys.readouterr().out
    assert corpus.prepare() == folder and not capsys.readouterr().out and list(tiny.iterdir()) == [folder]


def test_a_damaged_folder_that_cannot_be_replaced_is_said(tiny, monkeypatch):
    folder = corpus.prepare()
    (folder / corpus.FILES).unlink()
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.raises(UserError, match="is damaged and cannot be replaced: delete it"):
        corpus.prepare()


def test_two_processes_may_prepare_at_once(tiny, monkeypatch):
    harvest = corpus.harvest

    def other_is_faster():
        monkeypatch.setattr(corpus, "harvest", harvest)
        corpus.prepare()
        return harvest()

    monkeypatch.setattr(corpus, "harvest", other_is_faster)
    folder = corpus.prepare()
    assert list(tiny.iterdir()) == [folder]
    assert load("documents@train").records


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("documnts@train", "did you mean 'documents'"),
        ("blanks@tset", "did you mean 'test'"),
        ("blanks", "there is: dev, test, train"),
    ],
)
def test_mistakes_are_said_clearly(tiny, where, message):
    with pytest.raises(UserError, match=message):
        load(where)
