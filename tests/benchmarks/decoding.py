"""The native decoder beside transformers' `generate` on the common workload, in one run: tokens per second and peak memory.

    python tests/benchmarks/decoding.py [--peers ../shared/peers] [--rounds 3] [--prompts 4] [--samples 8] [--new 128]

Each measurement is a process of its own; the two take turns. Random weights, so answers end where they are made to: at `--new` tokens, or
at one of 128 end tokens (varying lengths, about 1 in 64 tokens). `queue`: four times the prompts, no more at once than in the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import arguments, workload
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.functional.head import HeadSpec
from posttrain.models.decoding import left_padded, until
from posttrain.models.policy import PolicyModel
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import Decoder
from posttrain.rollout.stops import Stops
from posttrain.runs.threads import spin_briefly

CASES = {"one length": (1, 0), "varying lengths": (1, 128), "varying lengths, queue": (4, 128)}


def native(model, prompts, ends, given) -> int:
    """Answer all prompts with ours; returns tokens."""
    policy = PolicyModel(model, layout="tree", head=HeadSpec())
    bound = given.prompts * (max(len(p) for p in prompts) + given.samples * given.new)
    decoder = Decoder(policy, Sampling(max_new_tokens=given.new), Stops(ends), bound)
    answers = decoder.run([Request(prompt, given.samples, seed) for seed, prompt in enumerate(prompts)])
    return sum(len(answer.tokens) for group in answers for answer in group)


def generate(model, prompts, ends, given) -> int:
    """The same with transformers, as many prompts at a time as ours holds; returns tokens."""
    config = GenerationConfig(max_new_tokens=given.new, do_sample=True, top_k=0, top_p=1.0, eos_token_id=ends or None, pad_token_id=0)
    total = 0
    for start in range(0, len(prompts), given.prompts):
        rows = [prompt for prompt in prompts[start : start + given.prompts] for _ in range(given.samples)]
        ids, mask = left_padded(rows, 0)
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()
        total += sum(min(len(row), len(until(row, ends)) + 1) for row in out)
    return total


def measure(given) -> None:
    """One measurement, printed as JSON."""
    model = AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()
    tokenizer = AutoTokenizer.from_pretrained(given.folder / "model")
    times, count = CASES[given.case]
    rows = [json.loads(line) for line in (given.folder / "train.jsonl").read_text().splitlines()[: given.prompts * times]]
    texts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    prompts = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    ends = np.random.default_rng(0).choice(np.arange(3, model.config.vocab_size), count, replace=False).tolist()
    answer = {"native": native, "generate": generate}[given.side]
    torch.manual_seed(0)
    answer(model, prompts[:1], ends, argparse.Namespace(**(vars(given) | {"new": 4})))
    began = time.perf_counter()
    tokens = answer(model, prompts, ends, given)
    seconds = time.perf_counter() - began
    print(json.dumps({"speed": tokens / seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "tokens": tokens}))


def run(case: str, side: str, folder: Path, given) -> dict[str, float]:
    options = [f"--{name}={getattr(given, name)}" for name in ("prompts", "samples", "new")]
    command = [sys.executable, __file__, "--peers", str(given.peers), *options, "--side", side, "--case", case, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(given) -> None:
    table = Table(title=f"Decoding {given.prompts} x {given.samples} x {given.new}: {platform.machine()}, {os.cpu_count()} cores, float32")
    for column in ("", "generate tokens/s", "native tokens/s", "ratio", "least, most", "GiB", "native GiB"):
        table.add_column(column, justify="left" if not column else "right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workload(given.peers, folder, task="grpo", vocab=8192)
        for case in given.cases:
            rounds = []
            for _ in range(given.rounds):
                rounds.append((run(case, "generate", folder, given), run(case, "native", folder, given)))
                print(case, *(f"{found['speed']:.0f}" for found in rounds[-1]), "tokens/s", flush=True)
            ratios = [ours["speed"] / theirs["speed"] for theirs, ours in rounds]
            median = partial(lambda rounds, side, key: statistics.median(pair[side][key] for pair in rounds), rounds)
            table.add_row(
                case, f"{median(0, 'speed'):,.0f}", f"{median(1, 'speed'):,.0f}", f"{statistics.median(ratios):.2f}x",
                f"{min(ratios):.2f} {max(ratios):.2f}", f"{median(0, 'gib'):.2f}", f"{median(1, 'gib'):.2f}",
            )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = arguments(__doc__ or "")
    for name, default in (("prompts", 4), ("samples", 8), ("new", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--side", choices=["native", "generate"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    spin_briefly()  # of the processes that are started
    measure(given) if given.side else compare(given)


if __name__ == "__main__":
    main()
