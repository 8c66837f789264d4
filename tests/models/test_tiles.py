"""Who sees what between two stretches of a row, against the rule written out for every pair of tokens."""

import itertools

import pytest
import torch

from posttrain.models.attention.layout import Layout
from posttrain.models.attention.tiles import mask_of, spans_of, tiles_between

SEGMENTS = ((0, 7, -1), (7, 12, 0), (12, 13, 1), (13, 19, 0), (19, 28, -1), (28, 30, -1))


def rule(segments, window):
    """Bool [T, T]: the query's own segment or an ancestor of it, not behind it, within the window."""
    layout, total = Layout(segments, torch.zeros(0)), segments[-1][1]
    segment, position = [], []
    for index, ((start, end, _), span) in enumerate(zip(segments, spans_of(segments), strict=True)):
        segment += [index] * (end - start)
        position += range(span.position, span.last + 1)
    seen = torch.zeros(total, total, dtype=torch.bool)
    for q, k in itertools.product(range(total), repeat=2):
        kin = segment[k] in (*layout.ancestors(segment[q]), segment[q])
        seen[q, k] = kin and k <= q and (window is None or position[q] - position[k] < window)
    return seen


@pytest.mark.parametrize("window", [None, 1, 4, 9])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_tiles_hold_exactly_what_is_seen(window, parts):
    layout, length = Layout(SEGMENTS, torch.zeros(0)), 30 // parts
    found = torch.zeros(30, 30, dtype=torch.bool)
    stretches = [(rank * length, (rank + 1) * length) for rank in range(parts)]
    for mine, theirs in itertools.product(stretches, repeat=2):
        tiles = tiles_between(layout, mine, theirs, window=window, block=4)
        for tile in tiles:
            assert tile.queries.end - tile.queries.start <= 4
            asked = torch.cat([torch.arange(span.start, span.end) for span in tile.keys])
            assert theirs[0] <= asked.min()
            assert asked.max() < theirs[1]
            mask = mask_of(tile, window=window, device=torch.device("cpu"))
            seen = torch.ones(tile.queries.end - tile.queries.start, len(asked), dtype=torch.bool) if mask is None else mask
            found[tile.queries.start : tile.queries.end, asked] |= seen
        if mine < theirs:
            assert not tiles
    assert torch.equal(found, rule(SEGMENTS, window))
