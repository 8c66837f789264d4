"""SFT beside TRL on the common workload, in one run: real tokens per second, peak memory, share of the matmul rate.

    python tests/benchmarks/sft.py [--peers ../shared/peers] [--rounds 3] [--vocab 8192 65536]

Each measurement is a process of its own; the two frameworks take turns, so that a drift of the machine's speed meets both.
Needs the dev extra (trl). Prints one table a vocabulary.
"""

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
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

TRL_STEPS, TRL_BATCH = 8, 2  # 2 packed rows of 1,024 tokens
OUR_STEPS, OUR_BATCH = 12, 6  # 6 conversations have about 2,300 tokens


def workload(peers: Path, folder: Path, vocab: int) -> None:
    """The common workload; the model's vocabulary is `vocab` even where the tokenizer learns fewer tokens."""
    command = [sys.executable, str(peers / "workload.py"), "--out", str(folder), "--task", "sft", "--vocab", str(min(vocab, 8192))]
    subprocess.run(command, check=True, capture_output=True)
    config = AutoConfig.from_pretrained(folder / "model")
    if config.vocab_size != vocab:
        config.vocab_size = vocab
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")


def trl(peers: Path, folder: Path, kind: str) -> dict[str, float]:
    """Tokens per second and peak GiB of TRL's SFTTrainer."""
    batch = TRL_BATCH if kind == "sft" else 8
    given = ["--workload", str(folder), "--batch", str(batch), "--steps", str(TRL_STEPS)]
    command = [sys.executable, str(peers / "trl_peer.py"), kind, *given]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"tokens_per_second": found["tokens_per_second"], "gib": found["peak_gib"], "seconds": found["seconds_per_step"]}


def ours(folder: Path, *overrides: str) -> dict[str, float]:
    """The same of `posttrain`, from what the run leaves behind; the first step is left out, as it is for TRL."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "posttrain", "method=sft", "model=hf", f"model.path={folder / 'model'}", "data=files",
            f"data.train={folder / 'train.jsonl'}", f"global_batch={OUR_BATCH}", "max_tokens=2048", f"max_steps={OUR_STEPS}", "hardware=cpu",
            "evaluation=none", "tracking=none", "validate.at_start=false", "validate.at_end=false", f"output_dir={out}/run", *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        rows = [json.loads(line) for line in (Path(out) / "run" / "throughput.jsonl").read_text().splitlines()][1:]
        result = json.loads((Path(out) / "run" / "result.json").read_text())
    seconds = [row["seconds"] for row in rows]
    tokens = [row["seconds"] * row["tokens_per_second"] for row in rows]
    flops = result["flops"] / result["tokens"]
    return {
        "tokens_per_second": sum(tokens) / sum(seconds),
        "gib": result["peak_memory_bytes"] / 2**30,
        "seconds": statistics.median(seconds),
        "flops_per_token": flops,
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


def measure(peers: Path, vocab: int, rounds: int, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workload(peers, folder, vocab)
        runs: dict[str, list[dict[str, float]]] = {"TRL packed": [], "posttrain": []}
        rates = []
        for _ in range(rounds):
            rates.append(matmul_rate())
            runs["TRL packed"].append(trl(peers, folder, "sft"))
            runs["posttrain"].append(ours(folder, *overrides))
    report(vocab, runs, statistics.median(rates))


def report(vocab: int, runs: dict[str, list[dict[str, float]]], rate: float) -> None:
    """Medians over rounds, and the ratios of each round."""
    flops = runs["posttrain"][0]["flops_per_token"]
    table = Table(
        title=f"SFT, vocabulary {vocab:,}: {platform.machine()}, {os.cpu_count()} cores, float32, matmul {rate / 1e9:.0f} GFLOP/s"
    )
    for column in ("", "tokens/s", "peak GiB", "share of matmul rate"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in runs.items():
        speed, memory = (statistics.median(run[key] for run in found) for key in ("tokens_per_second", "gib"))
        table.add_row(name, f"{speed:,.0f}", f"{memory:.2f}", f"{speed * flops / rate:.0%}")
    pairs = list(zip(runs["posttrain"], runs["TRL packed"], strict=True))
    faster = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
    smaller = [a["gib"] / b["gib"] for a, b in pairs]
    table.add_row("ratio", f"{statistics.median(faster):.2f}x", f"{statistics.median(smaller):.2f}x", "")
    table.add_row("  least, most", f"{min(faster):.2f} {max(faster):.2f}", f"{min(smaller):.2f} {max(smaller):.2f}", "")
    Console(width=100).print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", type=Path, default=Path("../shared/peers"))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--vocab", type=int, nargs="+", default=[8192, 65536])
    arguments.add_argument("overrides", nargs="*", help="further overrides of the posttrain runs")
    given = arguments.parse_args()
    if not given.peers.is_dir():
        sys.exit(f"{given.peers} is not there: give the folder of workload.py and trl_peer.py with --peers")
    for vocab in given.vocab:
        measure(given.peers, vocab, given.rounds, given.overrides)


if __name__ == "__main__":
    main()
