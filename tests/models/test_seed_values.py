"""The experiment files state the five systems' values as those systems state them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.runs.compose import compose

ADAMW, ADAMW_8BIT = "posttrain.models.optimizers.adamw", "posttrain.models.optimizers.adamw_8bit"
COSINE, CONSTANT = "posttrain.models.schedules.cosine", "posttrain.models.schedules.constant"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

ALPHA_NEWTON = {"seed": 42, "precision": "bf16", "max_length": 2048, "log.every_steps": 10, "checkpoint.every_steps": 1000}
BETTER_AI = {
    "model.name": "better_ai_moe",
    "optimizer._target_": ADAMW_8BIT,
    "optimizer.lr": 1e-4,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.weight_decay": 0.1,
    "scheduler._target_": COSINE,
    "scheduler.min_ratio": 0.1,
    "max_steps": 100_000,
    "global_batch": 8 * 4,
}
GEMMA = {
    "model.name": "gemma_270m",
    "model.peft.r": 8,
    "model.peft.alpha": 16,
    "model.peft.dropout": 0.1,
    "model.peft.targets": ATTENTION,
    "model.peft.quantise": None,
    "epochs": 3,
    "max_steps": None,
    "global_batch": 4 * 4,
    "optimizer.lr": 5e-5,
    "optimizer.weight_decay": 0.01,
    "scheduler.warmup": 0.1,
    "gradient_clip": 1.0,
    "max_length": 512,
}
SEEDS: dict[str, dict[str, Any]] = {
    "sft_mixed_optimized": {
        **ALPHA_NEWTON,
        "data.name": "mixed",
        "global_batch": 8 * 4,
        "optimizer.lr": 2e-5,
        "max_steps": 10_000,
        "scheduler.warmup": 500,
    },
    "sft_tools": {
        **ALPHA_NEWTON,
        "data.name": "glaive",
        "global_batch": 4 * 8,
        "optimizer.lr": 1e-5,
        "max_steps": 5000,
        "scheduler.warmup": 250,
    },
    "teacher_sft": {
        "global_batch": 1 * 16,
        "epochs": 2,
        "max_steps": None,
        "optimizer.lr": 2e-4,
        "precision": "bf16",
        "log.every_steps": 10,
        "checkpoint.every_steps": 500,
        "checkpoint.keep_last": 2,
        "model.peft.kind": "lora",
    },
    "better_ai_pretrain": {**BETTER_AI, "method.name": "pretrain", "data.name": "stack_v2"},
    "better_ai_code_sft": {**BETTER_AI, "method.name": "sft", "data.name": "code_sft_mix"},
    "mbpp_sft": {
        "model.name": "llama_3_2_1b",
        "model.peft.r": 32,
        "optimizer.lr": 1e-4,
        "limit": 200,
        "global_batch": 200,
        "max_steps": 50,
        "scheduler._target_": CONSTANT,
        "scheduler.warmup": 0,
        "data.name": "mbpp",
    },
    "gemma_sft": {**GEMMA, "optimizer._target_": ADAMW},
    "gemma_qlora_sft": {
        **GEMMA,
        "model.name": "gemma_1b",
        "model.peft.r": 16,
        "model.peft.alpha": 32,
        "model.peft.targets": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
        "model.peft.quantise": "nf4",
        "optimizer.lr": 2e-4,
        "global_batch": 2 * 8,
        "scheduler.warmup": 0.03,
    },
    "hh_dpo": {
        **ALPHA_NEWTON,
        "method.name": "dpo",
        "data.name": "hh",
        "global_batch": 8 * 2,
        "optimizer.lr": 5e-6,
        "optimizer.weight_decay": 0.01,
        "max_steps": 2000,
        "scheduler._target_": COSINE,
        "method.loss.beta": 0.1,
    },
    "teacher_dpo": {
        "method.name": "dpo",
        "model.peft.quantise": "nf4",
        "model.gradient_checkpointing": True,
        "method.loss._target_": "posttrain.functional.preference.sigmoid",
        "method.loss.beta": 0.1,
        "epochs": 3,
        "global_batch": 2 * 4,
        "optimizer.lr": 5e-5,
        "max_length": 1024,
        "scheduler.warmup": 0.1,
        "checkpoint.every_steps": 100,
        "validate.every_steps": 100,
    },
    "gemma_dpo": {**GEMMA, "method.name": "dpo", "method.loss.beta": 0.1},
    "clinical": {**GEMMA, "data.name": "mts_dialog"},
    "conala": {**GEMMA, "data.name": "conala"},
    "quickstart": {"model.name": "nano", "data.name": "arithmetic", "method.name": "sft", "optimizer.lr": 3e-3, "global_batch": 64},
}


def value_at(config: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize("name", SEEDS)
def test_values(name) -> None:
    config = compose([f"experiment={name}"])
    assert {key: value_at(config, key) for key in SEEDS[name]} == SEEDS[name]


def test_the_mixture_is_seventy_to_thirty() -> None:
    weights = {source["name"]: source["weight"] for source in compose(["experiment=sft_mixed_optimized"])["data"]["sources"]}
    assert weights == {"openhermes": 0.7, "capybara": 0.3}


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [
        ([], 3e-3),
        (["model=gemma_1b"], 2e-5),
        (["model=gemma_1b", "model/peft=lora"], 2e-4),
        (["model=nano", "model/peft=lora"], 3e-3),
        (["model=gemma_1b", "model/peft=lora", "optimizer.lr=1e-6"], 1e-6),
        (["model=nano", "optimizer=sgd"], 3e-3),
        (["method=dpo"], 1.5e-4),
        (["method=dpo", "model=gemma_1b", "model/peft=lora"], 1e-5),
        (["method=dpo", "optimizer.lr=1e-3"], 1e-3),
    ],
)
def test_the_learning_rate_follows_the_model_unless_set(overrides, lr) -> None:
    assert compose(overrides)["optimizer"]["lr"] == lr


def test_an_experiment_runs_on_another_model() -> None:
    config = compose(["experiment=gemma_sft", "model=nano"])
    assert (config["model"]["name"], config["model"]["peft"]["r"], config["optimizer"]["lr"]) == ("nano", 8, 5e-5)
