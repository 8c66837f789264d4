"""Pipelines that really run: stages hand on artifacts, are found again, are made once, and go on after a kill as if there had been none."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from posttrain.errors import ConfigError
from posttrain.runs import suites
from posttrain.runs.check import compose_and_check
from posttrain.runs.comparison.read import read_run
from posttrain.runs.job import run_job
from posttrain.runs.resume import of_command

LINE = [
    "method=staged", "model=nano", "hardware=cpu", "tracking=none", "evaluation=none", "validate.at_start=false", "limit=40", "max_steps=2",
    "data.generator.held_out=4", "global_batch=4", "max_length=128", "rollout.group_size=2", "rollout.max_new_tokens=8", "checkpoint.every_steps=1",
]  # fmt: skip
LONGER = ["stages.grpo.max_steps=12", "method.kl.coef=0.1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


def composed(folder, store, *overrides):
    return compose_and_check([*LINE, *overrides, f"output_dir={folder}", f"stages_dir={store}"])


def run(folder, store, *overrides):
    """The pipeline's result.json."""
    assert run_job(composed(folder, store, *overrides)) == 0
    return json.loads((folder / "result.json").read_text())


def outcome(stage):
    """Lines of metrics and the weights of a stage."""
    return (stage / "metrics.jsonl").read_bytes(), (stage / "artifact" / "model.safetensors").read_bytes()


def begin(folder, store, *overrides):
    """The pipeline through the command line, from nothing."""
    line = [sys.executable, "-m", "posttrain", *LINE, *overrides, f"output_dir={folder}", f"stages_dir={store}"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(stage, step):
    deadline = time.monotonic() + 240
    file = stage / "metrics.jsonl"
    while not file.exists() or f'"step": {step},' not in file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stage_starts_from_the_one_before_and_names_it(tmp_path, store, capfd):
    result = run(tmp_path, store)
    first, second = result["stages"]
    assert [stage["status"] for stage in result["stages"]] == ["finished", "finished"]
    assert result["steps"] == 4
    assert result["tokens"] == first["tokens"] + second["tokens"]
    assert result["artifact"] == f"{second['folder']}/artifact"
    assert (tmp_path / "2_grpo" / "metrics.jsonl").is_file()
    assert (tmp_path / "artifact").resolve() == (tmp_path / "2_grpo" / "artifact").resolve()
    lineage = json.loads((tmp_path / "2_grpo" / "artifact" / "artifact.json").read_text())["parents"]["policy"]
    begun = json.loads((tmp_path / "1_sft" / "artifact" / "artifact.json").read_text())
    assert (lineage["method"], lineage["data"], lineage["files"]) == ("sft", begun["data"], begun["files"])
    told = capfd.readouterr().out
    assert "stage 1/2 sft: finished, 2 steps" in told
    assert "staged: finished" in told


def test_what_is_there_is_not_made_again_unless_it_is_damaged(tmp_path, tmp_path_factory, capfd):
    store = tmp_path_factory.mktemp("stages")
    sft = ["stages=[sft,grpo]", "stages.grpo.optimizer.lr=1e-5"]
    one = run(tmp_path / "one", store, "stages=[sft,grpo]")
    other = run(tmp_path / "other", store, *sft)
    assert [stage["reused"] for stage in other["stages"]] == [True, False]
    assert other["flops"] == pytest.approx(one["flops"], rel=0.5)  # charged for what was reused
    weights = tmp_path / "one" / "1_sft" / "artifact" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    again = run(tmp_path / "again", store, *sft)
    assert [stage["reused"] for stage in again["stages"]] == [False, True]
    assert weights.read_bytes() == sound
    assert "made anew" in capfd.readouterr().out
    with pytest.raises(ConfigError) as raised:
        compose_and_run(tmp_path / "one", store, *sft)
    assert "stage grpo: optimizer.lr" in {problem.where for problem in raised.value.problems}


def test_a_command_makes_a_shared_stage_anew_once_and_other_code_makes_it_again(tmp_path, capfd, monkeypatch):
    line = [word for word in LINE if not word.startswith("rollout")]

    def made(name, *overrides):
        lines = [*line, "stages=[sft]", *overrides, f"output_dir={tmp_path}/{name}", f"stages_dir={tmp_path}/stages"]
        assert run_job(of_command(compose_and_check(lines), "command")) == 0
        return json.loads((tmp_path / name / "result.json").read_text())["stages"][0]

    first = made("one")
    for name, reused in (("a", False), ("b", True)):
        stage = made(name, "resume=never")
        assert (stage["reused"], stage["hash"], stage["folder"]) == (reused, first["hash"], f"{first['folder']}-2")
    assert outcome(tmp_path / "one" / "1_sft") == outcome(tmp_path / "a" / "1_sft")
    assert (tmp_path / "one" / "1_sft").resolve().name == first["hash"], "where it was, for whoever reads it"
    for module in ("identity", "store"):
        monkeypatch.setattr(f"posttrain.runs.pipeline.{module}.code_digest", lambda: "other")
    capfd.readouterr()
    assert made("one")["hash"] != first["hash"]
    assert "stage 1/1 sft: made anew, the code of posttrain is another than that of" in capfd.readouterr().out


def compose_and_run(folder, store, *overrides):
    from posttrain.runs.pipeline.run import run_pipeline

    return run_pipeline(composed(folder, store, *overrides), folder)


def test_suites_of_a_shared_stage_are_kept_by_what_was_asked(tmp_path, tmp_path_factory, monkeypatch):
    store = tmp_path_factory.mktemp("stages")
    asked = ["stages=[sft]", "evaluation/suite=[sampled]", *(f"evaluation.suite.sampled.{key}" for key in ("limit=2", "max_new_tokens=4"))]

    def measured(name, *more):
        line = [word for word in LINE if not word.startswith("rollout.")]
        assert run_job(compose_and_check([*line, *asked, *more, f"output_dir={tmp_path / name}", f"stages_dir={store}"])) == 0
        return {metric: value for metric, value in read_run(tmp_path / name).metrics.items() if metric.startswith("eval/sampled/")}

    first = measured("a", "evaluation.suite.sampled.samples=2")
    of_stage = {file: file.read_bytes() for file in [*store.glob("*/result.json"), *store.glob("*/eval/*")]}
    other = measured("b", "evaluation.suite.sampled.samples=4")
    assert "eval/sampled/maj_at_2" in first
    assert "eval/sampled/maj_at_4" in other
    assert "eval/sampled/maj_at_4" not in first
    assert "eval/sampled/maj_at_4" in read_run(tmp_path / "b").scores, "its own, by example"
    assert {file: file.read_bytes() for file in of_stage} == of_stage, "what others were told stays"
    monkeypatch.setattr(suites, "run_suite", None)  # nothing is measured twice
    assert measured("c", "evaluation.suite.sampled.samples=4") == other
    assert measured("a", "evaluation.suite.sampled.samples=2") == first


def test_of_two_at_the_same_moment_one_makes_a_stage_and_the_other_waits(tmp_path, tmp_path_factory):
    store = tmp_path_factory.mktemp("stages")
    configs = {name: composed(tmp_path / name, store) for name in ("a", "b")}
    codes = {}

    def work(name):
        codes[name] = run_job(configs[name])

    both = [threading.Thread(target=work, args=(name,)) for name in configs]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert codes == {"a": 0, "b": 0}
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("a", "b")]
    for first, second in zip(*(result["stages"] for result in results), strict=True):
        assert first["folder"] == second["folder"]
        assert sorted((first["reused"], second["reused"])) == [False, True]


