"""The interface of a reward head, and the registry by which artifacts name theirs."""

from __future__ import annotations

import difflib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from posttrain.discovery import import_modules
from posttrain.errors import ConfigError, Problem
from posttrain.types import Judged


class RewardHead(nn.Module, ABC):
    """Judges A answers by the hidden state at the last token of each.

    name: by which artifacts know it. hidden_size: of the backbone. attributes: qualities that the data may rate, in the data's order.
    options: the keyword-only parameters it was made with.
    """

    name: ClassVar[str]

    def __init__(self, hidden_size: int, attributes: Sequence[str], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.attributes = tuple(attributes)
        self.options = dict(options)

    @abstractmethod
    def forward(self, state: Tensor) -> Judged:
        """state: float32 [A, H]."""

    @property
    def learns_ratings(self) -> bool:
        """Whether `auxiliary` makes anything of the attributes' ratings."""
        return False

    def auxiliary(self, judged: Judged, targets: Tensor) -> Tensor | None:
        """What the head itself wants to learn besides the method's loss, one loss an answer, [A]; None for nothing.

        targets: [A, K], the ratings of its attributes; NaN where unknown.
        """
        return None


HeadClass = TypeVar("HeadClass", bound=type[RewardHead])
_HEADS: dict[str, type[RewardHead]] = {}


def head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Register the decorated class as the head `name`."""

    def add(kind: HeadClass) -> HeadClass:
        kind.name = name
        _HEADS[name] = kind
        return kind

    return add


@cache
def heads() -> Mapping[str, type[RewardHead]]:
    """Every head by name; imports the modules of this folder on first use."""
    import_modules("posttrain.models.heads")
    return _HEADS


def make(name: str, hidden_size: int, attributes: Sequence[str], options: Mapping[str, Any]) -> RewardHead:
    """A head as an artifact describes it. Raises ConfigError for a name that is not known here."""
    if name not in heads():
        near = difflib.get_close_matches(name, heads(), n=1)
        hint = f"did you mean {near[0]}?" if near else "use the version of posttrain that wrote it"
        raise ConfigError(Problem("reward head", f"there is no head {name!r}", hint))
    return heads()[name](hidden_size, attributes, **options)


def layers(*sizes: int) -> nn.Sequential:
    """Linear maps of these sizes with GELU between them."""
    pairs = list(itertools.pairwise(sizes))
    modules: list[nn.Module] = []
    for place, (inner, outer) in enumerate(pairs):
        modules += [nn.Linear(inner, outer), *([nn.GELU()] if place < len(pairs) - 1 else [])]
    return nn.Sequential(*modules)
