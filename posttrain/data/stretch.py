"""A micro-batch's row cut into equal stretches, each a rank's."""

from __future__ import annotations

from dataclasses import replace

import torch

from posttrain.functional.cuts import places_of
from posttrain.types import StepShare, Stretch, TokenTree

WHOLE = Stretch()


def stretch_of(tree: TokenTree, stretch: Stretch) -> TokenTree:
    """A stretch of a micro-batch: its tokens, and the targets that its hidden states predict. Losses of stretches add up as those of
    micro-batches do.

    Segments stay those of the whole row, which is filled up to a multiple of the stretches' blocks by a segment that nothing sees and
    that has no target. Places are counted within the stretch.
    """
    if stretch.size == 1:
        return tree
    whole = _filled(tree, -len(tree.ids) % (stretch.size * stretch.pieces * stretch.block))
    here = torch.cat([torch.arange(first, end) for first, end in places_of(stretch, len(whole.ids))])
    place = torch.full((len(whole.ids),), -1).scatter_(0, here, torch.arange(len(here)))  # within the stretch; -1: elsewhere
    source, mark = place[whole.source], place[whole.mark]
    targets, marks = source >= 0, mark >= 0
    return replace(
        whole,
        ids=whole.ids[here],
        positions=whole.positions[here],
        source=source[targets],
        target=whole.target[targets],
        segment=whole.segment[targets],
        weight=whole.weight[targets],
        mark=mark[marks],
        mark_segment=whole.mark_segment[marks],
        value=whole.value[marks],
        share=_parted(whole.share, stretch.size),
        reference=None if whole.reference is None else whole.reference[targets],
        columns={name: column[targets] for name, column in whole.columns.items()},
        stretch=stretch,
    )


def _parted(share: StepShare, size: int) -> StepShare:
    """Every micro-batch is as many parts of the step as it has stretches."""
    return replace(share, parts=share.parts * size, filled=None if share.filled is None else share.filled * size)


def _filled(tree: TokenTree, missing: int) -> TokenTree:
    """The row with a root segment of so many tokens behind it."""
    if not missing:
        return tree
    end, filler = len(tree.ids), torch.arange(missing)
    segment = torch.tensor([[end, end + missing, -1]], dtype=tree.segments.dtype)
    return replace(
        tree,
        ids=torch.cat([tree.ids, tree.ids[:1].expand(missing)]),
        positions=torch.cat([tree.positions, filler.to(tree.positions)]),
        segments=torch.cat([tree.segments, segment]),
        example=torch.cat([tree.example, tree.example[-1:]]),
    )
