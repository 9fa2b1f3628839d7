"""Named tasks: the `data` section of a config for GLUE, IMDb and ChnSentiCorp."""

from typing import NamedTuple

from ml_collections import ConfigDict

from ptft.core.errors import UserError, did_you_mean


class Task(NamedTuple):
    """Where a task's splits are, and which columns hold text, second text and label."""

    train: str
    dev: str
    test: str
    columns: tuple[str, str, str]
    header: bool = True


# In TFDS. GLUE's test splits have no labels: its validation split is the test here, as in published dev
# scores, and the last twentieth of train is dev.
_GLUE = {
    "cola": ("sentence", "", "label"),
    "sst2": ("sentence", "", "label"),
    "mrpc": ("sentence1", "sentence2", "label"),
    "qqp": ("question1", "question2", "label"),
    "mnli": ("premise", "hypothesis", "label"),
    "qnli": ("question", "sentence", "label"),
    "rte": ("sentence1", "sentence2", "label"),
    "wnli": ("sentence1", "sentence2", "label"),
}
TFDS = {
    name: Task(
        f"glue/{name}@train[:95%]",
        f"glue/{name}@train[95%:]",
        f"glue/{name}@validation" + ("_matched" if name == "mnli" else ""),
        columns,
    )
    for name, columns in _GLUE.items()
}
TFDS["imdb"] = Task(
    "imdb_reviews@train[:90%]", "imdb_reviews@train[90%:]", "imdb_reviews@test", ("text", "", "label")
)
# As files below one folder, in this layout; labels are 0 and 1, or the folders neg and pos. What has no dev
# split gives it the last tenth of train.
FILES = {
    "cola": Task(
        "cola/raw/in_domain_train.tsv",
        "cola/raw/in_domain_dev.tsv",
        "cola/raw/out_of_domain_dev.tsv",
        ("3", "", "1"),
        header=False,
    ),
    "sst2": Task("sst2_glue/train.tsv", "sst2_glue/dev.tsv", "sst2_glue/test.tsv", ("sentence", "", "label")),
    "mrpc": Task(
        "mrpc/msr_paraphrase_train.txt[:90%]",
        "mrpc/msr_paraphrase_train.txt[90%:]",
        "mrpc/msr_paraphrase_test.txt",
        ("#1 String", "#2 String", "Quality"),
    ),
    "rte": Task(
        "rte/train*.parquet[:90%]",
        "rte/train*.parquet[90%:]",
        "rte/validation*.parquet",
        ("sentence1", "sentence2", "label"),
    ),
    "imdb": Task("aclImdb/train", "aclImdb/val", "aclImdb/test", ("", "", "")),
    "chnsenticorp": Task(
        "chnsenticorp/train.tsv", "chnsenticorp/dev.tsv", "chnsenticorp/test.tsv", ("text_a", "", "label")
    ),
}
NAMES = {"sst2": ("negative", "positive"), "chnsenticorp": ("negative", "positive")}
FORMAT = {"mrpc": "tsv"}  # where the suffix does not tell


def data(task: str, root: str = "") -> ConfigDict:
    """The `data` section of a task: its files below `root`, or TFDS where `root` is empty; without a task
    nothing, for one's own table."""
    if not task:
        return ConfigDict()
    table = FILES if root else TFDS
    if task not in table:
        raise UserError(
            f"no task {task!r} {'as files' if root else 'in TFDS; root=DIR reads files'}; "
            f"{did_you_mean(task, table)}"
        )
    t = table[task]
    prefix = f"files:{root}/" if root else "tfds:"
    c = ConfigDict()
    c.train, c.dev, c.test = (where and prefix + where for where in (t.train, t.dev, t.test))
    c.text, c.text_b, c.label = t.columns
    c.header = t.header
    c.names = NAMES.get(task, ())
    if root:
        c.labels = ("neg", "pos") if task == "imdb" else ("0", "1")
        c.format = FORMAT.get(task, "auto")
    return c
