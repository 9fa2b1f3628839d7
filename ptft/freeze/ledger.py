"""Proof of a freeze: what every parameter was before a run and what it is after, leaf by leaf.

A frozen leaf must be the same to the bit; a trainable leaf must have moved, and one that did not is named;
the optimizer's state must be that of the trainable leaves, and of nothing else.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ptft.core import mesh
from ptft.core.tree import Flat
from ptft.freeze.resolve import Plan

# (trainable, the same as before) -> what is said of it
VERDICTS = {
    (True, True): "trainable, but did not move",
    (True, False): "moved",
    (False, True): "frozen, the same",
    (False, False): "frozen, but moved",
}


def digest(x: Any) -> str:
    """SHA-256 of an array's dtype, shape and bytes, its first 16 digits."""
    x = mesh.to_host(x)
    return hashlib.sha256(
        f"{x.dtype}{list(x.shape)}".encode() + np.ascontiguousarray(x).tobytes()
    ).hexdigest()[:16]


def digest_of(params: Mapping[str, Any]) -> str:
    """One digest of many named arrays, whatever their order."""
    return hashlib.sha256("".join(f"{n} {digest(params[n])}\n" for n in sorted(params)).encode()).hexdigest()[
        :16
    ]


def optimizer_names(opt: Any, stand_ins: bool = False) -> set[str]:
    """Every parameter that has state in an optimizer's tree. `stand_ins`: or an empty tuple in the place of
    it, such as the MaskedNode of optax.masked, which code that maps over leaves trips over."""
    paths = jax.tree_util.tree_leaves_with_path(
        opt, is_leaf=(lambda x: isinstance(x, tuple) and not x) if stand_ins else None
    )
    keys = {str(k.key) for path, _ in paths for k in path if isinstance(k, jax.tree_util.DictKey)}
    # others are an optimizer's own, such as the labels of optax.partition
    return {key for key in keys if "/" in key}


def make(plan: Plan, before: Flat, after: Flat, opt: Any, last: Plan | None = None) -> dict[str, Any]:
    """The ledger of a run: a row a leaf, and what is wrong, if anything is.

    Args:
      plan: what was trainable in any phase; `last`: in the last one, whose optimizer state this is. None: the
        same.
      before, after: all parameters, at step 0 and at the end.
      opt: the optimizer's state at the end.
    Returns:
      `{"rows": [{name, shape, size, rule, rate, before, after, change, relative, drift, verdict}],
      "frozen_moved": [...], "not_moved": [...], "optimizer": {"extra": [...], "missing": [...]}, "holds":
      bool}`; `change` is the largest absolute change of an element, `relative` its ratio to the largest
      element before, `drift` |after - before| / |before| (Euclidean).
    """
    rows = [_row(r.name, r.pattern, r.lr_mult, before[r.name], after[r.name]) for r in plan.rows]
    trainable, state = set((last or plan).trainable), optimizer_names(opt)
    frozen_moved = [r["name"] for r in rows if r["verdict"] == "frozen, but moved"]
    optimizer = {
        "extra": sorted(optimizer_names(opt, stand_ins=True) - trainable),
        "missing": sorted(trainable - state) if state else [],
    }
    return {
        "rows": rows,
        "frozen_moved": frozen_moved,
        "not_moved": [r["name"] for r in rows if r["verdict"] == "trainable, but did not move"],
        "optimizer": optimizer,
        "holds": not (frozen_moved or any(optimizer.values())),
    }


def _row(name: str, rule: str, rate: float, before: Any, after: Any) -> dict[str, Any]:
    a, b = mesh.to_host(before), mesh.to_host(after)
    same = digest(a) == digest(b)
    change = 0.0 if same else float(np.abs(b.astype(np.float64) - a).max())
    norm = float(np.linalg.norm(a.astype(np.float64)))
    drift = float(np.linalg.norm(b.astype(np.float64) - a)) / norm if norm else None
    drift = 0.0 if same else drift
    largest = float(np.abs(a).max()) if a.size else 0.0
    verdict = VERDICTS[bool(rate), same]
    return {
        "name": name, "shape": list(a.shape), "size": a.size, "rule": rule, "rate": rate, "before": digest(a),
        "after": digest(b),
        "change": change, "relative": change / largest if largest else None, "drift": drift,
        "verdict": verdict,
    }  # fmt: skip


def describe(ledger: Mapping[str, Any], unread: tuple[str, ...] = ()) -> str:
    """One line, and a line for each thing that is wrong or odd.

    Args:
      unread: how the names of parameters begin that the objective does not read.
    """
    rows, optimizer = ledger["rows"], ledger["optimizer"]
    moved, frozen = (sum(r["verdict"] == v for r in rows) for v in ("moved", "frozen, the same"))
    not_moved = {n: n.startswith(unread) for n in ledger["not_moved"]}
    odd = {
        "did not move, as the objective does not read it": [
            n for n, expected in not_moved.items() if expected
        ],
        "WARNING: trainable, but did not move": [n for n, expected in not_moved.items() if not expected],
        "ERROR: frozen, but moved": ledger["frozen_moved"],
        "WARNING: phases that never began": [
            p["strategy"] for p in ledger.get("phases", ()) if p["began"] is None
        ],
        **{f"ERROR: optimizer state that is {what}": names for what, names in optimizer.items()},
    }
    said = [f"  {what}: {', '.join(map(str, names))}" for what, names in odd.items() if names]
    return "\n".join(
        [f"freeze ledger: {moved} tensors moved, {frozen} frozen and the same to the bit", *said]
    )
