"""Added parameters: their own tree `adapter/…` beside the backbone, attached to it from outside.

Each is named after the module that it attaches to, `adapter/block_3/attention/query/lora/a`, and applied around the pure
`apply` by `nn.intercept_methods`: no backbone knows of any, and no gradient of a full weight is computed for them.

  lora=R,OPTION…   y + s (x a) b on matrices, s = alpha / R (Hu et al. 2021, arXiv 2106.09685). Options: the matrices by name
                   or group (lora=8,query,value, which is the default; attention, ffn), alpha=A (else R), blocks=LIST, and
                   rs: s = alpha / sqrt(R) (rsLoRA: Kalajdzievski 2023, arXiv 2312.03732);
                   dora: direction and length apart (DoRA: Liu et al. 2024, arXiv 2402.09353)
  houlsby=W        a bottleneck of width W after attention and after feed-forward (Houlsby et al. 2019, arXiv 1902.00751)
  pfeiffer=W       one after feed-forward (Pfeiffer et al. 2020, arXiv 2005.00247)
  ia3              factors on keys, values and the inside of feed-forward (Liu et al. 2022, arXiv 2205.05638)
  prompt=N         N vectors after [CLS] and behind the embeddings, as if they were tokens: every token sees them, a mean over tokens
                   counts them (Lester et al. 2021, arXiv 2104.08691)
  prefix=N         N keys and values in every block (Li & Liang 2021, arXiv 2101.00190, without their reparametrisation)
  fish=SHARE,N     inside every tensor of the backbone, the SHARE of elements whose squared gradient over N training examples
                   (256 if not said) is largest (FISH mask: Sung et al. 2021, arXiv 2111.09839, who rank over all tensors at
                   once; here each has its share, so that shapes are known before any data are). They move as FISH's alone,
                   whatever else trains the tensor.

LoRA, bottlenecks, (IA)3 and FISH start as the function that the backbone was; prompts and prefixes are seen from the first step.
LoRA, (IA)3 and FISH can be merged into the backbone. Where several attach to one module they do so in the order above,
innermost first, in whatever order they are named.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ptft.core.errors import UserError, did_you_mean
from ptft.core.tree import Flat
from ptft.freeze import language
from ptft.models.layers import NORMAL, gelu

MERGE = ("lora", "ia3", "fish")


class Adapter(NamedTuple):
    """One kind of added parameters, and where they attach."""

    kind: str
    size: int  # rank, width or number of vectors
    sites: tuple[tuple[str, tuple[int, ...]], ...]  # (module below the backbone, or its parameter; the shape of its weight)
    scale: float = 1.0
    dora: bool = False
    examples: int = 0  # whose gradients choose FISH's elements


def parse(strategy: str, groups: Mapping[str, str], shapes: Mapping[str, Any]) -> tuple[Adapter, ...]:
    """The added parameters that a strategy without time names, for a model of these groups and shapes.

    Raises:
      UserError: an option or a place that does not exist.
    """
    found: list[Adapter] = []
    sets, _ = language.terms(strategy)
    for i, (op, text) in enumerate(sets):
        kind, _, argument = text.partition("=")
        if kind not in language.ADDED:
            continue
        following = [o for o, _ in sets[i + 1 :]]
        if op != "+" or following[:1] == ["!"] or "&" in following:
            raise UserError(
                f"freeze={strategy!r}: {text!r} is added to other sets with +; & and ! are for what the model has, and come before it"
            )
        # A comma before a digit is one of a list: blocks=0,2-3.
        size, *options = argument.split(",") if kind == "fish" else re.split(r",(?!\d)", argument)
        found.append(_one(strategy, kind, size, options, groups, shapes))
    taken: set[tuple[str, str]] = set()
    for one in (found := _ordered(found)):
        if twice := taken.intersection((one.kind, site) for site, _ in one.sites):
            raise UserError(f"freeze={strategy!r} adds {one.kind} to {min(twice)[1]} twice, in different ways")
        taken.update((one.kind, site) for site, _ in one.sites)
    return tuple(found)


def _ordered(found: Iterable[Adapter]) -> list[Adapter]:
    """Each once, in the order in which they attach: what changes a matrix before what changes its output, prefixes last."""
    return sorted(dict.fromkeys(found), key=lambda one: list(language.ADDED).index(one.kind))


def union(phases: Sequence[Sequence[Adapter]], strategy: Any) -> tuple[Adapter, ...]:
    """The added parameters of all phases. Raises UserError if two phases add one kind in different ways."""
    for kind in language.ADDED:
        ways = {frozenset(one for one in phase if one.kind == kind) for phase in phases} - {frozenset()}
        if len(ways) > 1:
            raise UserError(f"freeze={strategy!r}: its phases add {kind} in different ways; name the same {kind} in each that trains it")
    return tuple(_ordered(one for phase in phases for one in phase))


def _one(strategy: str, kind: str, size: str, options: list[str], groups: Mapping[str, str], shapes: Mapping[str, Any]) -> Adapter:
    def whole(text: str, such: str = f"{kind}=8") -> int:
        if not re.fullmatch(r"[1-9]\d*", text):
            raise UserError(f"freeze={strategy!r}: {kind}: expected a whole number above 0, such as {such}, not {text!r}")
        return int(text)

    def kernels(pattern: str) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (n.removeprefix("backbone/").removesuffix("/kernel"), tuple(s.shape))
            for n, s in shapes.items()
            if n.endswith("/kernel") and re.fullmatch(pattern, n)
        ]

    def need(*names: str) -> str:
        for name in names:
            if name not in groups:
                raise UserError(
                    f"freeze={strategy!r}: {kind} needs the group {name!r}, which this model does not have; it has {', '.join(groups)}"
                )
        return "|".join(f"(?:{groups[name]})" for name in names)

    if kind == "fish":
        share = float(size) if re.fullmatch(language.FACTOR, size) else 0.0
        if not 0 < share < 1 or len(options) > 1:
            raise UserError(
                f"freeze={strategy!r}: expected fish=SHARE or fish=SHARE,EXAMPLES with a share above 0 and below 1, such as fish=0.005"
            )
        sites = [(n.removeprefix("backbone/"), tuple(s.shape)) for n, s in shapes.items() if n.startswith("backbone/")]
        return Adapter(kind, 0, tuple(sites), share, examples=whole(options[0], f"fish={size},256") if options else 256)
    if kind == "lora":
        return _lora(strategy, whole(size or "8"), options, kernels(need("attention", "ffn")), groups)
    if options or (kind == "ia3" and size):
        raise UserError(f"freeze={strategy!r}: {kind} has no option {(options or [size])[0]!r}; only lora and fish have any")
    if kind == "ia3":
        sites = [k for k in kernels(need("attention", "ffn")) if k[0].rpartition("/")[2] in ("key", "value", "down")]
        return Adapter(kind, 0, tuple(sites))
    if kind == "prompt":
        width = max((s.shape[-1] for n, s in shapes.items() if re.fullmatch(need("attention"), n)), default=0)
        return Adapter(kind, whole(size or "16"), (("embeddings", (width,)),))
    if kind == "prefix":
        return Adapter(kind, whole(size or "16"), tuple(kernels(need("prefix"))))
    ends = {"houlsby": ("out", "down"), "pfeiffer": ("down",)}[kind]
    return Adapter(kind, whole(size or "32"), tuple(k for k in kernels(need("attention", "ffn")) if k[0].rpartition("/")[2] in ends))


def _lora(strategy: str, rank: int, options: list[str], kernels: list[tuple[str, tuple[int, ...]]], groups: Mapping[str, str]) -> Adapter:
    alpha, blocks, targets = float(rank), None, []
    for option in options:
        name, _, value = option.partition("=")
        if name == "alpha" and re.fullmatch(language.FACTOR, value) and float(value) > 0:
            alpha = float(value)
        elif name == "blocks":
            blocks = language.numbers(value)
            if not blocks or not any(re.match(rf"block_{max(blocks)}/", n) for n, _ in kernels):
                raise UserError(f"freeze={strategy!r}: {option!r} names no blocks of this model; expected such as blocks=0,2-3")
        elif option not in ("rs", "dora"):
            targets.append(option)
    sites: list[tuple[str, tuple[int, ...]]] = []
    for target in targets or ("query", "value"):
        chosen = [k for k in kernels if k[0].rpartition("/")[2] == target]
        if target in ("attention", "ffn"):
            chosen = [k for k in kernels if re.fullmatch(groups[target], f"backbone/{k[0]}/kernel")]
        if not chosen:
            known = ["attention", "ffn", "rs", "dora", "alpha=A", "blocks=LIST", *dict.fromkeys(n.rpartition("/")[2] for n, _ in kernels)]
            raise UserError(f"freeze={strategy!r}: lora has no option and this model no matrix {target!r}; {did_you_mean(target, known)}")
        sites += [k for k in chosen if blocks is None or any(k[0].startswith(f"block_{b}/") for b in blocks)]
    scale = alpha / (rank**0.5 if "rs" in options else rank)
    return Adapter("lora", rank, tuple(dict.fromkeys(sites)), scale, "dora" in options)


def init(specs: Sequence[Adapter], key: jax.Array) -> Flat:
    """Fresh parameters `adapter/…`, float32 (FISH's places int32). `fill` completes what hangs on the backbone's."""
    flat: Flat = {}
    for one in specs:
        for site, shape in one.sites:
            made = _fresh(one, site, shape, jax.random.fold_in(key, len(flat)))
            flat.update({f"adapter/{site}/{one.kind}/{name}": x for name, x in made.items()})
    return flat


def _fresh(one: Adapter, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
    width, n = shape[-1], one.size
    if one.kind == "lora":
        bound = shape[0] ** -0.5  # as in the authors' code
        made = {"a": jax.random.uniform(key, (shape[0], n), minval=-bound, maxval=bound), "b": jnp.zeros((n, width))}
        return made | ({"magnitude": jnp.ones(width)} if one.dora else {})
    if one.kind in ("houlsby", "pfeiffer"):
        down = {"down_kernel": NORMAL(key, (width, n)), "down_bias": jnp.zeros(n)}
        return down | {"up_kernel": jnp.zeros((n, width)), "up_bias": jnp.zeros(width)}
    if one.kind == "fish":
        size = max(1, round(one.scale * math.prod(shape)))
        return {"index": jnp.arange(size, dtype=jnp.int32), "values": jnp.zeros(size)}
    if one.kind == "ia3":
        return {"factor": jnp.ones(shape[0] if site.endswith("/down") else width)}
    return {"vectors": NORMAL(key, (n, width))}


def fill(specs: Sequence[Adapter], params: Flat, squares: Flat | None = None) -> Flat:
    """The parameters with what is added completed from the backbone: DoRA's lengths, FISH's places and values.

    Args:
      params: all parameters, those of the backbone loaded.
      squares: sums of squared gradients of the backbone's, of which FISH takes the largest; None: the places are in `params`.
    """
    out = dict(params)
    for one in specs:
        for site, _ in one.sites:
            at = f"adapter/{site}/{one.kind}"
            if one.dora:
                out[f"{at}/magnitude"] = _length(_sum(one, out, at, params[f"backbone/{site}/kernel"]))
            elif one.kind == "fish":
                base, index = params[f"backbone/{site}"], out[f"{at}/index"]
                if squares is not None:
                    # Sorted places, so that equal choices are equal arrays.
                    index = jnp.sort(jax.lax.top_k(squares[f"backbone/{site}"].reshape(-1), len(index))[1]).astype(jnp.int32)
                out |= {f"{at}/index": index, f"{at}/values": base.reshape(-1)[index]}
    return out


def _sum(one: Adapter, params: Flat, at: str, kernel: jax.Array) -> jax.Array:
    return kernel + one.scale * (params[f"{at}/a"] @ params[f"{at}/b"])


def _length(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(jnp.square(kernel).sum(0), 1e-24))  # of a column of zeros, too, something to divide by


def insert(specs: Sequence[Adapter], params: Flat) -> Flat:
    """The parameters with FISH's values in their places; what else is added does not change the backbone's own."""
    out = dict(params)
    for one in specs:
        for site, shape in one.sites if one.kind == "fish" else ():
            name, at = f"backbone/{site}", f"adapter/{site}/fish"
            out[name] = params[name].reshape(-1).at[params[f"{at}/index"]].set(params[f"{at}/values"]).reshape(shape)
    return out


def merge(specs: Sequence[Adapter], params: Flat) -> Flat:
    """One set of weights that computes the same, without any `adapter/…`.

    Raises:
      UserError: bottlenecks, prompts and prefixes compute what no weight of the backbone can.
    """
    if alone := [one.kind for one in specs if one.kind not in MERGE]:
        raise UserError(f"{alone[0]} cannot be merged into the backbone's weights; those that can are {', '.join(MERGE)}")
    out = insert(specs, params)
    for one in specs:
        for site, _ in one.sites if one.kind != "fish" else ():
            name, at = f"backbone/{site}", f"adapter/{site}/{one.kind}"
            kernel = out[f"{name}/kernel"]
            if one.kind == "lora":
                whole = _sum(one, params, at, kernel)
                out[f"{name}/kernel"] = whole * (params[f"{at}/magnitude"] / _length(whole)) if one.dora else whole
            elif site.endswith("/down"):
                out[f"{name}/kernel"] = kernel * params[f"{at}/factor"][:, None]
            else:
                out[f"{name}/kernel"] = kernel * params[f"{at}/factor"]
                if f"{name}/bias" in out:
                    out[f"{name}/bias"] = out[f"{name}/bias"] * params[f"{at}/factor"]
    return {n: x for n, x in out.items() if not n.startswith("adapter/")}


def attach(specs: Sequence[Adapter], params: Flat) -> AbstractContextManager[Any]:
    """Inside of it, an `apply` of the backbone computes with what is added in `params`."""
    here: dict[str, list[tuple[Adapter, Flat]]] = {}
    for one in specs:
        for site, _ in one.sites if one.kind != "fish" else ():
            prefix = f"adapter/{site}/{one.kind}/"
            mine = {n.removeprefix(prefix): x for n, x in params.items() if n.startswith(prefix)}
            # A prompt also lengthens the mask of the whole, a prefix that of its attention.
            places = {"prompt": ("", site), "prefix": (site.rpartition("/")[0], site)}.get(one.kind, (site,))
            for place in places:
                if not (one.kind == "prefix" and place != site and any(a.kind == "prefix" for a, _ in here.get(place, []))):
                    here.setdefault(place, []).append((one, mine))

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        place = "/".join(context.module.path)
        if context.method_name != "__call__" or place not in here:
            return call(*args, **kwargs)
        for one, mine in here[place]:
            call = functools.partial(_ATTACHED[one.kind], one, mine, context.module, call)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _lora_call(one: Adapter, p: Flat, module: nn.Module, call: Any, x: jax.Array) -> jax.Array:
    y = call(x)
    added = (x.astype(y.dtype) @ p["a"].astype(y.dtype)) @ p["b"].astype(y.dtype) * jnp.asarray(one.scale, y.dtype)
    if not one.dora:
        return y + added
    own = module.variables["params"]
    # The length counts as a constant in the gradient (section 4.3 of the paper), so no gradient of a full weight arises.
    length = _length(jax.lax.stop_gradient(own["kernel"].astype(jnp.float32) + one.scale * (p["a"] @ p["b"])))
    ratio = (p["magnitude"] / length).astype(y.dtype)
    bias = own["bias"].astype(y.dtype) if "bias" in own else 0
    return y + (ratio - 1) * (y - bias) + ratio * added


def _bottleneck_call(one: Adapter, p: Flat, module: nn.Module, call: Any, x: jax.Array) -> jax.Array:
    y = call(x)
    p = {n: v.astype(y.dtype) for n, v in p.items()}
    inside = y @ p["down_kernel"] + p["down_bias"]
    return y + (gelu if one.kind == "houlsby" else jax.nn.relu)(inside) @ p["up_kernel"] + p["up_bias"]


def _ia3_call(one: Adapter, p: Flat, module: nn.Module, call: Any, x: jax.Array) -> jax.Array:
    inside = module.name == "down"
    y = call(x * p["factor"].astype(x.dtype) if inside else x)
    return y if inside else y * p["factor"].astype(y.dtype)


def _prompt_call(one: Adapter, p: Flat, module: nn.Module, call: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
    """The vectors stand after the first token, which is the one that heads read."""

    def widen(x: jax.Array, more: jax.Array) -> jax.Array:
        return jnp.concatenate([x[:, :1], jnp.broadcast_to(more.astype(x.dtype), (len(x), *more.shape)), x[:, 1:]], 1)

    if module.path:
        return widen(call(first, *args, **kwargs), p["vectors"])
    out = call({**first, "mask": widen(first["mask"], jnp.ones(one.size, bool))}, *args, **kwargs)
    return {**out, "hidden": jnp.concatenate([out["hidden"][:, :1], out["hidden"][:, 1 + one.size :]], 1)}


def _prefix_call(one: Adapter, p: Flat, module: nn.Module, call: Any, x: jax.Array, *args: Any, **kwargs: Any) -> Any:
    """Keys and values that every token sees; the mask is the attention's second argument."""

    def before(x: jax.Array, more: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(more.astype(x.dtype), (len(x), *more.shape)), x], 1)

    if module.name in ("key", "value"):
        return before(call(x), p["vectors"])
    return call(x, before(args[0], jnp.ones(one.size, bool)), *args[1:], **kwargs)


_ATTACHED: dict[str, Callable[..., Any]] = {
    "lora": _lora_call, "houlsby": _bottleneck_call, "pfeiffer": _bottleneck_call, "ia3": _ia3_call,
    "prompt": _prompt_call, "prefix": _prefix_call,
}  # fmt: skip
