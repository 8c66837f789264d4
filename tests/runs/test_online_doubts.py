"""What is told of runs that learn from their own answers before they start."""

from posttrain.runs.compose import compose
from posttrain.runs.online_doubts import doubts

NANO = ["model=nano", "hardware=cpu"]


def told(*overrides: str) -> str:
    return " ".join(str(problem) for problem in doubts(compose([*NANO, *overrides])))


def test_truncated_sampling_is_told_to_be_off_policy() -> None:
    grpo = ("method=grpo", "reward=[math]")
    assert told(*grpo) == ""
    words = told(*grpo, "rollout.top_p=0.9", "rollout.repetition_penalty=1.2")
    assert "off-policy by top_p=0.9, repetition_penalty=1.2" in words
    assert "mismatch/* is before" in words
    assert told(*grpo, "rollout.top_p=0.9", "method.importance=truncate") == ""


def test_tests_that_are_rewarded_and_shown_are_told() -> None:
    code = ("method=grpo", "data=mbpp", "reward=[code]")
    assert "paid in full" in told(*code)
    assert told(*code, "data.format_options.show_tests=first") == told(*code, "reward.code.use_challenge_tests=true") == ""
    assert told("method=grpo", "data=mbpp", "reward=[length]") == ""


def test_a_judge_that_is_a_rule_is_told_to_be_one() -> None:
    for words in (told("method=rlaif"), told("method=grpo", "reward=[judge]")):
        assert "no model judges: a stand-in rule does (the shorter answer wins)" in words
        assert "reward/backend=openai" in words
