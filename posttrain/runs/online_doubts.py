"""What a run that learns from its own answers does in another way than its user may think, told before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import Problem

STAND_IN = "posttrain.rewards.backends.scripted.Scripted"
CODE = "posttrain.rewards.code.Code"
_STEERED = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}  # with the values that leave the distribution alone
_WORDS = {"shorter": "the shorter answer wins", "longer": "the longer answer wins", "contains": "an answer that contains a text wins"}


def off_policy(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Answers that are drawn from a truncated or penalised distribution are not the policy's own."""
    rollout, method = config["rollout"] or {}, config["method"]
    steering = [f"{key}={rollout[key]}" for key, plain in _STEERED.items() if rollout.get(key, plain) not in (None, plain)]
    if not steering or not rollout.get("temperature") or "pairs" in method:  # pairs may come from anywhere
        return
    words = f"training is off-policy by {', '.join(steering)}: answers are not drawn from the policy that learns"
    if str(rollout.get("_target_", "")).startswith("posttrain.rollout.vllm"):
        yield Problem(
            "rollout", f"{words}; a server does not say how likely they were, so nothing corrects it", "rollout=native, or leave them out"
        )
    elif method.get("importance") is None:
        seen = "off_policy/* says by how much; mismatch/* is before truncation and penalties and does not see it"
        yield Problem("rollout", f"{words}. {seen}", "method.importance=truncate, or leave them out")


def stand_ins(nodes: Mapping[str, Any]) -> Iterator[Problem]:
    """Judges that follow a rule in place of a model's opinion. nodes: by key, what may have a backend, or be one."""
    for name, node in nodes.items():
        found = node.get("backend", node) if isinstance(node, Mapping) else None
        if isinstance(found, Mapping) and found.get("_target_") == STAND_IN:
            rule = _WORDS[found.get("prefer", "shorter")]
            message = f"no model judges: a stand-in rule does ({rule})"
            yield Problem(f"{name}.backend", message, "name a judge: reward/backend=openai or local, with its model")


def tests_are_shown(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Prompts that end with the tests which decide the reward: a program that answers these by heart gets all of it."""
    code = [node for node in (config["reward"] or {}).values() if isinstance(node, Mapping) and node.get("_target_") == CODE]
    shown = (config["data"].get("format_options") or {}).get("show_tests") is True
    if shown and any(not node.get("use_challenge_tests") for node in code):
        message = "prompts show all the tests that are rewarded: a program that answers these by heart is paid in full"
        yield Problem("data.format_options.show_tests", message, "data.format_options.show_tests=first shows one and rewards all")


def doubts(config: Mapping[str, Any]) -> Iterator[Problem]:
    """All of them, of a run."""
    yield from off_policy(config)
    yield from tests_are_shown(config)
    yield from stand_ins({f"reward.{name}": node for name, node in (config["reward"] or {}).items()})
