"""Strategies by block, counted from the input; and tensors drawn at random, as a control."""

import random
from collections.abc import Iterable

from ptft.core import tree
from ptft.core.errors import UserError
from ptft.freeze.layout import Layout, Names
from ptft.freeze.strategies import trains


def _some(model: Layout, k: int, what: str, numbers: Iterable[int]) -> Names:
    depth = len(model.need_blocks())
    if not 1 <= k <= depth:
        raise UserError(f"the model has {depth} blocks; expected {what}-1 … {what}-{depth}")
    return model.some_blocks(numbers)


@trains("top-K")
def top(model: Layout, k: int) -> Names:
    """the K blocks nearest to the output, and the pooler (Lee et al. 2019, arXiv 1911.03090)"""
    depth = len(model.need_blocks())
    above = model.group("pooler") if "pooler" in model.anatomy.groups else frozenset[str]()
    return above | _some(model, k, "top", range(depth - k, depth))


@trains("bottom-K")
def bottom(model: Layout, k: int) -> Names:
    """the K blocks nearest to the input (surgical finetuning: Lee et al. 2022, arXiv 2210.11466)"""
    return _some(model, k, "bottom", range(k))


@trains("every-N")
def every(model: Layout, n: int) -> Names:
    """every N-th block, the last of each N (block expansion: Wu et al. 2024, arXiv 2401.02415)"""
    return _some(model, n, "every", range(n - 1, len(model.blocks), max(n, 1)))


@trains("layers=LIST")
def layers(model: Layout, blocks: list[int]) -> Names:
    """these blocks, numbered from 0 at the input: layers=0,2,5-7"""
    return model.some_blocks(blocks)


@trains("random=SHARE,SEED")
def at_random(model: Layout, share: float, seed: int) -> Names:
    """tensors drawn at random until they hold this share of the backbone: a control"""
    if not 0 < share <= 1:
        raise UserError(f"random={share:g},{seed}: expected a share above 0 and up to 1")
    backbone = {n: p for n, p in model.params.items() if n in model.backbone}
    order, enough, taken = list(backbone), share * tree.count(backbone), list[str]()
    random.Random(seed).shuffle(order)
    while tree.count({n: backbone[n] for n in taken}) < enough:
        taken.append(order.pop())
    return frozenset(taken)