@pytest.mark.slow
def test_killed_inside_a_stage_another_pipeline_goes_on_with_it_as_if_nothing_had_been(tmp_path, tmp_path_factory):
    store = tmp_path_factory.mktemp("stages")
    undisturbed = run(tmp_path / "undisturbed", tmp_path_factory.mktemp("stages"), *LONGER)
    killed = begin(tmp_path / "killed", store, *LONGER)
    wait_for_step(tmp_path / "killed" / "2_grpo", 2)
    waiting = {}
    config = composed(tmp_path / "waiting", store, *LONGER)
    other = threading.Thread(target=lambda: waiting.update(code=run_job(config)))
    other.start()
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    other.join()
    assert waiting == {"code": 0}
    assert outcome(tmp_path / "waiting" / "2_grpo") == outcome(tmp_path / "undisturbed" / "2_grpo")
    result = run(tmp_path / "killed", store, *LONGER)  # the same command, in the folder it was killed in
    assert [stage["reused"] for stage in result["stages"]] == [False, False], "it began both itself, as if it had not been killed"
    assert (result["steps"], result["tokens"]) == (undisturbed["steps"], undisturbed["tokens"])


@pytest.mark.slow
def test_stopped_and_failed_pipelines_say_so(tmp_path, store):
    process = begin(tmp_path / "stopped", store, "stages.grpo.max_steps=500")
    wait_for_step(tmp_path / "stopped" / "2_grpo", 1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["status"] == "stopped"
    assert "stage 2/2 grpo: stopped; the same command continues it" in told
    (tmp_path / "rows.jsonl").write_text("{")
    code = run_job(composed(tmp_path / "failed", store, "stages.grpo.data=files", f"stages.grpo.data.train={tmp_path / 'rows.jsonl'}"))
    result = json.loads((tmp_path / "failed" / "result.json").read_text())
    assert (code, result["status"]) == (2, "failed")
    assert [stage["status"] for stage in result["stages"]] == ["finished", "failed"]
