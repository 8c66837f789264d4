"""What a plan knows of a model and of a micro-batch: sizes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from posttrain.models.flops import FlopModel


@dataclass(frozen=True)
class AttentionShape:
    """One attention call: query heads, key heads, width of a key and of a value. window: in tokens, None for all. explicit: whether its
    scores are written out (soft-capping, sinks). element: bytes of a key's number."""

    heads: int
    key_heads: int
    key_width: int
    value_width: int
    window: int | None
    explicit: bool
    element: int


@dataclass(frozen=True)
class Weights:
    """Numbers of weights and the bytes they lie in. trained, frozen: numbers. trained_bytes, frozen_bytes: of one copy of the model.

    packed_bytes: of the model that enters the stage, quantised as the policy is (what a frozen copy takes). largest_layer: bytes of the
    decoder layer with the most weights; outside: of embeddings, head and norms outside the layers. vectors: trained weights in tensors
    of one dimension; factored: rows and columns of the others (what factored second moments keep). small: trained weights in tensors of
    fewer than 4,096 elements. linears: numbers in plain linear layers and the head. quantised: numbers in quantised ones.
    built_bytes: of a model as it is built in main memory, before anything is quantised.
    """

    trained: int
    frozen: int
    trained_bytes: int
    frozen_bytes: int
    packed_bytes: int
    largest_layer: int
    outside: int
    vectors: int
    factored: int
    small: int
    linears: int
    quantised: int
    built_bytes: int


@dataclass(frozen=True)
class ModelShape:
    """A model's weights and what its forward pass keeps for the backward pass, besides attention.

    fixed: bytes kept whatever the number of tokens (weights cast for autocast, quantised ones aside). token: bytes kept a token over all
    layers. layer: of the layer that keeps most, a token. inputs: of all layers' inputs, a token (what checkpointing keeps); beyond: kept
    outside the layers, a token. hidden, vocabulary: of the head. flops: how many operations a pass costs.
    head_trained: whether its weight gets a gradient; tied: whether it is the embedding too. head_element: bytes of its numbers.
    """

    weights: Weights
    attentions: tuple[AttentionShape, ...]
    fixed: float
    token: float
    layer: float
    inputs: float
    beyond: float
    hidden: int
    vocabulary: int
    head_trained: bool
    tied: bool
    head_element: int
    flops: FlopModel


@dataclass(frozen=True)
class Row:
    """A micro-batch. segments: (tokens, tokens of all ancestors) of each; targets: places with a loss."""

    segments: tuple[tuple[int, int], ...]
    targets: int

    @cached_property
    def tokens(self) -> int:
        """Of all segments."""
        return sum(length for length, _ in self.segments)

    @property
    def shared(self) -> bool:
        """Whether a segment has a parent."""
        return any(before for _, before in self.segments)

    @cached_property
    def longest_path(self) -> int:
        """Tokens of the longest segment with its ancestors."""
        return max((length + before for length, before in self.segments), default=0)

    def cut(self, parts: int) -> Row:
        """One of equal parts, with its share of every segment."""
        shares = tuple((-(-length // parts), -(-before // parts)) for length, before in self.segments)
        return Row(shares, -(-self.targets // parts))

    def times(self, factor: float) -> Row:
        """The same mixture of segments in another number."""
        count = max(1, round(len(self.segments) * factor))
        some = tuple(self.segments[place % len(self.segments)] for place in range(count))
        return Row(some, round(self.targets * factor))


@dataclass(frozen=True)
class Phase:
    """What lies in a device's memory at the worst moment of a phase: component -> bytes."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())
