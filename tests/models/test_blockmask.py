"""The block mask of a token tree beside the one that FlexAttention finds by looking at every pair of tokens."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from posttrain.models.attention.blockmask import BLOCK, block_mask
from posttrain.models.attention.layout import Layout
from posttrain.models.attention.tiles import spans_of

ROWS = {
    "one sequence": ((0, 700, -1),),
    "segments of whole blocks": ((0, 128, -1), (128, 256, 0), (256, 512, 1)),
    "a tree and a neighbour": ((0, 300, -1), (300, 427, 0), (427, 700, 0), (700, 760, -1), (760, 1030, 3)),
}
LISTS = (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"), ("q_num_blocks", "q_indices"))


def by_token(layout, window):
    spans = spans_of(layout.segments)
    position = torch.cat([torch.arange(span.position, span.last + 1) for span in spans])
    segment = torch.cat([torch.full((span.end - span.start,), index) for index, span in enumerate(spans)])
    kin = torch.tensor([[other in (*layout.ancestors(index), index) for other in range(len(spans))] for index in range(len(spans))])

    def seen(_batch, _head, query, key):
        visible = (key <= query) & kin[segment[query], segment[key]]
        return visible if window is None else visible & (position[query] - position[key] < window)

    return seen


def listed(mask):
    """The blocks of every row, by list."""
    counts = [(getattr(mask, number)[0, 0].tolist(), getattr(mask, indices)[0, 0].tolist()) for number, indices in LISTS]
    return [[sorted(row[:count]) for count, row in zip(numbers, rows, strict=True)] for numbers, rows in counts]


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("row", ROWS)
def test_blocks_are_found_from_segments_alone(row, window):
    layout = Layout(ROWS[row], torch.zeros(0))
    total, cpu = layout.segments[-1][1], torch.device("cpu")
    ours, theirs = block_mask(layout, window=window, device=cpu), create_block_mask(by_token(layout, window), None, None, total, total, cpu)
    assert ours.shape == theirs.shape
    assert listed(ours) == listed(theirs)
    assert all(getattr(ours, indices).is_contiguous() for _, indices in LISTS)  # the CUDA kernel does not look at strides


def test_blocks_in_another_order_are_the_same_blocks():
    layout, cpu = Layout(((0, 512, -1), (512, 768, 0)), torch.zeros(0)), torch.device("cpu")
    mine, theirs = [1, 4], [0, 5, 1, 4, 2, 3]
    found = block_mask(layout, window=300, device=cpu, queries=mine, keys=theirs)
    places = [torch.cat([torch.arange(BLOCK * number, BLOCK * (number + 1)) for number in some]) for some in (mine, theirs)]
    here, there = torch.arange(len(places[0]))[:, None], torch.arange(len(places[1]))[None]
    assert torch.equal(found.mask_mod(0, 0, here, there), by_token(layout, 300)(0, 0, places[0][:, None], places[1][None]))
    assert found.shape == (1, 1, 256, 768)
