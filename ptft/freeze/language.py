"""What moves: strategy names -> ordered rules -> a plan over parameter names.

A strategy speaks the groups that its model exports (`GROUPS`), never paths. The head is new in every finetuning and
always trained.

  full               everything
  head               the head alone (linear probe: Alain & Bengio 2016, arXiv 1610.01644)
  top-K              the K blocks nearest to the output, and the pooler (Lee et al. 2019, arXiv 1911.03090)
  bottom-K           the K blocks nearest to the input (surgical finetuning: Lee et al. 2022, arXiv 2210.11466)
  layers=LIST        these blocks, numbered from 0 at the input: layers=0,2,5-7
  every-N            every N-th block, counted from the input, the last of each N (block expansion: Wu et al. 2024, arXiv 2401.02415)
  embeddings         the embeddings alone
  freeze-embeddings  everything but the embeddings
  bitfit             all biases (Ben Zaken et al. 2021, arXiv 2106.10199)
  bitfit=LIST        the biases of these modules: bitfit=query,up is the subset of that paper
  layernorm          all LayerNorm scales and biases (Zhao et al. 2023, arXiv 2312.11420)
  attention          the attention matrices and their biases (Touvron et al. 2022, arXiv 2203.09795)
  ffn                the feed-forward matrices and their biases
  attention=LIST     those of these blocks, LIST as that of layers
  ffn=LIST           the same of the feed-forward matrices
  layernorm=LIST     the same of the LayerNorms
  pooler             what lies between the last block and the head
  random=SHARE,SEED  tensors drawn at random until they hold this share of the backbone: a control

Sets combine from left to right: `top-2+bitfit` trains what either trains, `top-2&bitfit` what both do, `full!embeddings`
the first without the second. Added parameters (`ptft.adapters`: lora=8, houlsby=32, ia3, prompt=16 …) are names like the
others: `lora=8+bitfit`. Learning rates follow after an @, each block's by its distance from the head:

  NAME@decay=R       the rate falls by the factor R a block from the head down (Clark et al. 2020, arXiv 2003.10555)
  NAME@ulmfit        the same with R = 1/2.6 (discriminative finetuning: Howard & Ruder 2018, arXiv 1801.06146)
  NAME@plus=R        R times the rate for LoRA's second matrix (LoRA+: Hayou et al. 2024, arXiv 2402.12354)

What moves may change with time. A start is a step, a duration, a share of the run, or `plateau=N`: N evaluations on dev
without a better best (a step after a plateau does not wait for it). What goes on moving keeps its optimizer state, what begins
has new state, what stops loses its.

  A; START: B; …     A from the first step, B from START on: `head; 20%: top-2; plateau=2: full`
  gradual            the head, then one block more at a time from the top, the embeddings last, in equal parts of the run
                     (gradual unfreezing: Howard & Ruder 2018, arXiv 1801.06146; `gradual@ulmfit` is their whole recipe)
  gradual=EVERY      a block more every EVERY (a duration or a share), or `gradual=plateau,N`
  lisa=K,EVERY       the embeddings, the head and K blocks, drawn anew every EVERY (Pan et al. 2024, arXiv 2403.17919)

What moves may be left to the data: `auto(budget=0.5 flops)` becomes one of the names above before training starts (`ptft.auto`).

A rule list says the same by hand: `[(pattern, action), …]`, full match, first wins, with the actions `freeze`, `train`,
`train(lr=F)` and `train(lr=F, wd=G)`: factors of the learning rate and of the weight decay. Phases of rule lists are
`[(start, rules), …]`.

Ties: with `mlm_nsp` the decoder is the word-embedding table, so whatever freezes or trains the embeddings does the same
to the decoder's matrix. A table that is trained gets both gradients, the decoder's and the embeddings'.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ptft.core import tree
from ptft.core.errors import UserError, did_you_mean

Rules = Sequence[tuple[str, str]]
HEAD = ("head/.*", "train")
REST = [("adapter/.*", "freeze"), ("backbone/.*", "freeze")]
NAMES = (
    "full", "head", "top-K", "bottom-K", "layers=LIST", "every-N", "embeddings", "freeze-embeddings", "bitfit", "bitfit=LIST", "layernorm",
    "attention", "ffn", "attention=LIST", "ffn=LIST", "layernorm=LIST", "pooler", "random=SHARE,SEED",
)  # fmt: skip
RATES = ("decay=R", "ulmfit", "plus=R")
TIMES = ("gradual", "gradual=EVERY", "lisa=K,EVERY")
AUTO = "auto(budget=SHARE UNIT)"
# kind of added parameter -> those of its tree that move
ADDED = {
    "lora": "adapter/.*/lora/.*", "houlsby": "adapter/.*/houlsby/.*", "pfeiffer": "adapter/.*/pfeiffer/.*", "ia3": "adapter/.*/ia3/.*",
    "prompt": "adapter/.*/prompt/.*", "prefix": "adapter/.*/prefix/.*", "fish": "adapter/.*/fish/values",
}  # fmt: skip
# strategy -> the group it trains
GROUP = {"embeddings": "stem", "bitfit": "bias", "layernorm": "norm", "attention": "attention", "ffn": "ffn", "pooler": "pooler"}
FACTOR = r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"


def terms(strategy: str) -> tuple[list[tuple[str, str]], list[str]]:
    """ "top-2+bitfit@ulmfit" -> ([("+", "top-2"), ("+", "bitfit")], ["ulmfit"])."""
    sets, *rates = "".join(strategy.split()).split("@")
    parts = re.split(r"([+&!])", "+" + sets)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True)), rates


def rules(strategy: str, groups: Mapping[str, str], params: Mapping[str, Any]) -> Rules:
    """The ordered rules of a named strategy on a model with these groups and parameters (arrays or shapes)."""
    sets, rates = terms(strategy)
    chosen: list[str] = []
    for op, text in sets:
        chosen = _combine(op, chosen, patterns(text, strategy, groups, params))
    if chosen == ["backbone/.*"] and not rates and not any(n.startswith("adapter/") for n in params):
        return [(".*", "train")]
    actions = [(p, 1.0) for p in chosen]
    for text in rates:
        levels = _levels(text, strategy, groups, params)
        actions = [(_both(p, level), rate * factor) for p, rate in actions for level, factor in levels]
    ordered = [HEAD, *((p, "train" if rate == 1 else f"train(lr={rate:.6g})") for p, rate in actions), *REST]
    claimed = set(tree.claims(list(params), [p for p, _ in ordered]).values())
    if [text for _, text in sets] != ["head"] and claimed.isdisjoint(range(1, 1 + len(actions))):
        raise UserError(f"freeze={strategy!r} trains nothing but the head on this model; say freeze='head' if that is meant")
    return [rule for i, rule in enumerate(ordered) if i in claimed]


def patterns(text: str, strategy: str, groups: Mapping[str, str], params: Mapping[str, Any]) -> list[str]:
    """The backbone's parameters that one name trains."""
    depth = depth_of(groups, params)
    name, _, argument = text.partition("=")
    if text == "full":
        return ["backbone/.*"]
    if text == "head":
        return []
    if name in ADDED:
        return [ADDED[name]]
    if text == "freeze-embeddings":
        return _combine("!", ["backbone/.*"], [_group(strategy, "stem", groups)])
    if text in GROUP:
        return [_group(strategy, GROUP[text], groups)]
    if not depth and re.match(r"(top|bottom|every)-\d|layers=", text):
        raise UserError(
            f"freeze={strategy!r}: the model has no blocks, no parameter {groups.get('block', 'backbone/block_{}/.*').format(0)}; "
            "layers that are stacked in one array cannot be frozen one by one"
        )
    if found := re.fullmatch(r"(top|bottom|every)-(\d+)", text):
        k, which = int(found[2]), found[1]
        if not 1 <= k <= depth:
            raise UserError(f"freeze={strategy!r}: the model has {depth} blocks; expected {which}-1 … {which}-{depth}")
        blocks = {"top": range(depth - k, depth), "bottom": range(k), "every": range(k - 1, depth, k)}[which]
        pooler = [groups["pooler"]] if which == "top" and "pooler" in groups else []
        return [*pooler, *(groups["block"].format(i) for i in blocks)]
    if name == "layers" and (chosen := numbers(argument)):
        if max(chosen) >= depth:
            raise UserError(f"freeze={strategy!r}: the model has the blocks 0 … {depth - 1}, not {max(chosen)}")
        return [groups["block"].format(i) for i in chosen]
    if name in ("attention", "ffn", "layernorm") and numbers(argument):
        return _combine("&", patterns(f"layers={argument}", strategy, groups, params), [_group(strategy, GROUP[name], groups)])
    if name == "bitfit" and argument:
        return [_bias(module, strategy, groups, params) for module in argument.split(",")]
    if name == "random" and (found := re.fullmatch(rf"{FACTOR},(\d+)", argument)) and 0 < float(found[1]) <= 1:
        return _random(float(found[1]), int(found[2]), params)
    if name.startswith("auto("):
        raise UserError(f"freeze={strategy!r}: auto is decided from data before training starts, and stands alone: freeze='{AUTO}'")
    if name in ("gradual", "lisa"):
        raise UserError(f"freeze={strategy!r}: {name} decides what moves when, so it stands alone (rates may follow it: {name}@ulmfit)")
    raise UserError(
        f"freeze={strategy!r}: {text!r} is no strategy; {did_you_mean(text, [*NAMES, *ADDED, *TIMES, AUTO])} (or a list of rules)"
    )


