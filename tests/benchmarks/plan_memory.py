"""What `posttrain plan` says of memory beside what runs took: SFT, DPO and GRPO at three sizes on the CPU.

    python tests/benchmarks/plan_memory.py [--sizes nano small medium] [--methods sft dpo grpo] [--hardware cpu 2xcpu_fsdp] [--steps 3]

Each run and each plan is a process of its own, on texts of the script's own making; of several ranks the leading one is measured. Prints
one table; `off` is (plan - run) / run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

# hidden, intermediate, layers, heads, key heads, head width, vocabulary: 1 M, 17 M and 110 M parameters
SIZES = {"nano": None, "small": (384, 1152, 8, 6, 3, 64, 8192), "medium": (768, 2304, 12, 12, 6, 64, 32768)}
KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip
METHODS = {
    "sft": ("method=sft", "global_batch=12"),
    "dpo": ("method=dpo", "global_batch=8"),
    "grpo": ("method=grpo", "data=arithmetic", "data.generator.held_out=8", "global_batch=4", "rollout.max_new_tokens=64"),
}
COMMON = (
    "model=nano", "max_tokens=2048", "evaluation=none", "tracking=none", "validate.at_start=false", "validate.at_end=false",
)  # fmt: skip


def overrides(size: str, method: str, hardware: str, folder: Path, steps: int) -> list[str]:
    """Of the run and of its plan."""
    numbers = SIZES[size]
    shape = [] if numbers is None else [f"model.architecture.{key}={value}" for key, value in zip(KEYS, numbers, strict=True)]
    files = [] if method == "grpo" else ["data=files", f"data.train={folder / method}.jsonl"]
    return [*COMMON, f"hardware={hardware}", *shape, *METHODS[method], *files, f"max_steps={steps}"]


def write_texts(folder: Path, rows: int = 256) -> None:
    """sft.jsonl and dpo.jsonl: random words."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 9))) for _ in range(3000)]

    def said(role: str, most: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(words, k=draw.randint(10, most)))}]

    def made(method: str) -> Iterator[dict[str, object]]:
        for _ in range(rows):
            prompt, answers = said("user", 40), [said("assistant", 60) for _ in range(2)]
            yield {"messages": prompt + answers[0]} if method == "sft" else dict(prompt=prompt, chosen=answers[0], rejected=answers[1])

    for method in ("sft", "dpo"):
        (folder / f"{method}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made(method)))


def posttrain(*arguments: str) -> str:
    """One command's standard output."""
    command = [sys.executable, "-m", "posttrain", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}).stdout


def planned(given: Sequence[str]) -> float:
    """GiB."""
    found = re.search(r"Verdict: .*?([\d.]+) GiB a device", posttrain("plan", *given))
    assert found is not None
    return float(found[1])


def taken(given: Sequence[str], folder: Path) -> float:
    """GiB."""
    posttrain(*given, f"output_dir={folder}")
    return float(json.loads((folder / "result.json").read_text())["peak_memory_bytes"]) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--hardware", nargs="+", default=["cpu"], help="cpu, 2xcpu_fsdp, ...: shapes of this machine's CPU")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    table = Table(
        "size", "method", "hardware", "plan, GiB", "run, GiB", "off", title=f"Peak memory, {given.steps} steps on the CPU, float32"
    )
    with tempfile.TemporaryDirectory() as temporary:
        write_texts(Path(temporary))
        for size, method, hardware in product(given.sizes, given.methods, given.hardware):
            words = overrides(size, method, hardware, Path(temporary), given.steps)
            plan, run = planned(words), taken(words, Path(temporary) / f"{size}-{method}-{hardware}")
            table.add_row(size, method, hardware, f"{plan:.2f}", f"{run:.2f}", f"{plan / run - 1:+.0%}")
            Console(stderr=True).print(f"{size} {method} {hardware}: plan {plan:.2f}, run {run:.2f}")
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
