"""The run that is made first is checked with this run's rights, wherever it is to be made."""

from posttrain.runs import rules
from posttrain.runs.check import check
from posttrain.runs.compose import compose


def test_it_is_checked_for_other_machines_too():
    config = compose(["entering=['method=sft','optimizer.lr=fast']"])
    for held in (rules.ELSEWHERE, rules.HERE):
        assert any("entering: optimizer.lr" in problem.where for problem in check(config, rules=held))


def test_allowed_targets_are_allowed_there_too():
    config = compose(["entering=['optimizer._target_=elsewhere.Optimizer']"])
    refused = [str(p) for p in check(config, rules=rules.ELSEWHERE)]
    allowed = [str(p) for p in check(config, rules=rules.ELSEWHERE, allow_targets=["elsewhere"])]
    assert any("entering: optimizer._target_" in line and "allow-target" in line for line in refused)
    assert not any("allow-target" in line for line in allowed)