def _both(a: str, b: str) -> str:
    return f"(?={a}$){b}"


def _combine(op: str, left: list[str], right: list[str]) -> list[str]:
    if op == "+":
        return left + right
    if op == "&":
        return [_both(a, b) for a in left for b in right]
    without = "|".join(right)
    return [f"(?!({without})$){a}" for a in left] if right else left


def numbers(text: str) -> list[int]:
    """ "0,2,5-7" -> [0, 2, 5, 6, 7]; [] if it is not of that form, upwards and of at most four digits each."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        return []
    ranges = [(int(a), int(b or a)) for a, _, b in (part.partition("-") for part in text.split(","))]
    return sorted({i for a, b in ranges for i in range(a, b + 1)}) if all(a <= b for a, b in ranges) else []


def _bias(module: str, strategy: str, groups: Mapping[str, str], params: Mapping[str, Any]) -> str:
    pattern = _both(_group(strategy, "bias", groups), rf"(.*/)?{re.escape(module)}/bias")
    if not any(re.fullmatch(pattern, n) for n in params):
        there = {n.split("/")[-2] for n in params if re.fullmatch(groups["bias"], n)}
        raise UserError(f"freeze={strategy!r}: no module {module!r} has a bias; {did_you_mean(module, there)}")
    return pattern


def _random(share: float, seed: int, params: Mapping[str, Any]) -> list[str]:
    backbone = {n: p for n, p in params.items() if n.startswith("backbone/")}
    order, enough, taken = list(backbone), share * tree.count(backbone), list[str]()
    random.Random(seed).shuffle(order)
    while tree.count({n: backbone[n] for n in taken}) < enough:
        taken.append(order.pop())
    return [re.escape(n) for n in taken]


def _levels(rates: str, strategy: str, groups: Mapping[str, str], params: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(pattern, learning-rate factor) of every level of the backbone, the lowest first."""
    found = re.fullmatch(rf"(decay|plus)={FACTOR}", rates)
    if not found and rates != "ulmfit":
        raise UserError(f"freeze={strategy!r}: {rates!r} is no rule for rates; {did_you_mean(rates, RATES)}")
    kind, factor = (found[1], float(found[2])) if found else ("decay", 1 / 2.6)
    if not 0 < factor <= (1 if kind == "decay" else float("inf")):
        expected = "a factor above 0 and up to 1" if kind == "decay" else "a factor above 0"
        raise UserError(f"freeze={strategy!r}: the rate {factor:g} is out of range; expected {expected}")
    if kind == "plus":
        if not any(re.fullmatch(ADDED["lora"], n) for n in params):
            raise UserError(f"freeze={strategy!r}: @plus is for LoRA, and there is none here")
        return [("adapter/.*/lora/b", factor), (".*", 1.0)]
    depth = depth_of(groups, params)
    levels = [(groups["stem"], factor ** (depth + 1)), *((groups["block"].format(i), factor ** (depth - i)) for i in range(depth))]
    # What is added to a block moves at the rate of the block.
    return [*((p.replace("backbone/", "(backbone|adapter)/"), rate) for p, rate in levels), (".*", 1.0)]


