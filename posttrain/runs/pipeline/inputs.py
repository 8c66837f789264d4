"""What a stage can take from earlier ones. A new kind of input = one entry of INPUTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.runs.source import class_constant

Config = dict[str, Any]
POLICY, REWARD_MODEL = "a policy", "a reward model"
PLACEHOLDER = "stage:"  # stands for an artifact that is not made yet
SCORING = ("posttrain.rewards.models.RewardModel", "posttrain.rewards.models.ProcessRewardModel")


@dataclass(frozen=True)
class Input:
    """made: what the earlier stage must hand on. refusal: why a config cannot take it, None if it can. enter: the config with a path.
    keys: the config's keys that it decides."""

    made: str
    refusal: Callable[[Config], str | None]
    enter: Callable[[Config, str], Config]
    keys: Callable[[Config], Sequence[str]]


def hands_on(config: Mapping[str, Any]) -> str:
    """What the artifact of a run with this config is."""
    return REWARD_MODEL if class_constant(str(config["method"].get("_target_")), "language_model") is False else POLICY


def _no_refusal(config: Config) -> str | None:
    return None


def _enter_policy(config: Config, path: str) -> Config:
    entered = {"path": path, "weights": "pretrained", "architecture": None, "revision": None}
    return {**config, "model": {**config["model"], **entered}}


def _policy_keys(config: Config) -> Sequence[str]:
    return ["model.path", "model.weights", "model.architecture", "model.revision"]


def _scoring(config: Config) -> list[str]:
    return [name for name, node in (config["reward"] or {}).items() if isinstance(node, dict) and node.get("_target_") in SCORING]


def _no_scoring(config: Config) -> str | None:
    return None if _scoring(config) else f"method={config['method'].get('name')} asks no reward model here (reward=[reward_model])"


def _reward_keys(config: Config) -> Sequence[str]:
    return [f"reward.{name}.path" for name in _scoring(config)]


def _enter_reward_model(config: Config, path: str) -> Config:
    entered = {name: {**config["reward"][name], "path": path} for name in _scoring(config)}
    return {**config, "reward": {**config["reward"], **entered}} if entered else config


def _no_reference(config: Config) -> str | None:
    name = config["method"].get("name")
    if "reference" not in config["method"]:
        return f"method={name} has no reference policy"
    return f"the reference of method={name} is the model that enters the stage, and no other can be chosen"


def _no_data(config: Config) -> str | None:
    return "runs keep a few answers to look at, not a data set that could be trained on"


def _unchanged(config: Config, path: str) -> Config:
    return config


def _no_keys(config: Config) -> Sequence[str]:
    return []


INPUTS: Mapping[str, Input] = {
    "policy": Input(POLICY, _no_refusal, _enter_policy, _policy_keys),
    "reward_model": Input(REWARD_MODEL, _no_scoring, _enter_reward_model, _reward_keys),
    "reference": Input(POLICY, _no_reference, _unchanged, _no_keys),
    "data": Input(POLICY, _no_data, _unchanged, _no_keys),
}


def entered(config: Config, inputs: Mapping[str, str]) -> Config:
    """The stage's config with artifacts as its inputs. inputs: path by input."""
    for name, path in inputs.items():
        if name in INPUTS:
            config = INPUTS[name].enter(config, path)
    return config


def placeholders(inputs: Mapping[str, str]) -> dict[str, str]:
    """What stands for the artifacts of these stages before they are made."""
    return {name: f"{PLACEHOLDER}{source}" for name, source in inputs.items()}
