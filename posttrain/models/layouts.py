"""The slow layouts that every family supports: segments repeated along one row, and padded batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.types import TokenTree

if TYPE_CHECKING:
    from posttrain.models.policy import PolicyModel


def paths(tree: TokenTree) -> list[list[int]]:
    """Every leaf's chain of segments, root first."""
    parents = tree.segments[:, 2].tolist()
    chains = []
    for leaf in sorted(set(range(len(parents))) - set(parents)):
        chain = [leaf]
        while parents[chain[-1]] >= 0:
            chain.append(parents[chain[-1]])
        chains.append(chain[::-1])
    return chains


def _places(tree: TokenTree) -> list[Tensor]:
    """For every leaf, the places of its whole sequence in the tree's row."""
    spans = tree.segments.tolist()
    return [torch.cat([torch.arange(spans[s][0], spans[s][1]) for s in chain]) for chain in paths(tree)]


def _home(rows: list[Tensor], flat: Tensor, total: int) -> Tensor:
    """For every place of the tree, where (in `flat`'s numbering, one entry a token of `rows`) its hidden state is found."""
    home = torch.empty(total, dtype=torch.int64)
    # Later writes win; any copy of a shared token has the same hidden state.
    home[torch.cat(rows)] = flat
    return home


def unshared(tree: TokenTree) -> tuple[TokenTree, Tensor]:
    """The tree with every leaf's sequence written out as a root of its own, and [T] places of the original tokens in it."""
    rows = _places(tree)
    device = tree.ids.device
    order = torch.cat(rows).to(device)
    lengths = torch.tensor([len(row) for row in rows])
    ends = lengths.cumsum(0)
    spans = torch.stack([ends - lengths, ends, torch.full_like(ends, -1)], 1)
    home = _home(rows, torch.arange(int(ends[-1])), len(tree.ids)).to(device)
    return replace(tree, ids=tree.ids[order], positions=tree.positions[order], segments=spans), home


def padded_hidden(policy: PolicyModel, tree: TokenTree, noise: float = 0.0) -> tuple[Tensor, Tensor | None]:
    """Hidden states [T, H] of a tree computed as a right-padded batch, one row a leaf."""
    rows = _places(tree)
    device = tree.ids.device
    ids = pad_sequence([tree.ids[row.to(device)] for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True).to(device)
    width = ids.shape[1]
    out = policy.backbone(ids, noise, mask.sum(1, keepdim=True).float(), attention_mask=mask)
    flat = torch.cat([number * width + torch.arange(len(row)) for number, row in enumerate(rows)])
    home = _home(rows, flat, len(tree.ids)).to(device)
    return out.last_hidden_state.flatten(0, 1)[home], policy.auxiliary(out, policy.causal_lm.config, mask)
