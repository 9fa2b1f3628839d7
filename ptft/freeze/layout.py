"""A model's parameters by role, as sets of names: what strategies and added parameters speak of."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from ptft.core.errors import UserError
from ptft.models import Anatomy

Names = frozenset[str]


class Layout:
    """The parameters `params` (arrays or shapes by name) of a model of this anatomy."""

    def __init__(self, anatomy: Anatomy, params: Mapping[str, Any]):
        self.anatomy, self.params = anatomy, params

    @property
    def _block(self) -> str:
        (pattern,) = self.anatomy.stacks.values()
        return pattern

    @cached_property
    def backbone(self) -> Names:
        return frozenset(n for n in self.params if n.startswith("backbone/"))

    @cached_property
    def blocks(self) -> tuple[Names, ...]:
        """The backbone's blocks, from the input to the output."""
        blocks: list[Names] = []
        while block := self.matching(self._block.format(len(blocks))):
            blocks.append(block)
        return tuple(blocks)

    def matching(self, pattern: str) -> Names:
        return frozenset(n for n in self.backbone if re.fullmatch(pattern, n))

    def group(self, role: str) -> Names:
        """The parameters of a role, such as "attention". Raises UserError if the model has no such role."""
        return self.matching(self.need(role, "the strategy"))

    def need(self, role: str, what: str) -> str:
        """The pattern of a role, for something that cannot do without."""
        groups = self.anatomy.groups
        if role not in groups:
            raise UserError(
                f"{what} needs the group {role!r}, which this model does not have; it has {', '.join(groups)}"
            )
        return groups[role]

    def some_blocks(self, numbers: Iterable[int]) -> Names:
        """All parameters of the blocks of these numbers. Raises UserError if there is no such block."""
        chosen, depth = sorted(numbers), len(self.need_blocks())
        if odd := [i for i in chosen[::-1] if not 0 <= i < depth]:
            raise UserError(f"the model has the blocks 0 … {depth - 1}, not {odd[0]}")
        return frozenset[str]().union(*(self.blocks[i] for i in chosen))

    def need_blocks(self) -> tuple[Names, ...]:
        if not self.blocks:
            raise UserError(
                f"the model has no blocks, no parameter {self._block.format(0)}; "
                "layers that are stacked in one array cannot be frozen one by one"
            )
        return self.blocks

    def inner(self, name: str) -> str:
        """The name of a parameter, or of what is added to it, inside its block; "" outside of all blocks."""
        own, level = name.replace("adapter/", "backbone/", 1), self.level(name)
        return own.removeprefix(self._block.removesuffix(".*").format(level - 1)) if level else ""

    def level(self, name: str) -> int | None:
        """Where a parameter of the backbone, or what is added to it, stands: 0 in the stem, i + 1 in block i,
        None above all blocks."""
        own = name.replace("adapter/", "backbone/", 1)
        if re.fullmatch(self.anatomy.groups["stem"], own):
            return 0
        block = re.fullmatch(self._block.format(r"(\d+)"), own)
        return 1 + int(block[1]) if block else None

    def around(self, block: int) -> tuple[str, str]:
        """The modules below and above the entrance of a block: what the one gives, the other reads."""
        module = self._block.removesuffix("/.*").removeprefix("backbone/")
        return module.format(block - 1), module.format(block)

    def rows(self, name: str, tokens: int) -> int | None:
        """Rows of an example that a parameter multiplies, of so many tokens; None: it is in no product."""
        kinds = (kind for pattern, kind in self.anatomy.products.items() if re.fullmatch(pattern, name))
        return {"token": tokens, "example": 1, "": None}[next(kinds, "")]

    def below(self, block: int) -> Names:
        """All parameters that lie below a block, what is added there among them; of block 0, none."""
        levels = {n: self.level(n) for n in self.params} if block else {}
        return frozenset(n for n, level in levels.items() if level is not None and level <= block)
