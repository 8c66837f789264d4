"""Reward methods on the command line: their learning rate, their heads, and what does not go together."""

from __future__ import annotations

import pytest
from test_compose import where

from posttrain.runs.check import compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.separators import steps_are_parted_alike
from posttrain.runs.train import rendering_of


def test_a_third_of_the_models_learning_rate_unless_one_is_given() -> None:
    assert compose(["method=reward_model"])["optimizer"]["lr"] == pytest.approx(1e-3)
    assert compose(["method=reward_model", "model=gemma_1b"])["optimizer"]["lr"] == pytest.approx(
        compose(["model=gemma_1b"])["optimizer"]["lr"] / 3
    )
    assert compose(["method=reward_model", "optimizer.lr=5e-5"])["optimizer"]["lr"] == 5e-5
    assert compose(["experiment=code_ultrafeedback_rm"])["optimizer"]["lr"] == 1e-4


def test_the_head_learns_the_attributes_of_the_data() -> None:
    config = compose(["method=reward_model", "method.head=branch", "data.attributes=[style]"])
    assert config["method"]["attributes"] == ["style"]
    assert where(["method=reward_model", "method.attributes=[style]"]) == {"method.attributes"}


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["method=reward_model", "method.loss=sigmoid"], "method.loss"),
        (["method=reward_model", "method.loss=pinball"], "method.loss"),
        (["method=dpo", "method.loss=bradley_terry"], "method.loss"),
        (["method=reward_model", "method.loss.centre=-1"], "method.loss.centre"),
        (["method=rating_model", "method.loss=huber", "method.loss.delta=0"], "method.loss.delta"),
        (["method=reward_model", "method.head=branch", "method.head.looks=0"], "method.head.looks"),
        (["method=reward_model", "method.head=quantile", "method.head.quantiles=1"], "method.head.quantiles"),
        (["method=reward_model", "method.head=quantile", "method.head.reward=mode"], "method.head.reward"),
        (["method=reward_model", "method.head=brnch"], "method.head=brnch"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(overrides: list[str], place: str) -> None:
    assert where(overrides) == {place}


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_how_far_a_reference_moves_that_never_does(method: str) -> None:
    assert where([f"method={method}", "method.reference_update_mix=0.3"]) == {"method.reference_update_mix"}
    moving = ["method.reference_update_every=5", "method.reference=copy"]
    assert compose_and_check([f"method={method}", "method.reference_update_mix=0.3", *moving])["method"]["reference_update_mix"] == 0.3
    compose_and_check([f"method={method}", "method.reference_update_mix=0.6"])  # the default, written out


def test_the_separator_between_steps_is_that_of_all_sources() -> None:
    def sources(*separators: str | None) -> dict:
        options = [{} if text is None else {"format_options": {"separator": text}} for text in separators]
        return {"sources": [{"path": "a.jsonl", **each} for each in options], "format_options": {"separator": "|"}}

    assert rendering_of(sources("#", "#")).separator == "#"
    assert rendering_of(sources(None)).separator == "|"
    assert rendering_of({"train": "a.jsonl", "format_options": {"separator": "|"}}).separator == "|"
    assert rendering_of({"train": "a.jsonl"}).separator == "\n"
    config = compose(["method=process_reward_model"])
    assert not list(steps_are_parted_alike({**config, "data": sources("|", None)}))
    (problem,) = steps_are_parted_alike({**config, "data": sources("#", None)})
    assert "data.sources[0].format_options.separator='#'; data.sources[1].format_options.separator='|'" in str(problem)
    assert not list(steps_are_parted_alike({**compose(["method=sft"]), "data": sources("#", None)}))
