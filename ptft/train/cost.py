"""What a plan costs before it runs: from the compiled step itself, and beside it from a formula.

The two check each other: a backward pass that a mistake keeps alive shows in the compiled step and not in the
formula.
"""

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ptft.core.errors import UserError
from ptft.freeze import adapters
from ptft.freeze.adapters import Adapter
from ptft.freeze.layout import Layout, Names


class Cost(NamedTuple):
    """FLOPs of one step, and bytes on a device. None: not known."""

    flops: float | None
    argument_bytes: int | None  # parameters, optimizer state, batch
    temp_bytes: int | None  # activations, gradients and whatever else lives during the step
    peak_bytes: int | None = None  # all of them at once; what is updated in place counts once


def of(compiled: jax.stages.Compiled, accumulate: int = 1, devices: int = 1) -> Cost:
    """The cost of a compiled step of `accumulate` parts over `devices`: FLOPs of all of them, bytes of one.

    XLA counts the body of a loop once. The loop over parts is undone here; any other loop around matrix
    products, such as an LSTM's over time, makes the FLOPs unknown rather than wrong. Loops without any, such
    as those of the random bits, count for nothing.
    """
    memory = compiled.memory_analysis()
    loops = _matmul_loops(compiled.as_text() or "")
    analysis: Any = compiled.cost_analysis() or {}
    known = loops == 0 or (accumulate > 1 and loops == 1)
    flops = float(analysis["flops"]) * accumulate * devices if known and "flops" in analysis else None
    if not memory:
        return Cost(flops, None, None)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Cost(
        flops,
        arguments,
        temporaries,
        arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )


def _matmul_loops(hlo: str) -> int:
    """How many while loops of an HLO module have a matrix product in their body."""
    parts = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ [^\n]*\{\n)", hlo)
    bodies = {m[1]: part for part in parts if (m := re.match(r"(?:ENTRY )?%?([\w.\-]+)", part.lstrip()))}

    def multiplies(name: str, seen: frozenset[str] = frozenset()) -> bool:
        text = bodies.get(name, "")
        # A backend may hand products to a library (cuBLAS, oneDNN); other custom calls, such as TopK, are
        # none.
        if re.search(r" (?:dot|convolution)\(|custom_call_target=\"[^\"]*(?:gemm|matmul|conv)", text):
            return True
        called = set(re.findall(r"(?:calls|to_apply|body|fusion|computation)=%?([\w.\-]+)", text)) - seen
        return any(multiplies(c, seen | called | {name}) for c in called)

    return sum(multiplies(body) for body in re.findall(r" while\([^\n]*body=%?([\w.\-]+)", hlo))


def describe(cost: Cost, full: Cost | None = None) -> str:
    """One line; with `full`, also the share of the full step's FLOPs."""
    unknown = "an unknown number of FLOP (it loops over time, or runs under pmap)"
    flops = unknown if cost.flops is None else f"{cost.flops / 1e9:.3g} GFLOP"
    if full and full.flops and cost.flops is not None:
        flops += f" ({cost.flops / full.flops:.1%} of training everything)"
    if cost.argument_bytes is not None:
        flops += (
            f", {cost.argument_bytes / 2**20:.0f} MiB state and batch, {(cost.temp_bytes or 0) / 2**20:.0f} "
            "MiB temporaries"
        )
    return f"a step costs {flops}"


def size(tree: Any) -> int:
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Products(NamedTuple):
    """FLOPs of the matrix products of one step, pass by pass."""

    forward: float
    activations: float  # gradients that pass through to lower layers
    weights: float

    @property
    def total(self) -> float:
        return sum(self)


class Work(NamedTuple):
    """What a step computes of a model."""

    batch: int
    tokens: int  # of a row
    # module of the head -> rows of an example that it reads, in the order of computation; others read 1
    head: Mapping[str, int]
    added: Sequence[Adapter] = ()
    skipped: Names = frozenset()  # parameters that a step does not read


def analytic(model: Layout, trainable: Sequence[str], work: Work) -> Products:
    """The matrix products that a step of a Transformer needs, and no others (after Kaplan et al. 2020, arXiv
    2001.08361, 2.1).

    A product y = x w of n rows costs 2 n |w| forward, as much for the gradient of w if w is trainable, and as
    much for that of x if anything below is. The attention's own two products pass a gradient on if the
    queries, keys or values, or anything below them, are trainable. What is added counts by its own products,
    tokens and keys.
    """
    kinds, place = adapters.kinds(), {n: _place(n, model, work) for n in model.params}
    inside = {kinds[kind].inside(site) for site, kind, _ in map(adapters.split, _added(trainable))}
    step = _Step(model, work, {*trainable, *inside}, place, min(place[n] for n in trainable))
    total = Products(0.0, 0.0, 0.0)
    for part in (*map(step.own, model.params), *map(step.added, work.added)):
        for one in part:
            total = Products(*map(operator.add, total, one))
    return total


