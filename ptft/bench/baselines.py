"""Rows of reference that train no network: the most frequent class, and logistic regressions on TF-IDF and on
frozen features.

All see exactly the training examples of their cell, and are scored as the runs are. TF-IDF: words and pairs
of words, sublinear counts (Wang & Manning 2012, Baselines and Bigrams, ACL, is why such a row belongs beside
every network). Frozen features: what the pretrained encoder gives (`ptft.bench.features`), each standardized.
Which features, and how strong the regularization is, is chosen on dev, or without dev by cross-validation
within the training examples.
"""

import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ptft import data, objectives
from ptft.bench import features
from ptft.bench.cell_result import CellResult
from ptft.core import record
from ptft.core.config import Config, digest
from ptft.core.errors import install
from ptft.train import build, dataset, pipeline

# scikit-learn's C: small is strong
STRENGTHS = {"tfidf": (0.1, 1.0, 10.0, 100.0), "features": (0.001, 0.01, 0.1, 1.0)}
USUAL = {"tfidf": 1.0, "features": 0.01}  # where there are too few examples to choose by
FOLDS = 5
MANY = 2000  # examples, of which one fifth held out says enough
LEAST = -50.0  # log probability of a class that no training example had
WORD = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+"  # a Chinese character is a word

# log probabilities f64[N, k], labels -> the higher, the better
Merit = Callable[[np.ndarray, np.ndarray], float]


class Unavailable(Exception):
    """Why a reference has no row here: nobody's mistake, and no failure."""


def run(kind: str, config: Config, metric: str) -> CellResult:
    """The result of a reference.

    Raises:
      Unavailable: scikit-learn is not there, or no text has a word.
    """
    loaded = dataset.load_data(config)
    objective = build.net(config, loaded.tokenizer, loaded.labels).objective
    score = functools.partial(_scores, objective)
    sign = -1 if objectives.falls(objective, metric) else 1
    rows = records(config)
    index = {split: np.arange(len(its)) for split, its in rows.items()}
    index["train"] = pipeline.subset(len(rows["train"]), config.data.train_size, config.seed)
    labels = {
        split: np.asarray([rows[split][i]["label"] for i in its.tolist()], np.int32)
        for split, its in index.items()
    }
    notes: dict[str, Any] = {}
    if kind == "tfidf" and not _words(map(_text, rows["train"])):
        raise Unavailable("no training text has a word")
    if kind == "majority":
        said = _majority(labels, len(loaded.labels))
    elif len(np.unique(labels["train"])) < 2:
        said, notes = (
            _majority(labels, len(loaded.labels)),
            {"C": None, "why": "the training examples are of one class"},
        )
    elif not _sklearn():
        raise Unavailable(f"scikit-learn is not installed; {install('bench')}")
    else:
        views = features.of(config, index) if kind == "features" else {"": _texts(rows, index)}
        said, notes = _regression(
            kind, views, labels, len(loaded.labels), lambda its, truth: sign * score(its, truth)[metric]
        )
    scores = {split: score(its, labels[split]) for split, its in said.items()}
    return CellResult(
        dev=scores.get("dev"),
        test=scores.get("test"),
        lower_is_better=sorted(objective.lower_is_better),
        config_hash=digest(config),
        versions={**record.versions(), **_sklearn()},
        device=record.device(),
        data={"fingerprint": loaded.fingerprint, "train_rows": len(index["train"])},
        notes=notes,
    )


def records(config: Config) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What every split holds; of dev, as much as is looked at."""
    sources = _sources(dataset.sources_of(config.data))
    splits = {split: source.records for split, source in sources.items()}
    if dev := splits.get("dev"):
        labels = (
            np.asarray([r["label"] for r in dev]) if sources["dev"].labels and "label" in dev[0] else None
        )
        splits["dev"] = [dev[i] for i in pipeline.looked_at(len(dev), config.data.dev_size, labels)]
    return splits


@functools.lru_cache(maxsize=2)
def _sources(options: Config) -> dict[str, data.Source]:
    return dataset.read_sources(options)


def _texts(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], index: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {
        split: np.asarray([_text(rows[split][i]) for i in its.tolist()], object)
        for split, its in index.items()
    }


def _text(record: Mapping[str, Any]) -> str:
    """The two texts of a pair are joined."""
    return "\n".join(record[k] for k in ("text", "text_b") if k in record)


def _words(texts: Iterable[str]) -> bool:
    """Whether there is any."""
    return any(re.search(WORD, text) for text in texts)


def _scores(objective: Any, log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The objective's own metrics."""
    batch = {"label": jnp.asarray(labels), "weight": jnp.ones(len(labels), jnp.float32)}
    return objective.metrics(objective.sums(jnp.asarray(log_probabilities, jnp.float32), batch))


