import pickle

import pytest

from posttrain.errors import ConfigError, DataError, MissingExtra, Problem, UserError, after_start
from posttrain.runs import report

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


def test_that_nothing_was_started_is_said_only_where_it_is_true(capsys):
    with pytest.raises(ConfigError) as found, after_start():
        raise ConfigError(PROBLEMS)
    late = pickle.loads(pickle.dumps(found.value))
    for error in (ConfigError(PROBLEMS), late):
        report.show(error.problems, started=error.started)
    told = capsys.readouterr().err.splitlines()
    assert [told[0], told[3]] == ["posttrain: 2 problems, nothing was started", "posttrain: 2 problems"]
