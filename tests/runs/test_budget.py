"""A run stops at its budget; interrupted and continued it stops at the same place with the same numbers."""

import json
from types import SimpleNamespace

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.budget.amount import Budget
from posttrain.runs.budget.plan import nearest
from posttrain.runs.budget.watch import BudgetWatch, Meter
from posttrain.runs.check import check
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.runs.ranks import Ranks

BASE = (
    "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=100", "global_batch=2", "precision=float32",
    "validate.every_steps=null", "validate.at_start=false", "validate.at_end=false", "data.generator.held_out=4",
    "model.architecture.num_hidden_layers=1",
)  # fmt: skip
GRPO = ("method=grpo", "rollout.max_new_tokens=4", "rollout.group_size=2", "reward=[language]", "reward.language.scripts=[han]")
METHODS = {
    "sft": (),
    "dpo": ("method=dpo", "data=arithmetic_pairs"),
    "dpo, cached": ("method=dpo", "data=arithmetic_pairs", "method.reference=cached"),
    "grpo": (*GRPO, "method.kl.coef=0.1", "method.minibatches=2"),
}


def ran(folder, *overrides):
    assert run_job(compose([*BASE, *overrides, f"output_dir={folder}"])) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "result.json").read_text()), rows


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stops_within_one_percent_of_its_operations(tmp_path, method):
    cache = [f"method.reference_cache={tmp_path}/cache"] if "cached" in method else []
    first, _ = ran(tmp_path / "one", *METHODS[method], *cache, "max_steps=8")
    asked = first["flops"] * (3 if cache else 8.1)
    result, rows = ran(tmp_path / "run", *METHODS[method], *cache, f"budget.flops={asked}")
    assert result["status"] == "finished"
    assert result["budget"] == {"unit": "flops", "asked": pytest.approx(asked), "spent": result["flops"]}
    assert result["flops"] == pytest.approx(asked, rel=0.01)
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates[-1] < 0.01 * max(rates)  # the cosine ends with the budget


def test_the_nearest_boundary():
    ten = Budget("flops", 10.0)
    assert [nearest(lambda _, cost=cost: cost, ten, before=0.0, most=99) for cost in (3.0, 4.0, 5.0, 7.0, 10.0)] == [3, 2, 2, 1, 1]
    assert nearest(lambda _: 3.0, ten, before=4.0, most=99) == 2
    assert nearest(lambda _: 1.0, ten, before=0.0, most=5) is None
    with pytest.raises(ConfigError, match="less than one optimizer step"):
        nearest(lambda _: 11.0, ten, before=0.0, most=99)


