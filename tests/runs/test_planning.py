"""The arithmetic of plans beside what really happens: saved tensors, optimizer state, the memory of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.data.tree import answered, collate
from posttrain.errors import ConfigError
from posttrain.functional.head import PLAIN_HEAD
from posttrain.models import optimizers
from posttrain.models.attention import backends
from posttrain.models.loading import build_model
from posttrain.models.policy import PolicyModel
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.plan import planned, stages_with_budgets, workload_of
from posttrain.runs.compose import compose
from posttrain.runs.planning.charged import charge_of
from posttrain.runs.planning.estimate import estimate
from posttrain.runs.planning.memory import REFERENCE, Setup, activations, head_bytes, most_tokens, peak_of, phases_of
from posttrain.runs.planning.remedies import remedies
from posttrain.runs.planning.sampling import Sampling
from posttrain.runs.planning.shapes import ModelShape, Row
from posttrain.runs.planning.states import optimizer_bytes, states_of
from posttrain.runs.planning.strategies import BUCKET, SHARDINGS, Group
from posttrain.runs.planning.trace import model_shape
from posttrain.runs.planning.workload import Workload
from posttrain.runs.rules import PLAN
from posttrain.runs.train import untrained
from posttrain.types import StepShare
from tests.tiers import mostly_slow

ROOT = Path(__file__).resolve().parents[2]
ROW = Row(((200, 0), (150, 200), (30, 200), (40, 0)), 220)
ADAMW = {"_target_": "posttrain.models.optimizers.adamw"}


@pytest.fixture(scope="module")
def nano() -> ModelShape:
    return model_shape(compose(["model=nano"])["model"], precision="float32")


def setup(**changes: Any) -> Setup:
    base = Setup(
        precision="float32", accelerator="cpu", devices=1, strategy="single", offload=False, checkpointing=False, attention="auto",
        optimizer=ADAMW, copies=0, heads=True, several=True, row=ROW, sampling=None, overhead=0.0, slack=0.0,
    )  # fmt: skip
    return replace(base, **changes)


def saved_bytes(policy: PolicyModel, row: Row) -> int:
    """What a real forward pass on a row keeps for its backward pass."""
    tree = answered(np.arange(200) % 250, [np.arange(150) % 250, np.arange(30)], {})
    other = answered(np.arange(1), [np.arange(39)], {})
    layout = collate([tree, other], StepShare(219.0, 2, 1))
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes():
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(layout)
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("name", ["nano", "nano_gemma", "nano_moe"])
def test_what_a_forward_pass_keeps(name: str) -> None:
    model = compose([f"model={name}"])["model"]
    built = build_model(model, dtype=torch.float32)
    built.set_attn_implementation(backends.register())
    policy = PolicyModel(built, layout="tree", head=PLAIN_HEAD).train()
    row = Row(((200, 0), (150, 200), (30, 200), (1, 0), (39, 1)), 219)
    shape = model_shape(model, precision="float32")
    plan = activations(shape, setup(row=row)) + head_bytes(shape, setup(row=row)).kept
    assert plan == pytest.approx(saved_bytes(policy, row), rel=0.02)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_optimizer_state(name: str, nano: ModelShape) -> None:
    built = build_model(compose(["model=nano"])["model"], dtype=torch.float32)
    node = compose([f"optimizer={name}"])["optimizer"]
    options = {key: value for key, value in node.items() if key != "_target_"}
    optimizer = getattr(optimizers, name)(built.named_parameters(), **options)
    for parameter in built.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = sum(value.numel() * value.element_size() for value in tensors if value.dim())
    assert optimizer_bytes(nano.weights, node) == pytest.approx(held, rel=0.01)


def test_weights_are_counted(nano: ModelShape) -> None:
    assert nano.weights.trained == 1_018_240
    assert nano.weights.trained_bytes == 4 * 1_018_240
    adapted = model_shape(compose(["model=nano", "model/peft=qlora"])["model"], precision="bf16_true")
    linears = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512)
    scales = (1 + 4 / 256) / 64
    assert adapted.weights.frozen_bytes == pytest.approx(2 * (1_018_240 - linears) + (0.5 + scales) * linears, rel=1e-3)
    assert not adapted.head_trained


def test_a_cached_references_model_is_whole_where_the_policy_is_cut(nano: ModelShape) -> None:
    cut = setup(strategy="fsdp2", devices=64, cached=True, row=Row(((8, 0),), 4))
    peak = peak_of(nano, cut)
    assert peak.name == REFERENCE
    assert peak.parts["weights"] == nano.weights.packed_bytes
    assert peak_of(nano, replace(cut, cached=False, copies=1)).total < peak.total
    assert peak_of(nano, setup(cached=True)) == peak_of(nano, setup())  # a whole policy in training takes more


def test_a_cached_reference_that_does_not_fit_has_a_way_out() -> None:
    config = compose(["method=dpo", "model=nano", "data=arithmetic_pairs", "method.reference=cached", "hardware=8xa100"])
    config["hardware"] |= {"strategy": "fsdp2", "memory_gb": 0.004, "nodes": 8}
    shape = model_shape(config["model"], precision=config["precision"])
    work = Workload(Row(((8, 0),), 4), 1, 8.0, 4.0, 64.0, 1, False, None, ())
    found = estimate(config, untrained(config), shape, work, overhead=0.0)
    assert found.peak.name == REFERENCE
    assert next(iter(remedies(config, found, lambda _: shape, {}))).override == "method.reference=copy"


def test_checkpointing_keeps_inputs_and_one_layer(nano: ModelShape) -> None:
    whole, less = activations(nano, setup()), activations(nano, setup(checkpointing=True))
    assert less == pytest.approx(whole / 4, rel=0.2)


def test_sharding_divides_what_it_says(nano: ModelShape) -> None:
    def lasting(name: str, *, offload: bool = False) -> Any:
        return states_of(nano.weights, ADAMW, SHARDINGS[name], Group(4, copies=1), offload=offload)

    whole = lasting("ddp")
    assert whole.optimizer == 2 * whole.weights == 2 * whole.gradients == 2 * whole.copies
    assert lasting("fsdp2").weights * 4 == whole.weights
    assert lasting("zero1").gradients == whole.gradients
    assert lasting("zero2").gradients * 4 == whole.gradients
    assert lasting("zero3").optimizer == 12 * nano.weights.trained / 4
    moved = lasting("fsdp2", offload=True)
    assert (moved.weights, moved.gradients, moved.optimizer) == (0, 0, 0)
    assert moved.host == lasting("fsdp2").weights + lasting("fsdp2").gradients + lasting("fsdp2").optimizer


def test_what_strategies_need_beside_the_states(nano: ModelShape) -> None:
    size, moved = nano.weights.trained_bytes, setup(sampling=Sampling(4, 2, 30, 20, 10_000), devices=2)
    for name in ("fsdp2", "zero3"):  # sampling gathers every weight
        *entering, sampling, _, step = phases_of(nano, replace(moved, strategy=name))
        assert [phase.parts["weights"] for phase in entering] == ([size] if name == "zero3" else [])  # whole on the device
        assert sampling.parts["communication"] - step.parts["communication"] >= size / 2
    buffers = {name: SHARDINGS[name].buffers(nano.weights, Group(2)) for name in SHARDINGS}
    assert buffers["zero2"].last == buffers["zero3"].last == buffers["zero3"].computing == 2 * size
    assert SHARDINGS["zero3"].buffers(nano.weights, Group(2, gpus=True)).step == 4 * BUCKET + size / 2


def test_the_largest_micro_batch_fits_and_no_larger_one(nano: ModelShape) -> None:
    capacity = peak_of(nano, setup(row=ROW.times(10))).total
    most = most_tokens(nano, setup(), capacity)
    assert most == pytest.approx(10 * ROW.tokens, rel=0.05)
    assert most_tokens(nano, setup(), nano.weights.trained_bytes) == 0


def test_sampling_on_a_cpu_holds_linear_layers_twice(nano: ModelShape) -> None:
    built = build_model(compose(["model=nano"])["model"], dtype=torch.float32)
    assert nano.weights.linears == sum(m.weight.numel() for m in built.modules() if type(m) is torch.nn.Linear)
    sampling = Sampling(prompts=4, group=2, prompt=30, answer=20, cache=10_000)
    plain, packing = (phases_of(nano, setup(sampling=sampling, packs=packs))[0] for packs in (False, True))
    assert packing.total - plain.total == packing.parts["packed weights"] == 4 * nano.weights.linears


def test_a_gradient_of_the_step_before_is_there_in_the_forward_pass(nano: ModelShape) -> None:
    (training, step) = phases_of(nano, setup(several=False))
    assert training.parts["gradients"] == step.parts["gradients"] == nano.weights.trained_bytes


def python(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout


SMALL = ["hidden_size=256", "intermediate_size=1024", "num_hidden_layers=6", "head_dim=64", "vocab_size=4096"]
RUNS = {
    "nano-sft": ["method=sft", "max_tokens=4096"],
    "small-dpo": ["method=dpo", *(f"model.architecture.{item}" for item in SMALL), "global_batch=24", "max_tokens=1024"],
}


@pytest.fixture(scope="module")
def overhead(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Bytes of a fresh process, as `plan` measures them."""
    code = "from posttrain.runs.planning.machine import overhead_of; print(overhead_of('cpu'))"
    return float(python(tmp_path_factory.mktemp("overhead"), "-c", code).splitlines()[-1])


