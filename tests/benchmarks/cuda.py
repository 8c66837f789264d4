"""SFT, DPO and GRPO beside TRL on one GPU in bfloat16 arithmetic, at a named model's true shapes with random weights, in one run.

    python tests/benchmarks/cuda.py [--model gemma_1b] [--tasks sft dpo grpo] [--peers ../shared/peers] [--rounds 3] [OVERRIDE ...]

Speed, peak device memory, and the share of the device's bfloat16 matmul rate. Each measurement is a process of its own; the frameworks
take turns. Both have float32 weights, a whole float32 AdamW state and no gradient checkpointing. Needs the dev extra (trl).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from grpo import REWARD
from omegaconf import OmegaConf
from peers import Found, arguments
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Contest:
    """One comparison. theirs: batch, micro-batch (see trl_cuda.py). ours: overrides. unit: the key of both results, in words. steps: of both,
    and how many at the start are left out, in which kernels are chosen and compiled."""

    task: str
    theirs: tuple[int, int]
    ours: tuple[str, ...]
    unit: str
    words: str
    steps: tuple[int, int]


CONTESTS = {
    "sft": Contest("sft", (8, 8), ("method=sft", "global_batch=56", "max_tokens=8192"), "tokens_per_second", "tokens/s", (16, 3)),
    "dpo": Contest(
        "dpo", (32, 8), ("method=dpo", "global_batch=32", "max_tokens=8192", "method.reference=copy"), "examples_per_second", "pairs/s", (10, 3)
    ),
    "grpo": Contest(
        "grpo", (16, 16),
        ("method=grpo", "method.loss=dapo", "method.kl.coef=0.04", "method.reference=copy", "global_batch=16", "max_tokens=16384",
         "max_length=1024", "rollout.max_new_tokens=256", "reward=function", "log.samples_every=null"),
        "examples_per_second", "prompts/s", (4, 1),
    ),
}  # fmt: skip


def workload(peers: Path, folder: Path, task: str, model: str) -> None:
    """The common workload; its model is replaced by random weights in the named model's shapes."""
    command = [sys.executable, str(peers / "workload.py"), "--out", str(folder), "--task", task, "--rows", "2048"]
    subprocess.run(command, check=True, capture_output=True)
    shapes = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"{model}.yaml").architecture)
    ends = AutoConfig.from_pretrained(folder / "model")
    config = AutoConfig.for_model(**shapes | {key: getattr(ends, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")})
    torch.manual_seed(0)
    with torch.device("cuda"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.save_pretrained(folder / "model")
    del made
    torch.cuda.empty_cache()


def run(command: list[str]) -> str:
    """Its standard output. Raises RuntimeError with the end of what it said where it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    print(f"{time.perf_counter() - began:.0f} s: {' '.join(command[1:5])} ...", flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def trl(contest: Contest, folder: Path) -> Found:
    """What TRL's trainer did."""
    batch, micro = contest.theirs
    given = [f"--batch={batch}", f"--micro={micro}", f"--steps={contest.steps[0]}", f"--skip={contest.steps[1]}", f"--workload={folder}"]
    found = json.loads(run([sys.executable, str(Path(__file__).with_name("trl_cuda.py")), contest.task, *given]).splitlines()[-1])
    return {"speed": found[contest.unit], "gib": found["peak_gib"]}


def ours(contest: Contest, folder: Path, keep: Path | None, *overrides: str) -> Found:
    """What `posttrain` did, from what its run leaves behind; its records go to the folder `keep`."""
    (folder / "score.py").write_text(REWARD)
    paid = [f"reward.function.path={folder / 'score.py'}:score"] if contest.task == "grpo" else []
    with tempfile.TemporaryDirectory() as out:
        run([
            sys.executable, "-m", "posttrain", "hardware=auto", "model=hf", f"model.path={folder / 'model'}", "data=files",
            f"data.train={folder / 'train.jsonl'}", f"max_steps={contest.steps[0]}", "evaluation=none", "tracking=none",
            "validate.at_start=false", "validate.at_end=false", f"output_dir={out}/run", *contest.ours, *paid, *overrides,
        ])  # fmt: skip
        times = [json.loads(line) for line in (Path(out) / "run" / "throughput.jsonl").read_text().splitlines()]
        result = json.loads((Path(out) / "run" / "result.json").read_text())
        for name in ("log.txt", "throughput.jsonl", "metrics.jsonl", "result.json") if keep else ():
            (keep / contest.task).mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(out) / "run" / name, keep / contest.task)
    timed = times[contest.steps[1] :]
    seconds, share = sum(row["seconds"] for row in timed), len(timed) / len(times)
    count = {
        "tokens_per_second": sum(row["seconds"] * row["tokens_per_second"] for row in timed),
        "examples_per_second": result["examples"] * share,
    }
    return {
        "speed": count[contest.unit] / seconds,
        "gib": result["peak_memory_bytes"] / 2**30,
        "flops_per_unit": result["flops"] / result["tokens" if contest.unit == "tokens_per_second" else "examples"],
        "start": sum(row["seconds"] for row in times[: contest.steps[1]]),
    }


def matmul_rate(size: int = 8192, times: int = 20) -> float:
    """Bfloat16 FLOP/s of a square matrix product on random data."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    torch.cuda.synchronize()
    return times * 2 * size**3 / (time.perf_counter() - began)


def compare(contest: Contest, given: argparse.Namespace, folder: Path) -> Table:
    """Let the two take turns; the table of medians over rounds."""
    workload(given.peers, folder, contest.task, given.model)
    rate = matmul_rate()
    torch.cuda.empty_cache()
    pairs = []
    for _ in range(given.rounds):
        pairs.append((trl(contest, folder), ours(contest, folder, given.keep, *given.overrides)))
        print(contest.task, *pairs[-1], flush=True)
    middle = [{key: statistics.median(pair[side][key] for pair in pairs) for key in pairs[0][side]} for side in (0, 1)]
    title = f"{contest.task}, {given.model}, random weights: {torch.cuda.get_device_name()}, bf16, matmul {rate / 1e12:.0f} TFLOP/s"
    table = Table("", contest.words, "peak GiB", "share of matmul rate", title=title)
    for name, found in zip(("TRL", "posttrain"), middle, strict=True):
        share = found["speed"] * middle[1]["flops_per_unit"] / rate
        table.add_row(name, f"{found['speed']:,.4g}", f"{found['gib']:.1f}", f"{share:.0%}")
    theirs, own = middle
    table.add_row("posttrain / TRL", f"{own['speed'] / theirs['speed']:.2f}x", f"{own['gib'] / theirs['gib']:.2f}x", "")
    return table


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(rounds=3)
    parser.add_argument("--model", default="gemma_1b", help="a named model of conf/model")
    parser.add_argument("--keep", type=Path, help="folder for the records of posttrain's runs")
    parser.add_argument("--tasks", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    given = parser.parse_intermixed_args()
    for task in given.tasks:
        with tempfile.TemporaryDirectory() as folder:
            Console(width=110).print(compare(CONTESTS[task], given, Path(folder)))


if __name__ == "__main__":
    main()