def depth_of(groups: Mapping[str, str], params: Iterable[str]) -> int:
    """Number of blocks that the parameter names show."""
    names, depth = list(params), 0
    while any(re.fullmatch(groups["block"].format(depth), n) for n in names):
        depth += 1
    return depth


def _group(strategy: str, group: str, groups: Mapping[str, str]) -> str:
    if group not in groups:
        raise UserError(f"freeze={strategy!r} needs the group {group!r}, which this model does not have; it has {', '.join(groups)}")
    return groups[group]


Steps = Callable[[str], int]  # a duration or a share of the run, in steps


def strategies(freeze: Any, depth: int, total: int, steps: Steps, seed: int) -> list[tuple[str, Any]]:
    """`config.freeze` as `[(start, strategy without time), …]`.

    Args:
      depth: number of blocks.
      total: steps of the run.
      steps: reads a duration.
      seed: of LISA's draws.
    """
    if not isinstance(freeze, str):
        if not isinstance(freeze, list | tuple):
            raise UserError(
                f"freeze={freeze!r}: expected a strategy's name, a list of (pattern, action), or a list of (start, such a list)"
            )
        if not any(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[1], list | tuple) for p in freeze):
            return [("0", freeze)]
        if odd := [p for p in freeze if not isinstance(p, list | tuple) or len(p) != 2]:
            raise UserError(f"freeze phase {odd[0]!r}: expected a pair (start, rules), as the others are")
        return [(str(start), rules) for start, rules in freeze]
    if ";" in freeze or ":" in freeze:
        parts = [part.rpartition(":") for part in freeze.split(";")]
        return [(start.strip() if i or colon else "0", strategy.strip()) for i, (start, colon, strategy) in enumerate(parts)]
    sets, at, rates = "".join(freeze.split()).partition("@")
    name, _, argument = sets.partition("=")
    if name not in ("gradual", "lisa"):
        return [("0", freeze)]
    timed = _gradual(freeze, argument, depth, total, steps) if name == "gradual" else _lisa(freeze, argument, depth, total, steps, seed)
    return [(start, chosen + at + rates) for start, chosen in timed]


