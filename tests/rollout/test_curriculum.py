"""Which prompts are worth asking."""

from itertools import islice

import numpy as np
import torch

from posttrain.rollout.curriculum import Curriculum
from posttrain.types import Group


def groups(*numbers):
    return tuple(Group(number, np.zeros(1, np.int32), ()) for number in numbers)


def rewards(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def ask(curriculum, cursor, count):
    return list(curriculum.places(cursor, count, lambda place: place % curriculum.size))


def test_without_bounds_every_prompt_is_asked_in_order():
    curriculum = Curriculum(4)
    curriculum.learn(groups(0), rewards([1.0, 1.0]), [0])
    assert ask(curriculum, 0, 6) == [0, 1, 2, 3, 4, 5]
    assert curriculum.known == {}


def test_prompts_outside_the_bounds_are_passed_over_until_forgotten():
    curriculum = Curriculum(3, low=0.2, high=0.8)
    curriculum.learn(groups(0, 1, 2), rewards([1.0, 1.0], [0.0, -1.0], [1.0, 0.0]), [0, 1, 2])
    assert curriculum.known == {0: (1.0, 0), 1: (0.0, 1), 2: (0.5, 2)}
    assert ask(curriculum, 3, 1) == [5]  # 3 and 4 are prompts 0 and 1
    assert ask(curriculum, 7, 1) == [8]  # prompt 1 was measured just two passes ago
    assert ask(curriculum, 10, 1) == [10]


def test_answers_that_could_not_be_scored_do_not_count():
    curriculum = Curriculum(2, high=0.9)
    curriculum.learn(groups(0, 1), rewards([1.0, float("nan")], [float("nan")] * 2), [0, 1])
    assert curriculum.known == {0: (1.0, 0)}


def test_a_pass_with_too_few_worth_asking_asks_any():
    curriculum = Curriculum(3, high=0.5)
    curriculum.learn(groups(0, 1, 2), rewards([1.0], [1.0], [1.0]), [0, 1, 2])
    assert ask(curriculum, 3, 2) == [6, 7]


def test_what_was_measured_travels_with_checkpoints():
    curriculum = Curriculum(3, low=0.2, high=0.8)
    curriculum.learn(groups(0, 2), rewards([1.0, 1.0], [0.0, 1.0]), [0, 2])
    again = Curriculum(3, low=0.2, high=0.8)
    again.load_state_dict(curriculum.state_dict())
    assert again.known == curriculum.known
    assert list(islice(again.places(3, 2, lambda place: place % 3), 2)) == ask(curriculum, 3, 2)
