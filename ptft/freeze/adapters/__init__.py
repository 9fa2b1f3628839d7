"""Added parameters: their own tree `adapter/…` beside the backbone, attached to it from outside. A kind is a
file in this folder.

Each is named after the module that it attaches to, `adapter/block_3/attention/query/lora/a`, and applied
around the pure `apply` by `nn.intercept_methods`: no backbone knows of any, and no gradient of a full weight
is computed for them.

A file exports `Kind`, a subclass of `Adapter`: its grammar, where it attaches, what it computes, how it is
merged, what its matrix products are. Where several attach to one module they do so in the order of
`Kind.order`, innermost first, in whatever order a strategy names them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ptft.core import plugins
from ptft.core.errors import UserError, shown
from ptft.core.tree import Flat
from ptft.freeze.layout import Layout

Sites = tuple[tuple[str, tuple[int, ...]], ...]


class Product(NamedTuple):
    """A matrix product that an adapter adds to every token, for the formula of `ptft plan`."""

    leaf: str  # its matrix
    size: int  # elements of the matrix
    # "input" or "output" of the module that it attaches to, or "own": what the product before it gave
    reads: str


@dataclass(frozen=True)
class Adapter:
    """One kind of added parameters, and where they attach."""

    sites: Sites  # (module below the backbone, or its parameter; the shape of its weight)

    grammar: ClassVar[str]  # as a strategy names it, with what may follow
    # of attaching: what changes a matrix before what changes its output, what adds tokens last
    order: ClassVar[int]
    fixed: ClassVar[tuple[str, ...]] = ()  # leaves that are never trainable
    undecayed: ClassVar[tuple[str, ...]] = ()  # leaves without weight decay, besides biases
    mergeable: ClassVar[bool] = False

    @classmethod
    def kind(cls) -> str:
        """Its file's name, and what its parameters are named after."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def parse(cls, argument: str, model: Layout) -> "Adapter":
        """What stands after the = in a strategy -> the adapter on this model. Raises UserError."""
        raise NotImplementedError

    def init(self, site: str, shape: tuple[int, ...], key: jax.Array) -> Flat:
        """Fresh parameters of one site, float32."""
        raise NotImplementedError

    def fill(self, site: str, own: Flat, params: Flat, squares: Flat | None) -> Flat:
        """Its parameters, completed from the backbone's."""
        return own

    def insert(self, site: str, own: Flat, params: Flat) -> Flat:
        """Parameters of the backbone that it replaces before anything is computed."""
        return {}

    def places(self, site: str) -> tuple[str, ...]:
        """The modules around whose calls it is applied, for one site."""
        return (site,)

    def call(self, own: Flat, module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes what the module's `call` does, with what is added."""
        raise NotImplementedError

    def merge(self, site: str, own: Flat, params: Flat) -> Flat:
        """Parameters of the backbone that compute the same without it."""
        return {}

    @classmethod
    def decays(cls, site: str, leaf: str) -> bool:
        """Whether a leaf has weight decay."""
        return leaf not in cls.undecayed and not leaf.endswith("bias")

    def products(self, shape: tuple[int, ...]) -> list[Product]:
        """The products of one site with every token."""
        return []

    def flops(self, shape: tuple[int, ...]) -> float:
        """FLOPs of one site that a step costs whatever its batch."""
        return 0.0

    @classmethod
    def inside(cls, site: str) -> str:
        """The parameter of the backbone whose elements it trains, so that its gradient is a part of that
        parameter's; "" if it trains none."""
        return ""

    @classmethod
    def before(cls, site: str) -> bool:
        """Whether it changes what goes into the module, and nothing that comes out."""
        return False

    @property
    def examples(self) -> int:
        """Training examples whose squared gradients `fill` reads."""
        return 0

    @property
    def tokens(self) -> int:
        """Tokens that it adds to every row."""
        return 0

    def seen(self, site: str) -> int:
        """Keys that it adds to the attention whose values this site gives."""
        return 0


def kinds() -> Mapping[str, type[Adapter]]:
    """Every kind by its name, in the order in which they attach."""
    return _kinds(tuple(plugins.names("freeze.adapters")))


@cache
def _kinds(names: tuple[str, ...]) -> Mapping[str, type[Adapter]]:
    by_name = {name: plugins.get("freeze.adapters", name).Kind for name in names}
    for name, kind in by_name.items():
        if lost := [what for what in ("grammar", "order") if not hasattr(kind, what)]:
            raise UserError(f"freeze/adapters/{name}.py: its Kind has no {' and no '.join(lost)}")
        if not re.match(rf"{re.escape(name)}\b", kind.grammar):
            why = f"its grammar is {kind.grammar!r}; expected one that begins with the file's name"
            raise UserError(f"freeze/adapters/{name}.py: {why}")
    return dict(sorted(by_name.items(), key=lambda item: item[1].order))


def split(name: str) -> tuple[str, str, str]:
    """ "adapter/block_3/attention/query/lora/a" -> (site, kind, leaf)."""
    site, kind, leaf = name.removeprefix("adapter/").rsplit("/", 2)
    return site, kind, leaf


def decays(name: str) -> bool:
    """Whether an added parameter has weight decay."""
    site, kind, leaf = split(name)
    return kinds()[kind].decays(site, leaf)


def is_fixed(name: str) -> bool:
    """Whether a parameter is an added one that is never trainable."""
    if not name.startswith("adapter/"):
        return False
    _, kind, leaf = split(name)
    return leaf in kinds()[kind].fixed


def trainable(params: Iterable[str], kind: str) -> frozenset[str]:
    """The names of a kind's parameters that may be trained."""
    return frozenset(
        n for n in params if n.startswith("adapter/") and split(n)[1] == kind and not is_fixed(n)
    )


def whole(text: str, kind: str, such: str = "") -> int:
    """A whole number of an option, from 1 up to a million. Raises UserError."""
    if not re.fullmatch(r"[1-9]\d{0,5}|1000000", text):
        raise UserError(
            f"{kind}: expected a whole number from 1 to 1000000, such as {such or f'{kind}=8'}, not "
            f"{shown(text)}"
        )
    return int(text)


def only_size(argument: str, kind: str, default: int) -> int:
    """The one number that a kind without options has."""
    size, _, more = argument.partition(",")
    if more:
        raise UserError(f"{kind} has no option {more.partition(',')[0]!r}; expected {kinds()[kind].grammar}")
    return whole(size, kind) if size else default


def last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector along the last axis of `x`, in its dtype."""
    return jnp.expand_dims(vector.astype(x.dtype), tuple(range(x.ndim - 1)))


def matrices(model: Layout, kind: str, *roles: str) -> list[tuple[str, tuple[int, ...]]]:
    """(module, shape of its kernel) of all matrices of these roles. Raises UserError if the model has no such
    role."""
    pattern = "|".join(f"(?:{model.need(role, kind)})" for role in roles)
    return [
        (n.removeprefix("backbone/").removesuffix("/kernel"), tuple(s.shape))
        for n, s in model.params.items()
        if n.endswith("/kernel") and re.fullmatch(pattern, n)
    ]


def ordered(adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
    """Each once, in the order in which they attach."""
    return tuple(sorted(dict.fromkeys(adapters), key=lambda one: one.order))


def union(phases: Sequence[Sequence[Adapter]]) -> tuple[Adapter, ...]:
    """The added parameters of all phases. Raises UserError if two phases add one kind in different ways."""
    for kind in {one.kind(): None for phase in phases for one in phase}:
        ways = {frozenset(one for one in phase if one.kind() == kind) for phase in phases} - {frozenset()}
        if len(ways) > 1:
            raise UserError(
                f"its phases add {kind} in different ways; name the same {kind} in each that trains it"
            )
    return ordered(one for phase in phases for one in phase)


def init(added: Sequence[Adapter], key: jax.Array) -> Flat:
    """Fresh parameters `adapter/…`. `fill` completes what depends on the backbone's."""
    flat: Flat = {}
    for one in added:
        for site, shape in one.sites:
            fresh = one.init(site, shape, jax.random.fold_in(key, len(flat)))
            flat.update({f"adapter/{site}/{one.kind()}/{leaf}": x for leaf, x in fresh.items()})
    return flat


def _own(one: Adapter, site: str, params: Mapping[str, Any]) -> Flat:
    prefix = f"adapter/{site}/{one.kind()}/"
    return {n.removeprefix(prefix): x for n, x in params.items() if n.startswith(prefix)}


def fill(added: Sequence[Adapter], params: Flat, squares: Flat | None = None) -> Flat:
    """The parameters with what is added completed from the backbone: DoRA's lengths, FISH's places and
    values.

    Args:
      params: all parameters, those of the backbone loaded.
      squares: sums of squared gradients of the backbone's; None: what is chosen by them is in `params`.
    """
    out = dict(params)
    for one in added:
        for site, _ in one.sites:
            filled = one.fill(site, _own(one, site, out), params, squares)
            out |= {f"adapter/{site}/{one.kind()}/{leaf}": x for leaf, x in filled.items()}
    return out


def insert(added: Sequence[Adapter], params: Flat) -> Flat:
    """The parameters with those of the backbone replaced that an adapter keeps values of."""
    out = dict(params)
    for one in added:
        for site, _ in one.sites:
            out |= one.insert(site, _own(one, site, params), params)
    return out


def must_merge(added: Sequence[Adapter]) -> None:
    """Raises UserError: a kind that computes what no weight of the backbone can."""
    if alone := [one.kind() for one in added if not one.mergeable]:
        able = [kind for kind, its in kinds().items() if its.mergeable]
        raise UserError(
            f"{alone[0]} cannot be merged into the backbone's weights; those that can are {', '.join(able)}"
        )


def merge(added: Sequence[Adapter], params: Flat) -> Flat:
    """One set of weights that computes the same, without any `adapter/…`. Raises as `must_merge`."""
    must_merge(added)
    out = insert(added, params)
    for one in added:
        for site, _ in one.sites:
            out |= one.merge(site, _own(one, site, params), out)
    return {n: x for n, x in out.items() if not n.startswith("adapter/")}


def attach(added: Sequence[Adapter], params: Flat) -> AbstractContextManager[Any]:
    """Inside of it, an `apply` of the backbone computes with what is added in `params`."""
    around: dict[str, dict[Adapter, Flat]] = {}
    for one in added:
        for site, _ in one.sites:
            own = _own(one, site, params)
            for place in one.places(site):
                # once, where two of its sites share a place
                around.setdefault(place, {}).setdefault(one, own)

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        place = "/".join(context.module.path)
        if context.method_name != "__call__" or place not in around:
            return call(*args, **kwargs)
        for one, own in around[place].items():
            call = partial(one.call, own, context.module, call)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)
