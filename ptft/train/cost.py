"""What a plan costs before it runs: from the compiled step itself, and beside it from a formula.

The two check each other: a backward pass that a mistake keeps alive shows in the compiled step and not in the formula.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """FLOPs of one step, and bytes on a device. None: not known."""

    flops: float | None
    argument_bytes: int | None  # parameters, optimizer state, batch
    temp_bytes: int | None  # activations, gradients and whatever else lives during the step
    peak_bytes: int | None = None  # all of them at once; what is updated in place counts once


def of(compiled: jax.stages.Compiled, accumulate: int = 1, devices: int = 1) -> Cost:
    """The cost of a compiled step of `accumulate` parts over `devices`: FLOPs of all of them, bytes of one.

    XLA counts the body of a loop once. The loop over parts is undone here; any other loop around matrix products, such
    as an LSTM's over time, makes the FLOPs unknown rather than wrong. Loops without any, such as those of the random
    bits, count for nothing.
    """
    memory = compiled.memory_analysis()
    loops = _matmul_loops(compiled.as_text() or "")
    analysis: Any = compiled.cost_analysis() or {}
    known = loops == 0 or (accumulate > 1 and loops == 1)
    flops = float(analysis["flops"]) * accumulate * devices if known and "flops" in analysis else None
    if not memory:
        return Cost(flops, None, None)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Cost(flops, arguments, temporaries, arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes)


def _matmul_loops(hlo: str) -> int:
    """How many while loops of an HLO module have a matrix product in their body."""
    parts = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ [^\n]*\{\n)", hlo)
    bodies = {m[1]: part for part in parts if (m := re.match(r"(?:ENTRY )?%?([\w.\-]+)", part.lstrip()))}

    def multiplies(name: str, seen: frozenset[str] = frozenset()) -> bool:
        text = bodies.get(name, "")
        # A backend may hand products to a library (cuBLAS, oneDNN); other custom calls, such as TopK, are none.
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
        flops += f", {cost.argument_bytes / 2**20:.0f} MiB state and batch, {(cost.temp_bytes or 0) / 2**20:.0f} MiB temporaries"
    return f"a step costs {flops}"


class Bytes(NamedTuple):
    """What a plan keeps in a device's memory, and on disk."""

    parameters: int
    gradients: int
    optimizer: int
    checkpoint: int  # what is saved of the parameters, and optimizer state, before compression


def size(tree: Any) -> int:
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def of_plan(inside: Mapping[str, Any], kept: Mapping[str, Any], opt: Any, stored: Mapping[str, Any]) -> Bytes:
    """Bytes that follow from shapes alone: of what moves, of what is frozen as the devices keep it, of the optimizer's state, and of
    the parameters that a checkpoint stores."""

    moving, state = size(dict(inside)), size(opt)
    return Bytes(moving + size(dict(kept)), moving, state, size(dict(stored)) + state)


# Where in a block a module computes; what lies before the lowest leaf that moves needs no gradient of its input.
_ORDER = {"attention_norm": 0, "query": 1, "key": 1, "value": 1, "out": 2, "ffn_norm": 3, "up": 4, "gate": 4, "down": 5}
_AFTER = {"attention_norm": 2.5, "ffn_norm": 6}  # of a model that normalizes what has been added, not what goes into a layer


class Products(NamedTuple):
    """FLOPs of the matrix products of one step, pass by pass."""

    forward: float
    activations: float  # gradients that pass through to lower layers
    weights: float

    @property
    def total(self) -> float:
        return sum(self)


def analytic(
    shapes: Mapping[str, Any], moving: Sequence[str], groups: Mapping[str, str], batch: int, seq_len: int, predictions: int = 0
) -> Products:
    """The matrix products that a step of a Transformer encoder needs, and no others (after Kaplan et al. 2020, arXiv 2001.08361, 2.1).

    A product y = x w of n rows costs 2 n |w| forward, as much for the gradient of w if w moves, and as much for that of x
    if anything moves below. The attention's own two products pass a gradient on if the queries, keys or values, or
    anything below them, move.

    What is added counts by its own matrices; a token that is a prompt's is one more in every row, a prefix's one more to attend
    to; FISH needs the gradient of the whole tensor.

    Args:
      shapes: all parameters.
      moving: the names of those that move.
      predictions: masked positions a row, of a head that is tied to the word table; 0: the head reads the pooled output.
    """
    order = _ORDER if any(n.startswith("backbone/final_norm/") for n in shapes) else _ORDER | _AFTER
    depth = max((int(m[1]) + 1 for n in shapes if (m := re.search(r"backbone/block_(\d+)/", n))), default=0)

    def place(name: str) -> tuple[float, float]:
        if name.startswith("head/"):
            return depth + 2, "decoder" in name
        if re.fullmatch(groups["stem"], name.replace("adapter/", "backbone/", 1)):
            return 0, 0
        block = re.search(r"/block_(\d+)/", name)
        before = 0.5 * name.endswith("/down/ia3/factor")  # it multiplies what goes into the module, all others what comes out
        return (int(block[1]) + 1, max(order.get(part, 0) for part in name.split("/")) - before) if block else (depth + 1, 0)

    lowest = min(map(place, moving))
    chosen = set(moving) | {
        n.replace("adapter/", "backbone/", 1).removesuffix("/fish/values") for n in moving if n.endswith("/fish/values")
    }
    vectors = {n: s.shape[0] for n, s in shapes.items() if n.endswith(("/prompt/vectors", "/prefix/vectors"))}
    length = seq_len + sum(k for n, k in vectors.items() if "/prompt/" in n)
    forward = activations = weights = 0.0

    def product(rows: int, size: float, moves: bool, passes_on: bool) -> None:
        nonlocal forward, activations, weights
        forward += 2 * rows * size
        weights += 2 * rows * size * moves
        activations += 2 * rows * size * passes_on

    for name, leaf in shapes.items():
        if name.endswith("/kernel"):
            in_rows = name.startswith("backbone/block_") or "/project/" in name or name.startswith("head/tagger")
            one = predictions if "transform" in name else 1
            rows = batch * (length if in_rows else one)
            product(rows, math.prod(leaf.shape), name in chosen, place(name) > lowest)
        elif name.startswith("adapter/") and name.endswith(("/a", "/b", "_kernel")):
            site = name.rpartition("/")[0].rpartition("/")[0].replace("adapter/", "backbone/", 1)
            first = name.endswith(("/a", "/down_kernel"))
            below = place(name) > lowest or (name.endswith("/down_kernel") and not chosen.isdisjoint({f"{site}/kernel", f"{site}/bias"}))
            product(batch * length, math.prod(leaf.shape), name in chosen, below or (not first and place(name) >= lowest))
        elif name.endswith("/lora/magnitude"):  # DoRA's lengths are those of the whole matrix, x or no x
            a, b = (shapes[name.removesuffix("magnitude") + part] for part in "ab")
            forward += 2 * math.prod(a.shape) * b.shape[1]
        if name.endswith("/value/kernel"):
            seen = length + vectors.get(name.replace("backbone/", "adapter/", 1).removesuffix("kernel") + "prefix/vectors", 0)
            product(2 * batch * length, seen * leaf.shape[1], False, place(name) >= lowest)
            activations += 4 * batch * length * seen * leaf.shape[1] * (place(name) >= lowest)
        if predictions and name.endswith(("word/embedding", "embeddings/embedding")):
            product(batch * predictions, math.prod(leaf.shape), name in chosen, (depth + 2, 1) > lowest)
    return Products(forward, activations, weights)