def _gradual(strategy: str, argument: str, depth: int, total: int, steps: Steps) -> list[tuple[str, str]]:
    every, _, waits = argument.partition(",")
    chosen = ["head", *(f"top-{k}" for k in range(1, depth + 1)), "full"]
    if every == "plateau":
        return list(zip(["0"] + [f"plateau={waits}"] * (depth + 1), chosen, strict=True))
    try:
        length = steps(argument) if argument else total / len(chosen)
    except UserError as e:
        raise UserError(f"{e}; or gradual=plateau,N") from None
    if not length:
        raise UserError(f"freeze={strategy!r}: {argument!r} is no step at all")
    return [(str(round(i * length)), one) for i, one in enumerate(chosen)]


def _lisa(strategy: str, argument: str, depth: int, total: int, steps: Steps, seed: int) -> list[tuple[str, str]]:
    found = re.fullmatch(r"(\d+),(.+)", argument)
    if not found or not 1 <= int(found[1]) <= depth:
        raise UserError(f"freeze={strategy!r}: expected lisa=K,EVERY with 1 to {depth} blocks at a time, such as lisa=2,50 steps")
    every = steps(found[2])
    if every < 1:
        raise UserError(f"freeze={strategy!r}: {found[2]!r} is no step at all")
    draws = random.Random(seed)
    sets = [sorted(draws.sample(range(depth), int(found[1]))) for _ in range(0, total, every)]
    return [(str(i * every), f"embeddings+layers={','.join(map(str, blocks))}") for i, blocks in enumerate(sets)]
