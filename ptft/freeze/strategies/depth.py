"""Learning rates after an @: each block's by its distance from the head. What is added to a block has the
rate of the block."""

from collections.abc import Mapping

from ptft.core.errors import UserError
from ptft.freeze.layout import Layout
from ptft.freeze.strategies import rates


@rates("decay=R")
def decay(model: Layout, factor: float) -> Mapping[str, float]:
    """the rate falls by the factor R a block from the head down (Clark et al. 2020, arXiv 2003.10555)"""
    if not 0 < factor <= 1:
        raise UserError(f"the rate {factor:g} is out of range; expected a factor above 0 and up to 1")
    levels = {n: model.level(n) for n in model.params if not n.startswith("head/")}
    return {n: factor ** (len(model.blocks) + 1 - level) for n, level in levels.items() if level is not None}


@rates("ulmfit")
def ulmfit(model: Layout) -> Mapping[str, float]:
    """the same with R = 1/2.6 (discriminative finetuning: Howard & Ruder 2018, arXiv 1801.06146)"""
    return decay(model, 1 / 2.6)