@pytest.mark.parametrize("run", mostly_slow(RUNS, but=["nano-sft"]))
def test_plan_and_run_differ_by_less_than_a_tenth(run: str, overhead: float, tmp_path: Path) -> None:
    quiet = ["tracking=none", "evaluation=none", "validate.at_start=false", "validate.at_end=false"]
    given = [*RUNS[run], *quiet, "model=nano", "hardware=cpu", "max_steps=3", "limit=200"]
    python(tmp_path, "-m", "posttrain", *given, f"output_dir={tmp_path}/run")
    taken = json.loads((tmp_path / "run" / "result.json").read_text())["peak_memory_bytes"]
    config = compose(given)
    shape = model_shape(config["model"], precision="float32")
    found = estimate(config, untrained(config), shape, workload_of(config), overhead=overhead)
    assert found.peak.total == pytest.approx(taken, rel=0.1)


SMALL = ["model=nano", "hardware=cpu", "data.generator.train=64", "data.generator.held_out=4", "global_batch=8"]


def charged(*overrides: str) -> tuple[int | None, dict[str, str]]:
    """Steps of a run and the rows of its plan, with what its budget is charged for the run that is made first."""
    config = compose_and_check([*SMALL, *overrides], rules=PLAN)
    work, _ = planned(config, charge_of(config, planned))
    return work.steps, dict(work.words)


