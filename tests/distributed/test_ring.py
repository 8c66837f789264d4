"""Attention over a row that is cut over processes, against the same row whole."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
from preloaded import SERVER

from posttrain.models.attention import backends
from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import Ring

# Boundaries of 2 and 3 stretches of 36 tokens lie at 12, 18 and 24: in the middle of segments, shared ones among them, and beside an end.
LAYOUTS = {
    "one sequence": ((0, 36, -1),),
    "a prompt and its answers": ((0, 20, -1), (20, 27, 0), (27, 36, 0)),
    "three floors and a neighbour": ((0, 5, -1), (5, 14, 0), (14, 17, 1), (17, 24, 1), (24, 25, 0), (25, 36, -1)),
}
SCORINGS = [
    Scoring(0.4),
    Scoring(0.3, window=5),
    Scoring(0.5, softcap=1.5),
]
BATCH = {"ring": 2, "ulysses": 1}  # attention over the whole row, which the latter hands on to, takes one
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}


def inputs(heads, dtype, seed=0):
    """q, k, v and the gradient that comes from above, of the whole row."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, heads[0], 36, 6), (2, heads[1], 36, 6), (2, heads[1], 36, 4), (2, heads[0], 36, 4)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def written_out(q, k, v, layout, scoring):
    """Attention by a score for every pair of tokens of the whole row."""
    seen, position = torch.zeros(36, 36, dtype=torch.bool), torch.zeros(36, dtype=torch.int64)
    for index, (start, end, _) in enumerate(layout.segments):
        before = [place for i in layout.ancestors(index) for place in range(*layout.segments[i][:2])]
        position[start:end] = torch.arange(end - start) + len(before)
        for query in range(start, end):
            seen[query, [*before, *range(start, query + 1)]] = True
    if scoring.window is not None:
        seen &= position[:, None] - position[None] < scoring.window
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scoring.scale
    scores = scores if scoring.softcap is None else scoring.softcap * torch.tanh(scores / scoring.softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def with_gradients(attend, q, k, v, upstream):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves)]


def compare(group, size):
    """All cases on one ring; the whole row is computed in float64."""
    rank = dist.get_rank(group)
    here = Ring(rank, size, group)
    part = slice(rank * 36 // size, (rank + 1) * 36 // size)
    methods = {"ring": [(4, 2), (3, 3)], "ulysses": [(6, 6), (6, 2), (6, 3), (6, 1)]}
    cases = [(method, heads) for method, some in methods.items() for heads in some]
    for (method, heads), layout, scoring, dtype in itertools.product(cases, LAYOUTS.values(), SCORINGS, EXACT):
        whole, cut = Layout(layout, torch.zeros(0)), Layout(layout, torch.zeros(0), ring=here)
        attend = backends.BACKENDS[method]
        given = [x[: BATCH[method]] for x in inputs(heads, dtype)]
        wanted = with_gradients(lambda q, k, v: written_out(q, k, v, whole, scoring), *[x.double() for x in given])  # noqa: B023
        found = with_gradients(lambda q, k, v: attend(q, k, v, cut, scoring), *[x[:, :, part] for x in given])  # noqa: B023
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == dtype
            wrong = (one.double() - other[:, :, part]).abs().max() / other.abs().max()
            single = method == "ulysses" and scoring.softcap is not None  # written out, its softmax is taken in float32
            assert wrong < EXACT[torch.float32 if single else dtype], (method, layout, scoring, heads, dtype, float(wrong))


def refuse():
    whole, row = Layout(((0, 36, -1),), torch.zeros(0)), torch.zeros(1, 1, 36, 4)
    cases = [(Scoring(1.0, dropout=0.1), row), (Scoring(1.0, sinks=row), row), (Scoring(1.0), row[:, :, :35])]
    for attend, (scoring, part) in itertools.product((backends.BACKENDS["ring"], backends.BACKENDS["ulysses"]), cases):
        with pytest.raises(ValueError, match=r"neither sinks nor dropout|are not a row"):
            attend(part, part, part, whole, scoring)
    three = Layout(((0, 36, -1),), torch.zeros(0), ring=Ring(0, 3))
    with pytest.raises(ValueError, match="not shared out evenly"):
        backends.BACKENDS["ulysses"](row[:, :, :12], row[:, :, :12], row[:, :, :12], three, Scoring(1.0))


def work(rank, file):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    pair = dist.new_group([1, 2])
    compare(None, 3)
    if rank > 0:
        compare(pair, 2)
    else:
        refuse()
    dist.barrier()
    dist.destroy_process_group()


def test_a_row_cut_over_processes_is_the_whole_row(tmp_path):
    """Values and gradients, on rings of three and of two and over exchanged heads: trees, windows, soft-capping, shared key heads."""
    ranks = [SERVER.Process(target=work, args=(rank, tmp_path / "store")) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
