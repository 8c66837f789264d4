"""Token trees: sequences merged over common prefixes, and examples collated into one micro-batch row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from posttrain.types import StepShare, TokenizedExample, TokenTree

if TYPE_CHECKING:
    import torch

WeightedSequence = tuple[np.ndarray, np.ndarray]


def tree_of(sequences: Sequence[WeightedSequence], values: Sequence[float] | None = None) -> TokenizedExample:
    """Merge token sequences into one tree that holds every common prefix once.

    sequences: (ids [L] int, weights [L] float) pairs. Tokens are shared only where no sharing sequence trains them, so each
    target belongs to exactly one sequence. The first token of a root has no predictor: its weight becomes 0.
    values: what is known of each sequence, at its last token; NaN without.
    Raises ValueError for no sequence, an empty one, or unequal lengths.
    """
    if not sequences:
        raise ValueError("a token tree needs at least one sequence")
    for ids, weights in sequences:
        if len(ids) == 0 or len(ids) != len(weights):
            raise ValueError(f"a sequence needs as many weights as ids and at least one, got {len(ids)} ids and {len(weights)} weights")
    parts: list[tuple[np.ndarray, np.ndarray, int]] = []
    ends = np.zeros(len(sequences), np.int64)
    numbered = [(np.asarray(i, np.int32), np.asarray(w, np.float32), number) for number, (i, w) in enumerate(sequences)]
    _grow(numbered, -1, parts, ends)
    weights = np.concatenate([w for _, w, _ in parts]).astype(np.float32, copy=True)
    lengths = np.array([len(i) for i, _, _ in parts], np.int32)
    parents = np.array([p for _, _, p in parts], np.int32)
    last = np.cumsum(lengths) - 1
    weights[(last - lengths + 1)[parents < 0]] = 0.0
    known = np.full(len(sequences), np.nan) if values is None else np.asarray(values)
    ids = np.concatenate([i for i, _, _ in parts]).astype(np.int32, copy=False)
    return TokenizedExample(ids, weights, lengths, parents, last[ends].astype(np.int32), known.astype(np.float32))


Numbered = tuple[np.ndarray, np.ndarray, int]


def _grow(sequences: list[Numbered], parent: int, parts: list[tuple[np.ndarray, np.ndarray, int]], ends: np.ndarray) -> None:
    """Append the segments of `sequences` under `parent`, depth first; sequences that start alike share a segment.

    ends [sequences of the tree] receives the segment in which each ends.
    """
    groups: dict[tuple[int, bool], list[Numbered]] = {}
    for place, (ids, weights, number) in enumerate(sequences):
        alone = bool(weights[0] != 0)
        groups.setdefault((place, True) if alone else (int(ids[0]), False), []).append((ids, weights, number))
    for group in groups.values():
        shared = _shared_length([(ids, weights) for ids, weights, _ in group])
        ids, weights, _ = group[0]
        parts.append((ids[:shared], weights[:shared], parent))
        here = len(parts) - 1
        ends[[number for ids, _, number in group if len(ids) == shared]] = here
        rests = [(ids[shared:], weights[shared:], number) for ids, weights, number in group if len(ids) > shared]
        if rests:
            _grow(rests, here, parts, ends)


def _shared_length(group: list[WeightedSequence]) -> int:
    """Tokens that all sequences of the group begin with and none trains; the whole sequence where it stands alone."""
    first_ids = group[0][0]
    if len(group) == 1:
        return len(first_ids)
    shared = min(len(ids) for ids, _ in group)
    for ids, weights in group:
        same = (ids[:shared] == first_ids[:shared]) & (weights[:shared] == 0)
        shared = shared if same.all() else int(np.argmin(same))
    return shared


def answered(prompt: np.ndarray, answers: Sequence[np.ndarray], columns: Mapping[str, Sequence[np.ndarray]]) -> TokenizedExample:
    """A prompt [P] with its sampled answers, each a branch of its own and all trained. columns: by name, of each answer's tokens."""
    lengths = np.array([len(prompt), *map(len, answers)], np.int32)
    ids = np.concatenate([prompt, *answers]).astype(np.int32)
    trained = np.ones(len(ids), np.float32)
    trained[: len(prompt)] = 0.0
    before = np.zeros(len(prompt), np.float32)
    known = {name: np.concatenate([before, *parts]).astype(np.float32) for name, parts in columns.items()}
    parents = np.where(np.arange(len(lengths)) == 0, -1, 0).astype(np.int32)
    marks = (np.cumsum(lengths)[1:] - 1).astype(np.int32)
    return TokenizedExample(ids, trained, lengths, parents, marks, np.full(len(answers), np.nan, np.float32), columns=known)


