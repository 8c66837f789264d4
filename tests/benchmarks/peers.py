"""What the benchmarks beside TRL share: the common workload, one process a measurement, taking turns, and the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

Found = dict[str, float]
COMPILED = "model.compile=true"


@dataclass(frozen=True)
class Contest:
    """One comparison. task: of the workload. kind, batch: of trl_peer.py. unit: key of both results that counts, and its name in words.

    overrides: of the posttrain run; steps: (theirs, ours), the first of each is left out, and the first three of compiled layers, which are
    compiled again when another length comes. variants: further runs of ours, by what is added to their overrides; two processes with a
    thread each (hardware=2xcpu) use two cores better than one with two.
    """

    task: str
    kind: str
    batch: int
    unit: str
    words: str
    overrides: tuple[str, ...]
    steps: tuple[int, int]
    variants: tuple[tuple[str, ...], ...] = ()


def workload(peers: Path, folder: Path, task: str, vocab: int) -> None:
    """The common workload; the model's vocabulary is `vocab` even where the tokenizer learns fewer tokens."""
    command = [sys.executable, str(peers / "workload.py"), "--out", str(folder), "--task", task, "--vocab", str(min(vocab, 8192))]
    subprocess.run(command, check=True, capture_output=True)
    config = AutoConfig.from_pretrained(folder / "model")
    if config.vocab_size != vocab:
        config.vocab_size = vocab
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")


def trl(contest: Contest, peers: Path, folder: Path) -> Found:
    """What TRL's trainer of that kind did."""
    given = ["--workload", str(folder), "--batch", str(contest.batch), "--steps", str(contest.steps[0])]
    command = [sys.executable, str(peers / "trl_peer.py"), contest.kind, *given]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"speed": found[contest.unit], "gib": found["peak_gib"]}


def ours(contest: Contest, folder: Path, *overrides: str) -> Found:
    """The same of `posttrain`, from what the run leaves behind; memory is that of all its processes, each with as much as the first."""
    first = 3 if COMPILED in overrides else 1
    hardware = [] if any(text.startswith("hardware=") for text in overrides) else ["hardware=cpu"]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "posttrain", "model=hf", f"model.path={folder / 'model'}", "data=files",
            f"data.train={folder / 'train.jsonl'}", f"max_steps={contest.steps[1]}", *hardware, "evaluation=none", "tracking=none",
            "validate.at_start=false", "validate.at_end=false", f"output_dir={out}/run", *contest.overrides, *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        timed = [json.loads(line) for line in (Path(out) / "run" / "throughput.jsonl").read_text().splitlines()][first:]
        rows = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "examples" in row]
        result = json.loads((Path(out) / "run" / "result.json").read_text())
        processes = yaml.safe_load((Path(out) / "run" / "config.yaml").read_text())["hardware"]["devices"]
    seconds = sum(row["seconds"] for row in timed)
    done = {
        "tokens_per_second": sum(row["seconds"] * row["tokens_per_second"] for row in timed),
        "examples_per_second": steps[-1]["examples"] - steps[first - 1]["examples"],
    }
    return {
        "speed": done[contest.unit] / seconds,
        "gib": processes * result["peak_memory_bytes"] / 2**30,
        "flops_per_unit": result["flops"] / result["tokens" if contest.unit == "tokens_per_second" else "examples"],
    }


def matmul_rate(seconds: float = 2.0) -> float:
    """Float32 FLOP/s of a matrix product of the workload's size."""
    a, b = torch.randn(2048, 1152), torch.randn(1152, 1152)
    a @ b
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ b
        count += 1
    return count * 2 * 2048 * 1152 * 1152 / (time.perf_counter() - began)


def compare(
    made: Contest | Callable[[Path], Contest],
    title: str,
    prepare: Callable[[Path], None],
    peers: Path,
    rounds: int,
    overrides: Sequence[str],
) -> None:
    """Let them take turns, so that a drift of the machine's speed meets all, and print the table.

    made: the contest, or what makes it of the workload's folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        contest = made if isinstance(made, Contest) else made(folder)
        variants: dict[str, tuple[str, ...]] = {"posttrain": ()} | {" ".join(("posttrain", *added)): added for added in contest.variants}
        runs: dict[str, list[Found]] = {name: [] for name in ("TRL", *variants)}
        rates = []
        for _ in range(rounds):
            rates.append(matmul_rate())
            runs["TRL"].append(trl(contest, peers, folder))
            for name, added in variants.items():
                runs[name].append(ours(contest, folder, *added, *overrides))
    report(contest, title, runs, statistics.median(rates))


def report(contest: Contest, title: str, runs: dict[str, list[Found]], rate: float) -> None:
    """Medians over rounds, and the ratios of each round."""
    flops = runs["posttrain"][0]["flops_per_unit"]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, float32, matmul {rate / 1e9:.0f} GFLOP/s"
    table = Table(title=f"{title}: {machine}")
    for column in ("", contest.words, "peak GiB", "share of matmul rate"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in runs.items():
        speed, memory = (statistics.median(run[key] for run in found) for key in ("speed", "gib"))
        table.add_row(name, f"{speed:,.4g}", f"{memory:.2f}", f"{speed * flops / rate:.0%}")
    for name in list(runs)[1:]:
        pairs = list(zip(runs[name], runs["TRL"], strict=True))
        faster = [a["speed"] / b["speed"] for a, b in pairs]
        smaller = [a["gib"] / b["gib"] for a, b in pairs]
        table.add_row(f"{name} / TRL", f"{statistics.median(faster):.2f}x", f"{statistics.median(smaller):.2f}x", "")
        table.add_row("  least, most", f"{min(faster):.2f} {max(faster):.2f}", f"{min(smaller):.2f} {max(smaller):.2f}", "")
    Console(width=100).print(table)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_peers, default="../shared/peers", help="folder of workload.py and trl_peer.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="further overrides of the posttrain runs")
    return parser


def _peers(text: str) -> Path:
    if not (Path(text) / "trl_peer.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no trl_peer.py: give the folder of workload.py and trl_peer.py")
    return Path(text)
