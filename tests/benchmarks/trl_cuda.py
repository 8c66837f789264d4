"""TRL's trainers on the common workload, on one GPU in bfloat16 arithmetic with float32 weights and no gradient checkpointing.

    python tests/benchmarks/trl_cuda.py sft|dpo|grpo --workload DIR --batch N --micro N --steps N [--new 256] [--skip 3]

One optimizer step sees --batch packed rows of 1,024 tokens, pairs, or prompts with 8 completions of at most --new tokens; one forward sees
--micro of the rows, pairs, or completions. Prints one JSON line; the first --skip steps are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

ANSWERS = 8


class Clock(TrainerCallback):  # type: ignore[misc]
    """Wall clock when the device has done a step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def trainer_of(given: argparse.Namespace) -> Any:
    """The trainer of that kind."""
    import trl

    common: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(), report_to="none", save_strategy="no", logging_strategy="no", bf16=True, gradient_checkpointing=False,
        disable_tqdm=True, seed=0, max_steps=given.steps, per_device_train_batch_size=given.micro,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(given.workload / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.workload / "model")
    data = load_dataset("json", data_files=str(given.workload / "train.jsonl"), split="train")
    shared = dict(model=model, train_dataset=data, processing_class=tokenizer)
    times = given.batch // given.micro
    if given.kind == "sft":
        config = trl.SFTConfig(
            packing=True, max_length=1024, assistant_only_loss=True, eos_token="<|im_end|>", pad_token="<pad>",
            gradient_accumulation_steps=times, **common,
        )  # fmt: skip
        return trl.SFTTrainer(args=config, **shared)
    if given.kind == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(given.workload / "model", dtype=torch.float32)
        config = trl.DPOConfig(max_length=1024, gradient_accumulation_steps=times, **common)
        return trl.DPOTrainer(args=config, ref_model=reference, **shared)
    config = trl.GRPOConfig(
        gradient_accumulation_steps=times * ANSWERS, num_generations=ANSWERS, max_completion_length=given.new, beta=0.04, **common
    )
    return trl.GRPOTrainer(
        args=config, reward_funcs=lambda completions, **_: [sum(map(ord, c[0]["content"])) % 7 for c in completions], **shared
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["sft", "dpo", "grpo"])
    parser.add_argument("--workload", type=Path, required=True)
    for name, default in (("batch", 8), ("micro", 8), ("steps", 10), ("skip", 3), ("new", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    trainer = trainer_of(given)
    clock, tokens = Clock(), []
    trainer.add_callback(clock)
    step = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
        if ids is not None:
            tokens.append(int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else ids.numel())
        return step(model, inputs, *rest, **more)

    trainer.training_step = counted
    trainer.train()
    seconds, steps = clock.marks[-1] - clock.marks[given.skip - 1], given.steps - given.skip
    found = {"examples_per_second": given.batch * steps / seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    if tokens and given.kind != "grpo":
        found["tokens_per_second"] = sum(tokens[-(steps * given.batch // given.micro) :]) / seconds
    print(json.dumps(found))


if __name__ == "__main__":
    main()