def nothing(share: StepShare, columns: Sequence[str] = ()) -> TokenTree:
    """A micro-batch that is empty on every rank and needs no forward pass."""
    import torch

    none, real = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    segments = torch.zeros(0, 3, dtype=torch.int64)
    return TokenTree(none, none, segments, none, none, none, real, none, none, none, real, share, columns=dict.fromkeys(columns, real))


def collate(examples: Sequence[TokenizedExample], share: StepShare) -> TokenTree:
    """Lay examples one after the other into one row. No padding.

    The target at the first place of a segment is predicted by the last token of its parent; places of weight 0 are no targets.
    Raises ValueError for an empty list; a rank without work in a step gets `ghost`.
    """
    if not examples:
        raise ValueError("a micro-batch needs at least one example")
    import torch  # not for tokenising workers, which only build trees

    ids = np.concatenate([e.ids for e in examples])
    weights = np.concatenate([e.weights for e in examples])
    lengths = np.concatenate([e.segment_lengths for e in examples]).astype(np.int64)
    counts = np.array([len(e.segment_lengths) for e in examples])
    offsets = np.repeat(np.cumsum(counts) - counts, counts)
    parents = np.concatenate([e.segment_parents for e in examples]).astype(np.int64)
    parents = np.where(parents < 0, -1, parents + offsets)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    before = np.cumsum([0, *(len(e.ids) for e in examples[:-1])])
    marks = np.concatenate([e.marks + start for e, start in zip(examples, before, strict=True)])
    previous = np.arange(len(ids)) - 1
    previous[starts] = np.where(parents < 0, -1, ends[parents] - 1)
    places = np.flatnonzero((weights != 0) & (previous >= 0))
    return TokenTree(
        ids=torch.from_numpy(ids.astype(np.int64)),
        positions=torch.from_numpy(_positions(starts, lengths, parents)),
        segments=torch.from_numpy(np.stack([starts, ends, parents], 1)),
        source=torch.from_numpy(previous[places]),
        target=torch.from_numpy(ids[places].astype(np.int64)),
        segment=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[places]),
        weight=torch.from_numpy(weights[places].astype(np.float32)),
        example=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
        mark=torch.from_numpy(marks),
        mark_segment=torch.from_numpy(np.searchsorted(ends, marks, side="right")),
        value=torch.from_numpy(np.concatenate([e.values for e in examples]).astype(np.float32)),
        share=share,
        reference=_known(examples, places),
        columns=_columns(examples, places),
    )


def _known(examples: Sequence[TokenizedExample], places: np.ndarray) -> torch.Tensor | None:
    """The reference's log-probabilities at `places` of the row; None unless every example has them."""
    import torch

    columns = [example.reference for example in examples if example.reference is not None]
    return torch.from_numpy(np.concatenate(columns)[places].astype(np.float32)) if len(columns) == len(examples) else None


def _columns(examples: Sequence[TokenizedExample], places: np.ndarray) -> dict[str, torch.Tensor]:
    """What is known of the targets at `places` of the row, by name."""
    import torch

    joined = {name: np.concatenate([example.columns[name] for example in examples]) for name in examples[0].columns}
    return {name: torch.from_numpy(column[places].astype(np.float32)) for name, column in joined.items()}


def _positions(starts: np.ndarray, lengths: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Position of every token; a segment continues where its parent ends."""
    first = np.zeros(len(lengths), np.int64)
    for segment in np.flatnonzero(parents >= 0):
        first[segment] = first[parents[segment]] + lengths[parents[segment]]
    return np.arange(int(lengths.sum())) - np.repeat(starts - first, lengths)


def ghost(example: TokenizedExample) -> TokenizedExample:
    """One token without a target: what a rank runs when a step has nothing for it, so that collectives still meet."""
    one = np.ones(1, np.int32)
    nothing = np.zeros(0, np.int32)
    known = None if example.reference is None else np.zeros(1, np.float32)
    columns = {name: column[:1] for name, column in example.columns.items()}
    return TokenizedExample(example.ids[:1], np.zeros(1, np.float32), one, -one, nothing, nothing.astype(np.float32), known, columns)


def to_device(tree: TokenTree, device: torch.device) -> TokenTree:
    """The tree with what the model computes on at `device`; segments and example numbers stay on the host."""
    names = ["ids", "positions", "source", "target", "segment", "weight", "mark", "mark_segment", "value"]
    names += [] if tree.reference is None else ["reference"]
    moved = {name: getattr(tree, name).to(device, non_blocking=True) for name in names}
    return replace(tree, **moved, columns={name: column.to(device, non_blocking=True) for name, column in tree.columns.items()})
