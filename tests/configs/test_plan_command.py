"""Every hardware shape with every method can be planned."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.methods.base import Method
from posttrain.runs import options, source
from posttrain.runs.check import check, compose_and_check
from posttrain.runs.planning import workload
from posttrain.runs.planning.estimate import Estimate, estimate
from posttrain.runs.planning.larger import larger_shapes
from posttrain.runs.planning.remedies import remedies
from posttrain.runs.planning.shapes import ModelShape
from posttrain.runs.planning.trace import model_shape
from posttrain.runs.rules import PLAN
from posttrain.runs.train import untrained
from tests.tiers import mostly_slow

BUILTIN = options.search_path()
SHAPES = [option.name for option in options.options(BUILTIN, "hardware")]
METHODS = [
    option.name for option in options.options(BUILTIN, "method") if "\nstages:" not in option.path.read_text()
]  # pipelines: by stage


@cache
def hardware(name: str) -> dict[str, Any]:
    return compose_and_check([f"hardware={name}"], rules=PLAN)["hardware"]


@cache
def shape(precision: str, peft: str | None = None) -> ModelShape:
    chosen = [] if peft is None else [f"model/peft={peft}"]
    return model_shape(compose_and_check(["model=nano", *chosen], rules=PLAN)["model"], precision=precision)


def planned(config: dict[str, Any], method: Method) -> Estimate:
    kind = source.class_constant(config["method"]["_target_"], "data_kind")
    work = workload.bound(config, str(kind), "not looked at")
    return estimate(config, method, shape(config["precision"]), work, overhead=0.0)


@pytest.mark.parametrize("method", mostly_slow(METHODS, but=["sft", "dpo", "grpo", "ppo", "reward_model"]))
def test_every_method_is_planned_on_every_shape(method: str) -> None:
    """A shape changes the config's `hardware` and the precision that follows it, and nothing else."""
    base = compose_and_check([f"method={method}", "model=nano", "max_steps=10"], rules=PLAN)
    asked = untrained(base)
    for name in SHAPES:
        config = {**base, "hardware": hardware(name), "precision": hardware(name)["precision"]}
        assert not check(config, rules=PLAN), name
        found = planned(config, asked)
        assert found.fits, name
        assert found.peak.total > found.model.weights.trained_bytes
        assert found.duration.flops > 0
        assert found.duration.hours is not None, name
        assert (found.setup.sampling is not None) == asked.online


def test_a_study_is_many_runs() -> None:
    with pytest.raises(ConfigError, match="study=quickstart: is a study, which is many runs"):
        compose_and_check(["study=quickstart"], rules=PLAN)


def test_what_does_not_fit_is_told_how_it_would() -> None:
    config = compose_and_check(["method=dpo", "model=nano", "hardware=2xa100", "max_tokens=8192", "max_steps=1"], rules=PLAN)
    config["hardware"] = {**config["hardware"], "memory_gb": 0.07}
    asked = untrained(config)
    work = workload.bound(config, "preference", "not looked at")
    found = estimate(config, asked, shape("bf16"), work, overhead=0.0)
    assert found.fits is False
    assert found.most_tokens is not None
    assert found.most_tokens < work.row.tokens
    listed = remedies(config, found, lambda option: shape("bf16", option), larger_shapes(config["hardware"]))
    names = [remedy.override.split("=")[0] for remedy in listed]
    assert names[:2] == ["model.gradient_checkpointing", "max_tokens"]
    assert listed[1].alone <= found.capacity  # type: ignore[operator]
    assert all(later.together <= earlier.together * 1.01 for earlier, later in pairwise(listed))
    assert list(larger_shapes(config["hardware"])) == ["4xa100", "8xa100", "2x8xa100", "4x8xa100"]
