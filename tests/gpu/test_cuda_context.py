"""Rows cut over two CUDA devices, by every method that there is."""

import json
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from posttrain.functional.cuts import part_of, places_of
from posttrain.models.attention import backends, segments
from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import Ring
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
ROWS = (((0, 1024, -1),), ((0, 300, -1), (300, 450, 0), (450, 900, 0), (900, 1024, -1)))
SCORINGS = (Scoring(0.2), Scoring(0.2, window=200), Scoring(0.2, softcap=5.0))
METHODS = ("ring", "ulysses", "torch")


def with_gradients(attend, layout, scoring, q, k, v, upstream):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, layout, scoring)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves)]


def compare(rank, port):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2)
    device, group = torch.device("cuda", rank), dist.new_group([0, 1])
    for method in METHODS:
        part = torch.cat([torch.arange(*piece, device=device) for piece in places_of(part_of(method, rank, 2), 1024)])
        for row in ROWS:
            for scoring in SCORINGS:
                draw = torch.Generator().manual_seed(0)
                given = [torch.randn(1, heads, 1024, 32, generator=draw).to(device, torch.bfloat16) for heads in (4, 2, 2, 4)]
                whole, cut = Layout(row, torch.zeros(0)), Layout(row, torch.zeros(0), ring=Ring(rank, 2, group), within="flex")
                wanted = with_gradients(segments.attention, whole, scoring, *(x.float() for x in given))
                found = with_gradients(backends.BACKENDS[method], cut, scoring, *(x[:, :, part] for x in given))
                for one, other in zip(found, wanted, strict=True):
                    wrong = (one.float() - other[:, :, part]).abs().max() / other.abs().max()
                    assert wrong < 5e-2, (method, row, scoring, float(wrong))
    dist.destroy_process_group()


def test_a_row_cut_over_devices_is_the_whole_row():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(compare, (port,), nprocs=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_cut_rows_follows_the_run_on_whole_ones(tmp_path, method):
    def losses(name, *more):
        base = ["hardware=2xa100", "data=arithmetic", "evaluation=none", "tracking=none", "max_steps=8", "precision=float32"]
        config = compose([*base, *more, f"output_dir={tmp_path / name}"])
        assert run_job(config) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    cut = losses("cut", "hardware.context_parallel=2", f"hardware.context_method={method}")
    assert cut == pytest.approx(losses("whole"), rel=1e-3)
