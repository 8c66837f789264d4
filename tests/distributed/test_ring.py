"""Attention over a row that is cut over processes, against the same row whole."""

import itertools
import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import flex_attention as flex

from posttrain.functional.cuts import part_of, places_of
from posttrain.models.attention import backends
from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import Ring
from posttrain.runs.planning.attention import kept
from posttrain.runs.planning.cut import CUTS
from posttrain.runs.planning.shapes import AttentionShape, Row

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
# Rows of FlexAttention, cut over 2 and 4 ranks into pieces of whole blocks: 128, and 256 where a row has twice as many.
LONG = [
    (((0, 1024, -1),), Scoring(0.4, window=300)),
    (((0, 300, -1), (300, 450, 0), (450, 900, 0), (900, 1024, -1)), Scoring(0.3)),
    (((0, 100, -1), (100, 420, 0), (420, 800, 1), (800, 1000, 0), (1000, 1024, -1)), Scoring(0.5, window=200, softcap=1.5)),
]
BATCH = {"ring": 2, "ulysses": 1}  # attention over the whole row, which the latter hands on to, takes one
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}


def inputs(heads, dtype, seed=0, tokens=36):
    """q, k, v and the gradient that comes from above, of the whole row."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, heads[place], tokens, width) for place, width in ((0, 6), (1, 6), (1, 4), (0, 4))]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def written_out(q, k, v, layout, scoring):
    """Attention by a score for every pair of tokens of the whole row."""
    total = layout.segments[-1][1]
    seen, position = torch.zeros(total, total, dtype=torch.bool), torch.zeros(total, dtype=torch.int64)
    for index, (start, end, _) in enumerate(layout.segments):
        before = [place for i in layout.ancestors(index) for place in range(*layout.segments[i][:2])]
        position[start:end] = torch.arange(end - start) + len(before)
        seen[start:end, before] = True
        seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
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


def saved_bytes(attend, *given):
    """What autograd keeps of one call."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attend(*[x.contiguous().requires_grad_() for x in given])
    return sum(seen.values())


def compare_with_plan(method, backend, cut, heads, parts):
    """What a plan says that attention over a cut row keeps. parts: q, k, v of this rank."""
    shape = AttentionShape(*heads, 6, 4, None, explicit=False, element=4)
    row = Row(tuple((end - start, 0) for start, end, _ in cut.segments), 0)
    planned = CUTS[method].kept(shape, row, cut.ring.size, lambda some, whole: kept(some, whole, backend))
    taken = saved_bytes(lambda q, k, v: backends.BACKENDS[method](q, k, v, cut, Scoring(0.4)), *parts)
    assert abs(planned / taken - 1) < (0.05 if method == "torch" else 0.01), (method, planned, taken)  # the mask's own tensors


def compare_gathered(group, size):
    """PyTorch's context parallelism. It refuses gradients on a CPU, where FlexAttention has a formula for them but no kernel: the formula."""
    flex._validate_device = lambda *_: None
    flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    rank = dist.get_rank(group)
    given = [x[:1] for x in inputs((4, 2), torch.float32, tokens=1024)]
    part = torch.cat([torch.arange(*piece) for piece in places_of(part_of("torch", rank, size), 1024)])
    for layout, scoring in LONG:
        whole, cut = Layout(layout, torch.zeros(0)), Layout(layout, torch.zeros(0), ring=Ring(rank, size, group))
        wanted = with_gradients(lambda q, k, v: written_out(q, k, v, whole, scoring), *[x.double() for x in given])  # noqa: B023
        found = with_gradients(lambda q, k, v: backends.BACKENDS["torch"](q, k, v, cut, scoring), *[x[:, :, part] for x in given])  # noqa: B023
        for one, other in zip(found, wanted, strict=True):
            wrong = (one.double() - other[:, :, part]).abs().max() / other.abs().max()
            assert wrong < 2e-6, (size, layout, scoring, float(wrong))


def plan(group, size):
    for method, backend, heads, tokens in (("ring", "", (4, 2), 36), ("ulysses", "blocked", (6, 2), 36), ("torch", "", (4, 2), 1536)):
        here = Ring(dist.get_rank(group), size, group)
        parts = [x[:1, :, : tokens // size] for x in inputs(heads, torch.float32, tokens=tokens)][:3]
        compare_with_plan(method, backend, Layout(((0, tokens, -1),), torch.zeros(0), ring=here), heads, parts)


def refuse():
    whole, row = Layout(((0, 36, -1),), torch.zeros(0)), torch.zeros(1, 1, 36, 4)
    cases = [(Scoring(1.0, dropout=0.1), row), (Scoring(1.0, sinks=row), row), (Scoring(1.0), row[:, :, :35])]
    for attend, (scoring, part) in itertools.product((backends.BACKENDS[name] for name in ("ring", "ulysses", "torch")), cases):
        with pytest.raises(ValueError, match=r"neither sinks nor dropout|are not a row"):
            attend(part, part, part, whole, scoring)
    three = Layout(((0, 36, -1),), torch.zeros(0), ring=Ring(0, 3))
    with pytest.raises(ValueError, match="not shared out evenly"):
        backends.BACKENDS["ulysses"](row[:, :, :12], row[:, :, :12], row[:, :, :12], three, Scoring(1.0))


def work(rank, file):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=4)
    pair, three = dist.new_group([1, 2]), dist.new_group([0, 1, 2])
    compare_gathered(None, 4)
    if rank < 3:
        compare(three, 3)
        plan(three, 3)
    if rank in (1, 2):
        compare(pair, 2)
        compare_gathered(pair, 2)
    elif rank == 0:
        refuse()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_row_cut_over_processes_is_the_whole_row(tmp_path):
    """Values and gradients, on rings of three and of two, over exchanged heads, and with keys gathered over four and over two: trees,
    windows, soft-capping, shared key heads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["posttrain.models.attention.passing"])
    ranks = [context.Process(target=work, args=(rank, tmp_path / "store")) for rank in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0, 0, 0]