def test_budgets_that_cannot_be(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("posttrain.runs.job.report.show", lambda problems, **_: told.extend(problems))
    assert run_job(compose([*BASE, "budget.tokens=3", f"output_dir={tmp_path}/small"])) == 2
    assert run_job(compose([*BASE, *GRPO, "budget.flops=3", f"output_dir={tmp_path}/online"])) == 2
    assert [problem.where for problem in told] == ["budget.tokens", "budget.flops"]
    assert all("less than one optimizer step" in problem.message for problem in told)
    both = check(compose([*BASE, "budget.flops=1e9", "budget.tokens=100"]))
    assert [problem.where for problem in both] == ["budget"]
    stepped = check(compose([*BASE, *GRPO, "budget.flops=1e9", "scheduler.warmup=10"]))
    assert [problem.where for problem in stepped] == ["scheduler.warmup"]


def test_whichever_comes_first_and_seconds(tmp_path, capsys):
    result, _ = ran(tmp_path / "steps", "budget.tokens=1e9", "max_steps=2")
    assert (result["steps"], result["budget"]["spent"]) == (2, result["tokens"])
    result, _ = ran(tmp_path / "seconds", "budget.gpu_seconds=1.5", "log.every_steps=9")
    assert result["budget"]["spent"] == pytest.approx(1.5, abs=0.5)
    assert run_job(compose([*BASE, "budget.gpu_seconds=0.1", f"output_dir={tmp_path / 'seconds'}"])) == 2  # it has spent more
    assert "budget.gpu_seconds: the run in output_dir has spent" in capsys.readouterr().err


@pytest.mark.parametrize("overrides", [(), METHODS["grpo"]], ids=["sft", "grpo"])
def test_interrupted_and_continued_it_spends_the_same(tmp_path, overrides, monkeypatch):
    line = (*overrides, "checkpoint.every_steps=3", "checkpoint.keep_last=9")
    short, _ = ran(tmp_path / "short", *overrides, "max_steps=4")
    budget = f"budget.flops={2.1 * short['flops']}"
    whole, rows = ran(tmp_path / "whole", *line, budget)
    for checkpoint in (tmp_path / "whole" / "checkpoints").glob("step-*"):
        if not checkpoint.name.endswith("3"):
            for file in sorted(checkpoint.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            checkpoint.rmdir()
    (tmp_path / "whole" / "result.json").unlink()
    again, continued = ran(tmp_path / "whole", *line, budget)
    assert continued == rows
    assert {**again, "train_seconds": 0, "tokens_per_second": 0, "peak_memory_bytes": 0} == {
        **whole, "train_seconds": 0, "tokens_per_second": 0, "peak_memory_bytes": 0,
    }  # fmt: skip
    last, ended = ran(tmp_path / "whole", *line, budget)  # nothing is left to do
    assert (last, ended) == (again, continued)


@pytest.fixture
def told(monkeypatch):
    found = []
    monkeypatch.setattr("posttrain.runs.job.report.show", lambda problems, **_: found.extend(problems))
    return found


def test_a_run_that_samples_goes_on_with_a_budget_that_it_did_not_have_before(tmp_path, told):
    line, folder = (*METHODS["grpo"], "checkpoint.every_steps=1"), tmp_path / "run"
    first, _ = ran(folder, *line, "max_steps=4")
    second, _ = ran(folder, *line, f"budget.flops={2 * first['flops']}")
    assert second["budget"]["spent"] == second["flops"] == pytest.approx(2 * first["flops"], rel=0.2)
    third, _ = ran(folder, *line, f"budget.tokens={3 * first['tokens']}")  # another unit than the checkpoint's
    assert third["budget"]["spent"] == third["tokens"] == pytest.approx(3 * first["tokens"], rel=0.2)
    assert run_job(compose([*BASE, *line, f"budget.tokens={first['tokens']}", f"output_dir={folder}"])) == 2
    assert (told[0].where, f"has spent {third['tokens']}" in told[0].message) == ("budget.tokens", True)
    other, _ = ran(tmp_path / "other", *line, f"budget.flops={1.5 * third['flops']}", f"resume={folder}")
    assert other["budget"]["spent"] == pytest.approx(1.5 * third["flops"], rel=0.2)


def test_so_does_one_whose_steps_are_known_and_seconds_count_from_its_beginning(tmp_path, told):
    folder = tmp_path / "run"
    first, _ = ran(folder, "max_steps=4")
    spent = first["train_seconds"]
    second, _ = ran(folder, f"budget.gpu_seconds={spent + 1}")
    assert second["steps"] > 4
    assert second["budget"]["spent"] == pytest.approx(second["train_seconds"]) == pytest.approx(spent + 1, abs=0.5)
    third, _ = ran(folder, f"budget.flops={1.5 * second['flops']}")
    assert third["flops"] == pytest.approx(1.5 * second["flops"], rel=0.05)
    assert run_job(compose([*BASE, f"budget.flops={first['flops']}", f"output_dir={folder}"])) == 2
    assert (told[0].where, "and this command gives it" in told[0].message) == ("budget.flops", True)


def test_seconds_of_devices_are_those_of_all_ranks_also_of_another_number_of_them():
    recorder = SimpleNamespace(totals={"flops_before": 0.0, "flops": 0.0, "tokens": 0.0, "train_seconds": 10.0, "device_seconds": 20.0})
    watch = BudgetWatch(Meter(Budget("gpu_seconds", 30.0), recorder, Ranks()))
    watch.meter.measure(SimpleNamespace(device="cpu"))
    watch._go_on(5)  # began on two devices, without a budget
    assert (watch.meter.spent, list(watch.costs), watch._reached(5)) == (20.0, [4.0], False)
    recorder.totals["device_seconds"] = 0.0
    with pytest.raises(ConfigError, match="does not say the seconds"):
        watch._go_on(5)