def _majority(labels: Mapping[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    # a class that the subset lacks is not impossible
    counts = np.bincount(labels["train"], minlength=k) + 1.0
    return {
        split: np.tile(np.log(counts / counts.sum()), (len(its), 1))
        for split, its in labels.items()
        if split != "train"
    }


def _regression(
    kind: str,
    views: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    k: int,
    merit: Merit,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the best logistic regression says of dev and test, and what was chosen."""
    tried: dict[tuple[str, float], float] = {}
    fitted: dict[tuple[str, float], Any] = {}
    y = labels["train"]
    from threadpoolctl import threadpool_limits  # which scikit-learn brings

    # One thread: with few examples several take four times as long, as they wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1 if len(y) <= MANY else None):
        warnings.simplefilter("ignore")  # of too few steps or examples, which show in the score
        for view, x in views.items():
            models = _fit(kind, x["train"], y)
            fitted |= {(view, c): model for c, model in models.items()}
            if "dev" in x:
                judged, truth = (
                    {c: _log_probabilities(model, x["dev"], k) for c, model in models.items()},
                    labels["dev"],
                )
            else:
                judged, truth = _held_out(kind, x["train"], y, k)
            tried |= {(view, c): merit(its, truth) for c, its in judged.items()}
        best = max(tried, key=lambda one: tried[one]) if tried else (next(iter(views)), USUAL[kind])
        said = {
            split: _log_probabilities(fitted[best], its, k)
            for split, its in views[best[0]].items()
            if split != "train"
        }
    return said, {"C": best[1]} | ({"features": best[0]} if best[0] else {})


def _fit(kind: str, x: np.ndarray, y: np.ndarray) -> dict[float, Any]:
    """A classifier a strength; of a draw of texts without words, what the frequency of the classes says."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "tfidf" and not _words(x):
        return {c: DummyClassifier(strategy="prior").fit(x, y) for c in STRENGTHS[kind]}
    words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True)
    ready = (words if kind == "tfidf" else StandardScaler()).fit(x)
    shown = ready.transform(x)
    return {
        c: make_pipeline(ready, LogisticRegression(C=c, max_iter=1000).fit(shown, y)) for c in STRENGTHS[kind]
    }


def _held_out(kind: str, x: np.ndarray, y: np.ndarray, k: int) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """What classifiers of each strength say of training examples that they have not seen, and their labels;
    of none, where there are too few to hold any out."""
    from sklearn.model_selection import StratifiedKFold

    # as many of it as there are folds, at least, leave two classes in each
    second = int(np.sort(np.bincount(y))[-2])
    if second < 2:
        return {}, y
    parts = StratifiedKFold(min(FOLDS, second), shuffle=True, random_state=0).split(y, y)
    folds: list[tuple[np.ndarray, dict[float, np.ndarray]]] = []
    for rest, held in itertools.islice(parts, FOLDS if len(y) <= MANY else 1):
        folds.append(
            (held, {c: _log_probabilities(m, x[held], k) for c, m in _fit(kind, x[rest], y[rest]).items()})
        )
    joined = {c: np.concatenate([said[c] for _, said in folds]) for c in STRENGTHS[kind]}
    return joined, y[np.concatenate([held for held, _ in folds])]


def _log_probabilities(model: Any, x: np.ndarray, k: int) -> np.ndarray:
    out = np.full((len(x), k), LEAST)
    out[:, model.classes_] = np.maximum(model.predict_log_proba(x), LEAST)
    return out


def _sklearn() -> dict[str, str]:
    try:
        import sklearn
    except ImportError:
        return {}
    return {"scikit-learn": sklearn.__version__}
