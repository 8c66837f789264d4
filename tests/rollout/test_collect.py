"""Sampling and judging: what is reported, which texts rewards see, and data without answers."""

import pickle

import numpy as np
import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rewards.base import Reward
from posttrain.rewards.combine import combine, plain
from posttrain.rewards.compose import RewardSet
from posttrain.rollout.base import Generator
from posttrain.rollout.collect import Answered, Collector
from posttrain.rollout.measures import rollout_metrics
from posttrain.types import Completion, Group


class Digits(Reward):
    """How many digits an answer has."""

    def measure(self, samples):
        return [float(sum(map(str.isdigit, sample.completion))) for sample in samples]


class Compared(Digits):
    needs_answer = True


class Silent(Generator):
    def generate(self, requests, *, sampling=None):
        raise AssertionError


class Prompts:
    """Three prompts, of which some have an expected answer."""

    def __init__(self, *answered):
        self.answered = answered
        self.lengths = np.full(3, 4)

    def __len__(self):
        return 3

    def value(self, name, index):
        return '{"prompt": [], "meta": {}}' if name == "facts" else None

    def with_value(self, name):
        return np.array(self.answered, int)


def collector(component, *answered, **sampling):
    return Collector(Prompts(*answered), Silent(group_size=2, **sampling), RewardSet({"digits": component}), byte_tokenizer(), 0)


def completion(text, finish="stop"):
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return Completion(tokens, np.zeros(len(tokens), np.float32), finish)


def test_the_stop_string_is_not_part_of_what_was_said():
    judged = collector(Digits(), stop=["##", "END"])
    assert judged.text(completion("42## no")) == "42"
    assert judged.text(completion("42END")) == "42"
    assert judged.text(completion("4END2", "length")) == "4END2"


class Popping(Reward):
    """Takes what it needs out of an answer's facts."""

    def measure(self, samples):
        return [float(sample.meta.pop("target")) + float(sample.prompt[0].pop("content")) for sample in samples]


@pytest.mark.parametrize("handed_over", [list, lambda samples: pickle.loads(pickle.dumps(list(samples)))])
def test_what_a_reward_changes_of_an_answer_is_no_others(handed_over, monkeypatch):
    monkeypatch.setattr(Prompts, "value", lambda *_: '{"prompt": [{"role": "user", "content": "1"}], "meta": {"target": 2}}')
    judged = collector(Popping())
    group = Group(0, np.zeros(2, np.int32), (completion("a"), completion("b"), completion("c")))
    assert Popping().measure(handed_over(judged.samples(group, 0))) == [3.0, 3.0, 3.0]


def test_what_is_reported_is_the_reward_before_it_is_normalised():
    component = Digits(normalise="batch", weight=2.0)
    judged = collector(component)
    groups = tuple(Group(n, np.zeros(2, np.int32), (completion("1" * n), completion("x"))) for n in range(1, 3))
    answered = Answered(groups, np.array([[[1.0, 0.0], [2.0, 0.0]]]))
    rollout = judged.judged(answered, 0)
    assert rollout.rewards.total.mean() == pytest.approx(0.0)
    found = rollout_metrics(
        rollout, np.ones(2, bool), judged.plain(answered), answered.raw, asked=2, names=["digits"], failures={"digits": 0}
    )
    assert found["reward/mean"] == 1.5
    assert found["reward/digits"] == 0.75
    assert found["answers/unscored"] == 0.0


def test_the_plain_sum_is_missing_where_a_weighted_component_is():
    raw = torch.tensor([[1.0, float("nan")], [float("nan"), 2.0]])
    found = plain(raw, [Digits(weight=0.5), Digits(weight=0.0)])
    assert found[0] == 0.5
    assert found[1].isnan()
    assert combine(raw, torch.zeros(2), [Digits(weight=0.5), Digits(weight=0.0)])[0][0] == 0.5


def test_a_component_that_compares_needs_answers_to_compare_with(caplog):
    with pytest.raises(ConfigError, match="no row of the data has one"):
        collector(Compared()).check_answers()
    collector(Compared(), 0, 2).check_answers()
    assert "1 of 3 prompts" in caplog.text
    collector(Digits()).check_answers()