class _Step(NamedTuple):
    """What decides which products a step computes, and which gradients."""

    model: Layout
    work: Work
    chosen: set[str]  # the trainable parameters, and those that added ones change from the inside
    place: Mapping[str, tuple[float, float]]
    lowest: tuple[float, float]  # the place of the lowest trainable one

    @property
    def length(self) -> int:
        return self.work.tokens + sum(one.tokens for one in self.work.added)

    def rows(self, name: str) -> int | None:
        """Rows of an example that a parameter multiplies; None: it is in no product."""
        if name.startswith("head/"):
            return self.work.head.get(name.split("/")[1], 1) if name.endswith("/kernel") else None
        return self.model.rows(name, self.length)

    def above(self, module: str) -> tuple[float, float]:
        """The place of a module of the head."""
        return max(at for n, at in self.place.items() if n.startswith(f"head/{module}/"))

    def product(self, rows: int, size: float, trained: bool, passes_on: bool) -> Products:
        forward = 2 * self.work.batch * rows * size
        return Products(forward, forward * passes_on, forward * trained)

    def own(self, name: str) -> Iterator[Products]:
        """The products in which one of the model's own parameters takes part."""
        model, work, leaf = self.model, self.work, self.model.params[name]
        if name in work.skipped or name.startswith("adapter/"):
            return
        module, size, above = name.removesuffix("/kernel"), math.prod(leaf.shape), self.place[name]
        if rows := self.rows(name):
            yield self.product(rows, size, name in self.chosen, above > self.lowest)
        if module != name and model.inner(module) == model.anatomy.values:
            site = module.removeprefix("backbone/")
            seen = self.length + sum(one.seen(site) for one in work.added if site in dict(one.sites))
            # scores and their sums; each has two inputs, so that twice as much passes a gradient on
            both = self.product(2 * self.length, seen * leaf.shape[1], False, above >= self.lowest)
            yield both._replace(activations=2 * both.activations)
        # a module of the head without a kernel of its own multiplies by the word table
        tied = [m for m in work.head if f"head/{m}/kernel" not in model.params]
        for module in tied if name == model.anatomy.table else ():
            passes_on = self.above(module) > self.lowest
            yield self.product(work.head[module], size, name in self.chosen, passes_on)

    def added(self, one: Adapter) -> Iterator[Products]:
        """The products of an adapter, site by site."""
        for site, shape in one.sites:
            names = {leaf: f"adapter/{site}/{one.kind()}/{leaf}" for leaf, *_ in one.products(shape)}
            if not self.work.skipped.isdisjoint(names.values()):
                continue
            if lost := [leaf for leaf, name in names.items() if name not in self.place]:
                raise UserError(
                    f"{one.kind()}: products() names the leaf {lost[0]!r}, which init() does not make"
                )
            yield Products(one.flops(shape), 0.0, 0.0)
            own = not self.chosen.isdisjoint({f"backbone/{site}/kernel", f"backbone/{site}/bias"})
            for leaf, size, reads in one.products(shape):
                at = self.place[names[leaf]]
                above = at > self.lowest
                passes_on = {"input": above, "output": above or own, "own": at >= self.lowest}
                yield self.product(self.length, size, names[leaf] in self.chosen, passes_on[reads])


def _added(names: Iterable[str]) -> list[str]:
    return [n for n in names if n.startswith("adapter/")]


def _place(name: str, model: Layout, work: Work) -> tuple[float, float]:
    """Where in a forward pass a parameter is used; what lies before the lowest trainable one needs no
    gradient of its input."""
    depth = len(model.blocks)
    if name.startswith("head/"):
        module, order = name.split("/")[1], list(work.head)
        return depth + 2, order.index(module) if module in order else 0
    level = model.level(name)
    if level is None:
        return depth + 1, 0
    inner = model.inner(name)
    index: float = next(
        (i for i, pattern in enumerate(model.anatomy.order) if re.match(f"(?:{pattern})/", inner)), 0
    )
    if name.startswith("adapter/"):
        site, kind, _ = adapters.split(name)
        index -= 0.5 * adapters.kinds()[kind].before(site)
    return level, index
