"""What is wrong with a study is told at once and before anything starts."""

import json

import pytest
import yaml

from posttrain.errors import ConfigError
from posttrain.runs.commands.table import Call
from posttrain.runs.comparison.settings import same_arm, settings_of
from posttrain.runs.compose import compose
from posttrain.runs.study.arms import alike
from posttrain.runs.study.run import last_wins, planned, run_study
from posttrain.runs.study.spec import Study, study_problems
from posttrain.runs.sweep_jobs import planned_of

GOOD = {"name": "s", "arms": {"a": ["optimizer.lr=1e-3"], "b": ["optimizer.lr=1e-4"]}, "seeds": [1, 2]}


def problems_of(tmp_path, *overrides, **changes):
    """What `study=mine` with these changes of a good one is refused for."""
    (tmp_path / "study").mkdir(exist_ok=True)
    node = {"study": {**GOOD, "common": ["model=nano", "hardware=cpu"], **changes}, "budget": {"flops": 1e12}}
    (tmp_path / "study" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(node))
    with pytest.raises(ConfigError) as found:
        run_study(Call(arguments=("study=mine", f"output_dir={tmp_path}/out", *overrides), config_dirs=(str(tmp_path),)))
    assert not (tmp_path / "out").exists()
    return {problem.where: problem.message for problem in found.value.problems}


def test_a_good_study_has_no_problems():
    assert list(study_problems(GOOD)) == []


def test_everything_that_is_wrong_with_a_study_is_told_at_once(tmp_path):
    arms = {"a b": [], "seeded": ["seed=3"]}
    found = problems_of(tmp_path, arms=arms, seeds=[1, 2, 1], metrik="val/loss", better="more", smallest=0)
    assert set(found) == {"study.metrik", "study.arms.a b", "study.arms.seeded", "study.seeds", "study.better", "study.smallest"}
    assert "more than once" in found["study.seeds"]
    assert problems_of(tmp_path, arms={}) == {"study.arms": "a study needs arms"}


@pytest.mark.parametrize("line", ["seed=3", "++seed=3", "seed=[3,4]"])
def test_seeds_are_the_studys_alone(tmp_path, line):
    arms = {"a": [line, "optimizer.lr=1e-3"], "b": ["output_dir=x", "optimizer.lr=1e-4"]}
    assert set(problems_of(tmp_path, arms=arms)) == {"study.arms.a", "study.arms.b"}
    assert set(problems_of(tmp_path, common=["model=nano", line])) == {"study.common"}
    (tmp_path / "study" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"study": GOOD}))
    with pytest.raises(ConfigError) as found:
        run_study(Call(arguments=("study=mine", f"output_dir={tmp_path}/out", line), config_dirs=(str(tmp_path),)))
    hints = {problem.where: problem.hint for problem in found.value.problems}
    assert hints == {line: f"study.seeds=[{line.partition('=')[2].strip('[]')}]"}


def test_a_budget_that_the_studys_would_replace_is_refused(tmp_path):
    arms = {"a": ["budget.flops=1e11"], "b": ["optimizer.lr=1e-4"]}
    assert set(problems_of(tmp_path, arms=arms)) == {"study.arms.a"}


def test_what_is_wrong_with_its_arms_is_told_together(tmp_path):
    arms = {"a": ["optimizer.lr=1e-3"], "b": ["optimizer.lr=0.001"], "c": ["optimizr.lr=1"]}
    found = problems_of(tmp_path, arms=arms, metric="val/loss")
    assert set(found) == {"study.arms.c: optimizr.lr=1", "study.arms.b"}
    assert found["study.arms.b"] == "differs from the arm a only in its name"
    assert set(problems_of(tmp_path, "validate.at_end=false", metric="val/loss")) == {"study.metric"}
    assert problems_of(tmp_path, metric="val_loss") == {"study.metric": "no arm will have val_loss"}
    assert set(problems_of(tmp_path, "budget.tokens=5", "budget.flops=3")) == {"budget"}
    assert set(problems_of(tmp_path, "study.seeds=[3,3]")) == {"study.seeds"}


@pytest.mark.parametrize(("seeds", "alike_arms"), [((1, 2), False), ((7, 8), False), ((7,), True)])
def test_a_stages_own_seed_is_a_difference_where_it_makes_one(seeds, alike_arms):
    study = Study("s", {"per_seed": ("method=staged",), "one_base": ("method=staged", "stages.sft.seed=7")}, seeds)
    arms = {}
    for run in planned(study, [], ["model=nano", "hardware=cpu"]):
        arms.setdefault(run.arm, {})[int(run.lines[-1].removeprefix("seed="))] = compose(run.lines)
    assert bool(list(alike(arms))) == alike_arms
    assert same_arm(arms["per_seed"], arms["one_base"]) == alike_arms
    said = {name: {json.dumps(settings_of(config)) for config in some.values()} for name, some in arms.items()}
    assert {name: len(some) for name, some in said.items()} == {"per_seed": 1, "one_base": 1}, "runs of an arm are one arm"
    assert said["per_seed"] != said["one_base"]


def test_what_no_number_depends_on_makes_no_arm():
    free = ["stages.sft.log.every_steps=7", "data.workers=1", "resume=never", "stages_dir=x"]
    arms = {name: {1: compose(["method=staged", "model=nano", *lines])} for name, lines in {"a": [], "b": free}.items()}
    assert [problem.where for problem in alike(arms)] == ["study.arms.b"]


@pytest.mark.parametrize(("metric", "lacking"), [("val/reward", "sft"), ("val/loss", "rl"), ("reward/mean", "sft")])
def test_a_metric_that_only_some_arms_will_have_is_refused(tmp_path, metric, lacking):
    found = problems_of(tmp_path, arms={"sft": ["method=sft"], "rl": ["method=grpo"]}, metric=metric)
    assert found == {"study.metric": f"{lacking} will not have {metric}, so nothing can be compared"}


def test_the_command_line_wins_over_the_arm_and_the_arm_over_what_is_common():
    study = Study("s", {"a": ("method=dpo", "optimizer.lr=1")}, (1, 2), common=("method=sft", "limit=3"))
    runs = planned(study, ["budget.flops=5"], ["optimizer.lr=2"])
    assert [run.name for run in runs] == ["a/seed=1", "a/seed=2"]
    assert runs[1].lines == ("limit=3", "method=dpo", "budget.flops=5", "optimizer.lr=2", "seed=2")
    assert last_wins(["model/peft=lora", "x=1", "model.peft=null"]) == ["x=1", "model.peft=null"]


def test_the_arms_of_a_plain_sweep_are_its_combinations_without_the_seed():
    jobs = [{"method": f"method={m}", "seed": f"seed={s}", "limit": "limit=3"} for m in ("sft", "grpo") for s in (1, 2)]
    assert [(run.name, run.arm) for run in planned_of(jobs)][1:3] == [
        ("method=sft,seed=2", "method=sft"),
        ("method=grpo,seed=1", "method=grpo"),
    ]


def test_a_budget_below_one_step_is_told_with_all_else(tmp_path):
    arms = {"a": ["optimizer.lr=1e-3"], "b": ["optimizer.lr=1e-3"], "c": ["method=staged", "stages.grpo.inputs.policy=nothing"]}
    found = problems_of(tmp_path, "budget.flops=1e6", arms=arms, seeds=[1, 1])
    assert "is less than one optimizer step spends" in found["study.arms.a: budget.flops"]
    assert {"study.seeds", "study.arms.b"} <= found.keys()
    assert any(where.startswith("study.arms.c: stage grpo") for where in found)
