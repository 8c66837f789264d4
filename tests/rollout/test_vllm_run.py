"""A whole run with rollout=vllm from the command line, and what stays out of whose process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import preloaded
from vllm_cases import free_port
from vllm_server import serving

from posttrain.models.tokenizers import byte_tokenizer

ROOT = Path(__file__).parents[2]


def posttrain(port: int, folder: Path) -> tuple[int, str]:
    """Exit code and output of a run."""
    line = [
        "experiment=nano_rlvr", "entering=null", "rollout=vllm", f"rollout.url=http://127.0.0.1:{port}", "rollout.wait=1", "rollout.temperature=0.8",
        f"rollout.folder={folder}/handover", "rollout.group_size=4", "rollout.max_new_tokens=6", "max_steps=2", "global_batch=2",
        "evaluation=none", "tracking=none", "hardware=cpu", f"output_dir={folder}/run", "validate.max_examples=8",
        "reward=length", "reward.length.unit=characters", "reward.length.target=12", "reward.length.under=1.0",  # every step moves the weights
    ]  # fmt: skip
    process = preloaded.posttrain(*line)
    told = "".join(process.communicate(timeout=300))
    return process.wait(), told


def test_a_run_says_what_to_start_and_then_learns_from_it(tmp_path: Path) -> None:
    port = free_port()
    code, told = posttrain(port, tmp_path)
    assert code == 2
    assert f"start one: VLLM_SERVER_DEV_MODE=1 vllm serve {tmp_path}/handover/base --port {port} " in told
    with serving(tmp_path / "handover" / "base", byte_tokenizer(), port=port, mode="processed_logprobs") as (_, server):
        code, told = posttrain(port, tmp_path)
        assert code == 0, told
        assert server.loads == 3  # at the start, and after each step
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 2
    assert all(step["sampler/mismatch"] < 1e-5 and step["mismatch/abs"] < 1e-5 for step in steps)


def test_the_worker_extension_needs_torch_alone() -> None:
    check = (
        "import sys, posttrain.rollout.vllm_worker, posttrain.rollout.remote.prints\n"
        "print(sorted({'transformers', 'peft', 'lightning', 'hydra', 'numpy.testing', 'vllm'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_nothing_of_ours_imports_vllm() -> None:
    files = [*(ROOT / "posttrain").rglob("*.py")]
    assert [file.name for file in files if any(line.split()[:2] in (["import", "vllm"], ["from", "vllm"]) for line in file.open())] == []
