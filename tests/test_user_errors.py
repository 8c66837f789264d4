import pickle

import pytest

from posttrain.errors import ConfigError, DataError, MissingExtra, Problem, UserError

PROBLEMS = [Problem("optimizer.lr", "expected a number, got 'fast'"), Problem("data.train", "no such file", "did you mean x.jsonl?")]


@pytest.mark.parametrize(
    "error", [UserError(PROBLEMS[0]), ConfigError(PROBLEMS), DataError(PROBLEMS), MissingExtra("model/peft=qlora", "quant")]
)
def test_errors_survive_a_process_boundary(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.problems == error.problems
    assert str(copy) == str(error)


def test_every_problem_is_a_line():
    assert str(ConfigError(PROBLEMS)).splitlines() == [
        "optimizer.lr: expected a number, got 'fast'",
        "data.train: no such file (did you mean x.jsonl?)",
    ]
