"""What a step costs, from the compiled program itself."""

import re
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """FLOPs of one step, and bytes on a device: arguments (parameters, optimizer state, batch) and temporaries. None: not known."""

    flops: float | None
    argument_bytes: int | None
    temp_bytes: int | None


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
    return Cost(flops, memory and memory.argument_size_in_bytes, memory and memory.temp_size_in_bytes)


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