def test_a_plan_charges_the_budget_with_the_run_that_is_made_first(tmp_path: Path) -> None:
    budget, first = "budget.tokens=20000", ",".join(f'"{line}"' for line in [*SMALL, "max_steps=20"])
    alone, _ = charged(budget)
    steps, words = charged(budget, f"entering=[{first}]")
    assert alone is not None
    assert steps is not None
    assert 18 <= alone - steps <= 22
    assert words["of the budget"].startswith("about")
    place = tmp_path / "entering"
    place.mkdir()
    (place / "result.json").write_text(json.dumps({"status": "finished", "tokens": 15000, "flops": 1.0, "train_seconds": 1.0}))
    (place / "config.yaml").write_text("hardware: {nodes: 1, devices: 1}")
    steps, words = charged(budget, f"entering=[{first}]", f"output_dir={tmp_path}")
    assert steps == pytest.approx(alone / 4, abs=2)
    assert words["of the budget"] == "1.5e+04 tokens for the run that is made first"
    with pytest.raises(ConfigError, match="nothing is left"):
        charged("budget.tokens=15000", f"entering=[{first}]", f"output_dir={tmp_path}")


def test_stages_are_planned_with_their_parts_of_the_budget() -> None:
    config = compose_and_check(["method=nano_staged", "budget.tokens=1000"], rules=PLAN)
    assert [stage["budget"]["tokens"] for stage in stages_with_budgets(config)] == [840.0, 80.0, pytest.approx(80.0)]
    config = compose_and_check(["method=staged", "model=nano"], rules=PLAN)
    assert [stage["budget"]["tokens"] for stage in stages_with_budgets(config)] == [None, None]
