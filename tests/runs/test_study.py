"""A small study: its record, what is run again and what is not, an arm more and a seed more, and kills."""

import json
import random
import time

import preloaded
import pytest

from posttrain.__main__ import main

LINE = (
    "study=sft_lr", "hardware=cpu", "tracking=none", "evaluation=none", "limit=40", "global_batch=2", "data.generator.held_out=8",
    "validate.at_start=false", "model.architecture.num_hidden_layers=1", "budget.flops=1e9",
)  # fmt: skip


def results(folder):
    return {path.parent.relative_to(folder).as_posix(): path for path in folder.glob("*/*/result.json")}


def test_a_study_runs_what_is_missing(tmp_path, capsys):
    folder = tmp_path / "study"
    line = [*LINE, f"output_dir={folder}"]
    assert main([*line, "study.seeds=[1]"]) == 0
    record = json.loads((folder / "study.json").read_text())
    assert record["arms"] == [{"name": "low", "runs": ["low/seed=1"]}, {"name": "high", "runs": ["high/seed=1"]}]
    assert record["budget"] == {"unit": "flops", "amount": 1e9}
    assert (record["metric"], record["better"], record["smallest"]) == ("val/loss", "lower", 0.05)
    (folder / "low" / "seed=1" / "result.json").unlink()  # as if killed before its end
    first = {name: path.stat().st_mtime_ns for name, path in results(folder).items()}
    assert main(["-m", *line]) == 0
    assert set(results(folder)) == {"low/seed=1", "low/seed=2", "high/seed=1", "high/seed=2"}
    assert {name: results(folder)[name].stat().st_mtime_ns for name in first} == first
    for path in results(folder).values():
        result = json.loads(path.read_text())
        assert result["budget"]["spent"] == result["flops"] == pytest.approx(1e9, rel=0.1)
    report = (folder / "compare" / "compare.json").read_text()
    assert "high is better than low" in capsys.readouterr().out
    assert main(line) == 0
    assert (folder / "compare" / "compare.json").read_text() == report


def test_a_budget_smaller_than_a_step_is_refused_before_anything_starts(tmp_path):
    assert main([*LINE, "budget.flops=1000", f"output_dir={tmp_path}/study"]) == 2
    assert not (tmp_path / "study").exists()


