"""Strategies that change with time: each gets the blocks' number and the run's length, and returns `[(start,
strategy)]`."""

import random

from ptft.core.errors import UserError
from ptft.freeze.strategies import Span, changes


@changes("gradual", "gradual=EVERY")
def gradual(argument: str, depth: int, span: Span) -> list[tuple[str, str]]:
    """the head, then one block more at a time from the top, the embeddings last, in equal parts of the run,
    or a block more every EVERY (a duration, a share, or plateau,N) (gradual unfreezing: Howard & Ruder 2018,
    arXiv 1801.06146; gradual@ulmfit is their recipe)"""
    every, _, waits = argument.partition(",")
    chosen = ["head", *(f"top-{k}" for k in range(1, depth + 1)), "full"]
    if every == "plateau":
        return list(zip(["0"] + [f"plateau={waits}"] * (depth + 1), chosen, strict=True))
    try:
        length = span.steps(argument) if argument else span.total / len(chosen)
    except UserError as e:
        raise UserError(f"{e}; or gradual=plateau,N") from None
    if not length:
        raise UserError(f"{argument!r} is no step at all")
    return [(str(round(i * length)), one) for i, one in enumerate(chosen)]


@changes("lisa=K,EVERY")
def lisa(argument: str, depth: int, span: Span) -> list[tuple[str, str]]:
    """the embeddings, the head and K blocks, drawn anew every EVERY (Pan et al. 2024, arXiv 2403.17919)"""
    k, _, length = argument.partition(",")
    if not length or not k.isdecimal() or not 1 <= int(k) <= depth:
        raise UserError(f"expected lisa=K,EVERY with 1 to {depth} blocks at a time, such as lisa=2,50 steps")
    every = span.steps(length)
    if every < 1:
        raise UserError(f"{length!r} is no step at all")
    draws = random.Random(span.seed)
    sets = [sorted(draws.sample(range(depth), int(k))) for _ in range(0, span.total, every)]
    return [
        (str(i * every), f"embeddings+layers={','.join(map(str, blocks))}") for i, blocks in enumerate(sets)
    ]
