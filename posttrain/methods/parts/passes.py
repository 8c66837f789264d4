"""Forward passes over many trees between optimizer steps, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.data.plan import balance, first_fit
from posttrain.data.tree import collate, ghost, to_device
from posttrain.methods.parts.collectives import gather
from posttrain.types import StepShare, TokenizedExample, TokenTree

Columns = dict[str, np.ndarray]


def columns_of(
    trees: Sequence[TokenizedExample], read: Callable[[TokenTree], Mapping[str, Tensor]], *, max_tokens: int, device: torch.device
) -> list[Columns]:
    """What `read` says of the targets of every tree, on every rank: by name float32 [T], 0 at places that are no targets.

    read: a micro-batch -> columns [N]. All ranks make as many passes.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not trees:
        return []
    lengths = np.array([len(tree.ids) for tree in trees], np.int64)
    bins = math.ceil(first_fit(lengths, max_tokens) / world) * world
    mine = balance(lengths, bins, max_tokens)[rank::world]
    found = {place: columns for places in mine for place, columns in _pass(trees, places, read, device)}
    everybody = {place: columns for part in gather(found) for place, columns in part.items()}
    return [everybody[place] for place in range(len(trees))]


def _pass(
    trees: Sequence[TokenizedExample], places: Sequence[int], read: Callable[[TokenTree], Mapping[str, Tensor]], device: torch.device
) -> Iterator[tuple[int, Columns]]:
    """One micro-batch: (which tree, its columns)."""
    some = [trees[place] for place in places]
    share = StepShare(float(sum(tree.weights.sum() for tree in some)), len(some), 1)
    values = read(to_device(collate(some or [ghost(trees[0])], share), device))
    targets = [np.flatnonzero(tree.weights) for tree in some]
    ends = np.cumsum([len(places) for places in targets])[:-1]
    split = {name: np.split(value.detach().float().cpu().numpy(), ends) for name, value in values.items()}
    for number, (place, tree) in enumerate(zip(places, some, strict=True)):
        yield place, {name: _spread(parts[number], targets[number], len(tree.ids)) for name, parts in split.items()}


def _spread(values: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    whole = np.zeros(length, np.float32)
    whole[places] = values
    return whole


def per_answer(tree: TokenizedExample, column: np.ndarray) -> list[np.ndarray]:
    """A column [T] of a prompt and its answers cut into the answers' parts."""
    ends = np.cumsum(tree.segment_lengths)
    return np.split(column, ends[:-1])[1:]