def test_an_arm_that_fails_does_not_keep_the_others_from_being_compared(tmp_path, capsys):
    bad = 'study.arms={low:["optimizer.lr=3e-4"],high:["optimizer.lr=3e-3"],bad:["optimizer.lr=1e30","gradient_clip=null"]}'
    line = [*LINE[:-1], "budget.flops=null", "max_steps=3", bad, "study.seeds=[1]", f"output_dir={tmp_path}/study"]
    assert main(line) == 1
    found = json.loads((tmp_path / "study" / "compare" / "compare.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["low", "high"]
    assert "Left out, since runs did not finish: bad (seed=1 failed)." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("left", ["finished", "killed"])
def test_runs_of_other_numbers_are_not_taken_for_those_of_a_study(tmp_path, capsys, left):
    folder = tmp_path / "study"
    line = [*LINE[:-1], "budget.flops=null", "study.seeds=[1]", f"output_dir={folder}"]
    assert main([*line, "max_steps=2"]) == 0
    if left == "killed":
        for path in results(folder).values():
            path.unlink()
    before = {file: file.read_bytes() for file in folder.rglob("metrics.jsonl")}
    for change in ("max_steps=3", "precision=bf16", "validate.max_examples=4"):
        assert main([*line, "max_steps=2", change]) == 2
        told = capsys.readouterr().err
        assert f"low/seed=1: {change.partition('=')[0]}: the run in output_dir has" in told
        assert "resume=never" in told
    assert {file: file.read_bytes() for file in folder.rglob("metrics.jsonl")} == before
    if left == "finished":
        assert main([*line, "max_steps=2", "checkpoint.every_steps=7", "log.every_steps=2"]) == 0
        assert main([*line, "max_steps=3", "resume=never"]) == 0
        assert json.loads(results(folder)["low/seed=1"].read_text())["steps"] == 3


def test_seeds_are_measured_on_the_same_part_of_ones_own_data(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} + 1 = ", "completion": str(n + 1)}) + "\n" for n in range(60)))
    own = ["data=files", f"data.train={rows}", "budget.tokens=200", "study.seeds=[1,2]", f"output_dir={tmp_path}/study"]
    line = [word for word in LINE if not word.startswith(("data.generator", "budget", "limit"))]
    assert main([*line, *own, "study.metric=kl"]) == 2
    told = capsys.readouterr().err
    assert "has no such metric" in told
    assert "nothing was started" not in told
    assert main([*line, *own]) == 0
    assert json.loads((tmp_path / "study" / "compare" / "compare.json").read_text())["metric"] == "val/loss"


def test_so_is_the_part_of_a_pipelines_first_stage(tmp_path, capsys):
    small = [f"stages.base.{key}" for key in ("limit=40", "data.generator.held_out=8")]
    assert main(["study=quickstart", *small, "budget.flops=1000", f"output_dir={tmp_path}/study"]) == 2
    told = capsys.readouterr().err
    assert [f"study.arms.{arm}: stage base: budget.flops: 840" in told for arm in ("sft", "rl", "staged")] == [True] * 3
    assert not (tmp_path / "study").exists()


MISTAKEN = """
# @package _global_
study:
  name: twins
  arms:
    a: [method=nano_sft]
    b: [method=nano_sft]
    c: [method=staged, stages.grpo.inputs.policy=nothing]
    d: [method=staged, stages.sft.inputs.policy=grpo]
  seeds: [1, 1]
  metrik: x
"""


def test_all_mistakes_are_told_at_once(tmp_path, capsys):
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "twins.yaml").write_text(MISTAKEN)
    assert main(["--config-dir", f"{tmp_path}/conf", "study=twins", f"output_dir={tmp_path}/study"]) == 2
    told = capsys.readouterr().err
    for words in (
        "study.metrik: unknown key (did you mean metric?)",
        "study.seeds: 1 given more than once",
        "study.arms.c: stage grpo: inputs.policy: no stage is called nothing",
        "study.arms.d: stage sft: inputs.policy: grpo comes later, so this would be a cycle",
        "study.arms.b: differs from the arm a only in its name",
    ):
        assert words in told
    assert not (tmp_path / "study").exists()


def test_a_plain_sweep_leaves_a_record_too_and_grows(tmp_path, capsys):
    line = ["-m", *LINE[1:-1], "model=nano", "budget.tokens=200", f"output_dir={tmp_path}/sweep"]
    runs = {}
    for seeds in ("seed=1", "seed=1,2", "seed=2"):
        assert main([*line, seeds]) == 0
        record = json.loads((tmp_path / "sweep" / "study.json").read_text())
        runs[seeds] = {run: (tmp_path / "sweep" / run / "result.json").stat().st_mtime_ns for run in record["arms"][0]["runs"]}
        assert (record["metric"], record["budget"]) == (None, {"unit": "tokens", "amount": 200.0})
        assert [arm["name"] for arm in record["arms"]] == ["all"]
    assert list(runs["seed=1,2"]) == ["0", "seed=2"]
    assert runs["seed=1,2"]["0"] == runs["seed=1"]["0"], "it is not trained again"
    assert runs["seed=2"] == runs["seed=1,2"], "and what this command leaves out stays"
    assert main([*line, "seed=1,2", "optimizer.lr=0.5"]) == 2
    assert "output_dir: the runs of all that are there were made with other optimizer.lr" in capsys.readouterr().err


STAGED = "stages=[{name:one,overrides:['method=sft'],share:0.5},{name:two,overrides:['method=sft'],inputs:{policy:one}}]"
TINY = [
    "study=sft_lr", f'study.arms={{sft:["method=sft"],staged:["method=staged","{STAGED}"]}}', "study.seeds=[1]", *LINE[1:-1],
    "checkpoint.every_steps=1", "budget.flops=1e9",
]  # fmt: skip
OF_A_MOMENT = ("train_seconds", "tokens_per_second", "peak_memory_bytes")


def outcome(folder):
    """What the runs of a study came to, without places and times."""
    found = {"record": (folder / "study.json").read_text(encoding="utf-8")}
    for run in ("sft/seed=1", "staged/seed=1", "staged/seed=1/1_one", "staged/seed=1/2_two"):
        result = json.loads((folder / run / "result.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in result.items() if key not in (*OF_A_MOMENT, "artifact", "stages")}
        stages = [(stage["name"], stage["hash"], stage["status"], stage["flops"]) for stage in result.get("stages", ())]
        curve = (folder / run / "metrics.jsonl").read_bytes() if not stages else b""
        found[run] = (kept, stages, curve)
    return found


@pytest.mark.slow
def test_a_study_killed_again_and_again_comes_to_the_same(tmp_path):
    def begin(name):
        return preloaded.posttrain(*TINY, f"output_dir={tmp_path / name}/study", f"stages_dir={tmp_path / name}/stages")

    began = time.monotonic()
    undisturbed = begin("undisturbed")
    assert undisturbed.wait(300) == 0, undisturbed.communicate()
    seconds, moments = time.monotonic() - began, random.Random(3)
    for _ in range(3):
        killed = begin("killed")
        time.sleep(moments.uniform(0.15, 0.45) * seconds)
        killed.kill()
        killed.wait()
    last = begin("killed")
    assert last.wait(300) == 0, last.communicate()
    assert outcome(tmp_path / "killed" / "study") == outcome(tmp_path / "undisturbed" / "study")
