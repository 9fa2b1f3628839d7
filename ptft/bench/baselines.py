"""Rows of reference without a network: the most frequent class, and TF-IDF features under a logistic regression.

Both see exactly the training examples of their cell, and are scored as the runs are. TF-IDF: words and pairs of words,
sublinear counts; the strength of the regularization is chosen on dev (Wang & Manning 2012, Baselines and Bigrams, ACL, is why such
a row belongs beside every network).
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ptft import build, data, pipeline, record
from ptft.bench.results import higher_is_better
from ptft.config import Config, digest

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
WORD = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+"  # a Chinese character is a word

Score = Callable[[np.ndarray], np.ndarray]  # texts -> log probabilities f64[N, k]
Split = tuple[list[str], np.ndarray]


class Unavailable(Exception):
    """Why a reference has no row here: nobody's mistake, and no failure."""


def run(kind: str, config: Config, metric: str) -> dict[str, Any]:
    """The result of a reference, in the form of a run's.

    Raises:
      Unavailable: scikit-learn is not there.
    """
    loaded = build.load_data(config)
    objective = build.net(config, loaded.tokenizer, loaded.labels).objective
    splits = _splits(config, loaded.labels)
    texts, labels = splits["train"]
    chosen = pipeline.subset(len(texts), config.data.train_size, config.seed)
    train = [texts[i] for i in chosen], labels[chosen]
    if kind == "majority":
        predict, notes = _majority(train[1], len(loaded.labels)), dict[str, Any]()
    else:
        predict, notes = _tfidf(train, splits.get("dev"), len(loaded.labels), functools.partial(_scores, objective), metric)
    scored: dict[str, Any] = {
        split: _scores(objective, predict(splits[split][0]), splits[split][1]) for split in ("dev", "test") if split in splits
    }
    return {
        **scored, "notes": notes, "config_hash": digest(config), "versions": {**record.versions(), **_sklearn()}, "device": record.device(),
        "data": {"fingerprint": loaded.fingerprint, "train_rows": len(chosen)},
    }  # fmt: skip


def records(config: Config, names: tuple[str, ...] = ()) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What every split holds; of dev, as much as is looked at. `names`: of the labels, where they are known."""
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    for split in ("train", "dev", "test"):
        if where := config.data[split]:
            source = data.load(where, config.data, names)
            names = names or source.labels
            found[split] = source.records
            if split == "dev":
                labels = np.asarray([r["label"] for r in source.records]) if source.labels and "label" in source.records[0] else None
                found[split] = [source.records[i] for i in pipeline.looked_at(len(source.records), config.data.dev_size, labels)]
    return found


def _splits(config: Config, names: tuple[str, ...]) -> dict[str, Split]:
    """Texts and labels of every split; the two texts of a pair are joined."""
    return {
        split: (["\n".join(r[k] for k in ("text", "text_b") if k in r) for r in rows], np.asarray([r["label"] for r in rows], np.int32))
        for split, rows in records(config, names).items()
    }


def _scores(objective: Any, log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The objective's own metrics."""
    batch = {"label": jnp.asarray(labels), "valid": jnp.ones(len(labels), jnp.float32)}
    return objective.report(objective.terms(jnp.asarray(log_probabilities, jnp.float32), batch))


def _majority(labels: np.ndarray, k: int) -> Any:
    counts = np.bincount(labels, minlength=k) + 1.0  # a class that the subset lacks is not impossible
    return lambda texts: np.tile(np.log(counts / counts.sum()), (len(texts), 1))


def _tfidf(
    train: Split, dev: Split | None, k: int, score: Callable[[np.ndarray, np.ndarray], Mapping[str, float]], metric: str
) -> tuple[Any, dict[str, Any]]:
    """The classifier, and what was chosen; without dev, the default strength."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise Unavailable("scikit-learn is not installed; run: pip install 'ptft[bench]'") from None
    words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True)
    features, fits = words.fit_transform(train[0]), {}
    present = np.unique(train[1])
    if len(present) < 2:
        return _majority(train[1], k), {"C": None, "why": "the training examples are of one class"}

    def predict(model: Any, texts: list[str]) -> np.ndarray:
        out = np.full((len(texts), k), -50.0)  # a class that was not seen
        out[:, present] = model.predict_log_proba(words.transform(texts))
        return out

    for strength in STRENGTHS if dev else (1.0,):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps are enough, or the strength is no good
            fits[strength] = LogisticRegression(C=strength, max_iter=1000).fit(features, train[1])
    on_dev = {c: score(predict(fit, dev[0]), dev[1])[metric] for c, fit in fits.items()} if dev else dict.fromkeys(fits, 0.0)
    best = (max if higher_is_better(metric) else min)(on_dev, key=lambda c: on_dev[c])
    return functools.partial(predict, fits[best]), {"C": best}


def _sklearn() -> dict[str, str]:
    try:
        import sklearn
    except ImportError:
        return {}
    return {"scikit-learn": sklearn.__version__}
