"""`posttrain compare study=DIR`: arms with names, pipelines among them, the report in the study's folder and on its MLflow parent."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from comparison_runs import METRIC, make_arm, make_pipeline, make_run, make_study, rewrite

from posttrain.errors import ConfigError
from posttrain.evaluation.scores import Scores, names_of
from posttrain.runs.commands.compare import run as command
from posttrain.runs.commands.table import Call
from posttrain.runs.comparison import publish
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.command import report_on_finished, report_on_study
from posttrain.runs.comparison.costs import pareto
from posttrain.runs.comparison.drift import Drift, chance, drift_of, told
from posttrain.runs.comparison.forgetting import changes_of
from posttrain.runs.comparison.read import read_run
from posttrain.runs.kept_scores import keep_scores, keep_scores_at
from posttrain.runs.records import MetricsFile


def reported(study: Path) -> dict[str, Any]:
    report_on_study(study)
    found: dict[str, Any] = json.loads((study / "compare" / "compare.json").read_text())
    return found


def staged_study(home: Path, **changes: Any) -> Path:
    """Supervised alone, and a pipeline of supervised training (reused from the first arm) and reinforcement."""
    sft, grpo = make_arm(home, "sft", gain=0.0), make_arm(home, "grpo", gain=0.2, flops=1e12)
    staged = [
        make_pipeline(home / "staged" / f"seed={seed}", {"sft": sft[seed - 1], "rl": grpo[seed - 1]}, seed=seed, reused=("sft",))
        for seed in (1, 2, 3)
    ]
    return make_study(home, {"SFT only": sft, "SFT, then RL": staged}, **changes)


def test_a_study_with_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(staged_study(tmp_path))
    assert found["verdict"][0].startswith("SFT, then RL is better than SFT only by 0.19")
    assert (found["metric"], found["smallest"], found["study"]["name"]) == (METRIC, 0.02, "recipes")
    alone, staged = found["arms"]
    assert (alone["cost"]["flops"], staged["cost"]["flops"]) == (4e12, 5e12), "a stage that was reused costs what it cost"
    times = found["measured"]["arms"][1]
    assert times["device_hours"] == pytest.approx(2 * times["hours"]) == pytest.approx(0.04)
    assert staged["cost"]["tokens"] == 800
    assert found["pareto"] == ["SFT only", "SFT, then RL"]
    written = {file.name for file in (tmp_path / "compare").iterdir()}
    assert written >= {"compare.html", "compare.json", "pareto.svg", "quality_over_flops.svg", "quality_over_hours.svg"}
    assert "flops" in next(note for note in found["notes"] if note.startswith("Budget of every arm"))
    assert "tokens generated" in capsys.readouterr().out


def test_one_base_for_all_seeds_is_another_arm_than_one_for_each(tmp_path: Path) -> None:
    sft, grpo, again = (make_arm(tmp_path / name, "grpo", gain=gain) for name, gain in (("sft", 0.0), ("grpo", 0.2), ("again", 0.2)))
    base = make_run(tmp_path / "base", seed=7, metrics={METRIC: 0.5}, config={"method": {"name": "grpo"}})
    arms = {
        "per_seed": [make_pipeline(tmp_path / f"a{n}", {"sft": sft[n - 1], "rl": grpo[n - 1]}, seed=n) for n in (1, 2, 3)],
        "one_base": [make_pipeline(tmp_path / f"b{n}", {"sft": base, "rl": again[n - 1]}, seed=n) for n in (1, 2, 3)],
    }
    assert [arm["name"] for arm in reported(make_study(tmp_path, arms))["arms"]] == ["per_seed", "one_base"]
    with pytest.raises(ConfigError, match="differ in name only"):
        reported(
            make_study(tmp_path, {"a": arms["per_seed"][:1], "b": [make_pipeline(tmp_path / "c", {"sft": sft[0], "rl": again[0]}, seed=1)]})
        )


def test_arms_that_did_not_finish_are_left_out_and_named(tmp_path: Path) -> None:
    arms = {name: make_arm(tmp_path, name, gain=gain) for name, gain in (("sft", 0.0), ("dpo", 0.2), ("bad", 0.0))}
    rewrite(arms["bad"][1], "result.json", status="failed")
    study = make_study(tmp_path, arms)
    with pytest.raises(ConfigError, match="the run is failed"):
        report_on_study(study)
    report_on_finished(study)
    found = json.loads((study / "compare" / "compare.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["sft", "dpo"]
    assert found["notes"][0] == "Left out, since runs did not finish: bad (bad-2 failed)."
    (arms["dpo"][0] / "result.json").unlink()
    with pytest.raises(ConfigError, match=re.escape("1 of 3 arms can be compared. Left out, since runs did not finish: dpo (dpo-1 not")):
        report_on_finished(study)


def test_a_study_that_was_moved_with_its_stages_is_read(tmp_path: Path) -> None:
    home = tmp_path / "here"
    home.mkdir()
    study = staged_study(home)
    for file in home.glob("staged/*/result.json"):
        found = json.loads(file.read_text())
        for stage in found["stages"]:
            link = file.parent / stage["folder"]
            target = link.resolve()
            stage["folder"] = str(target)
            link.unlink()
            link.symlink_to(Path("../..") / target.name, target_is_directory=True)
        file.write_text(json.dumps(found))
    before = reported(study)["arms"]
    home.rename(tmp_path / "there")
    assert reported(tmp_path / "there")["arms"] == before
    shutil.rmtree(tmp_path / "there" / "grpo-1")
    with pytest.raises(ConfigError, match="No such file"):
        reported(tmp_path / "there")


def test_a_broken_file_of_scores_is_told(tmp_path: Path) -> None:
    arms = {name: make_arm(tmp_path, name, gain=0.1) for name in ("sft", "dpo")}
    (file,) = (arms["sft"][0] / "eval").glob("*.parquet")
    file.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(ConfigError, match="its files are broken"):
        reported(make_study(tmp_path, arms))


def test_a_run_that_an_arm_starts_from_is_charged_to_it(tmp_path: Path) -> None:
    plain, warm = make_arm(tmp_path, "sft", gain=0.0), make_arm(tmp_path, "dpo", gain=0.2, config={"entering": ["method=sft"]})
    for seed, folder in enumerate(warm, 1):
        make_run(folder / "entering", seed=seed, metrics={METRIC: 0.9}, flops=8e12)
    found = reported(make_study(tmp_path, {"plain": plain, "warm": warm}))
    assert [(arm["cost"]["flops"], arm["cost"]["tokens"]) for arm in found["arms"]] == [(4e12, 400), (1.2e13, 800)]
    assert "Costs of warm hold the run that it starts from (entering): 8e+12 FLOPs." in found["notes"]
    assert found["pareto"] == ["plain", "warm"]
    from posttrain.runs.comparison.costs import curve_of

    curve = curve_of(read_run(warm[0]), METRIC)
    assert curve.flops[0] == 8e12, "what was measured of the run before is not this one's"


def test_curves_of_stages_are_joined(tmp_path: Path) -> None:
    staged_study(tmp_path)
    from posttrain.runs.comparison.costs import curve_of

    curve = curve_of(read_run(tmp_path / "staged" / "seed=1"), METRIC)
    assert curve.flops == pytest.approx((0, 2e12, 4e12, 4e12, 4.5e12, 5e12))
    assert curve.hours == pytest.approx((0, 0.005, 0.01, 0.01, 0.015, 0.02))
    assert curve.ends == (2,), "the first stage ended there"


def test_arguments_overrule_the_study(tmp_path: Path) -> None:
    study = staged_study(tmp_path)
    call = Call(arguments=(f"study={study}", "smallest=0.5", "baseline=SFT only", f"to={tmp_path / 'elsewhere'}"))
    assert command(call) == 0
    found = json.loads((tmp_path / "elsewhere" / "compare.json").read_text())
    assert (found["smallest"], found["reference"]) == (0.5, "SFT only")


def test_one_arm_alone(tmp_path: Path) -> None:
    found = reported(make_study(tmp_path, {"sft": make_arm(tmp_path, "sft", gain=0.0)}, budget=None))
    assert found["verdict"][0].startswith("sft: 0.")
    assert found["verdict"][0].endswith("There is no other arm to compare it with.")
    assert found["pairs"] == []


def test_the_report_goes_to_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store is asked for; tests/runs/test_tracking_mlflow.py asks a real one."""
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(publish, "ask_store", lambda action, request, **_: asked.append((action, request)))
    arm = make_arm(tmp_path, "sft", gain=0.0, seeds=2)
    reported(make_study(tmp_path, {"sft": arm}, parent="abc"))
    assert asked == [], "these runs were not tracked"
    event = {"event": "start", "uri": "sqlite:///there.db", "experiment": "e", "run_key": "k"}
    (arm[1] / "tracking").mkdir()
    (arm[1] / "tracking" / "events.jsonl").write_text(json.dumps(event) + "\n")
    reported(tmp_path)
    ((action, request),) = asked
    assert (action, request["uri"], request["run_id"], request["into"]) == ("add", "sqlite:///there.db", "abc", "compare")
    assert {Path(file).name for file in request["files"]} >= {"compare.html", "compare.json", "pareto.svg"}


def test_arms_that_are_not_shown_to_be_worse_are_not_off_the_front(tmp_path: Path) -> None:
    """Of equal cost: two that differ by nothing that is shown, and one that is worse. A dearer one must be better."""
    arms = {name: make_arm(tmp_path, name, gain=gain) for name, gain in (("dpo", 0.2), ("kto", 0.199), ("sft", 0.0))}
    arms["orpo"] = make_arm(tmp_path, "orpo", gain=0.195, flops=8e12)
    found = reported(make_study(tmp_path, arms))
    (best,) = found["pareto"]
    assert {best, *found["pareto_not_excluded"]} == {"dpo", "kto"}
    page = (tmp_path / "compare" / "compare.html").read_text()
    assert page.count("<td>not shown to be off it</td>") == 1
    assert "a pale ring" in page


HELD = {0: 0.3, 10: 0.6, 20: 0.5, 30: 0.25}


def right(share: float, examples: int = 200) -> np.ndarray:
    """Answers of which the first are right."""
    return (np.arange(examples) < share * examples).astype(float)


def course(folder: Path, held: dict[int, float], metric: str = METRIC, examples: int = 200) -> Path:
    """A run whose reward and divergence rise, and whose metric on what is held out goes this way."""
    make_run(folder, seed=3, scores=right(held[max(held)], examples))
    if metric != METRIC:
        keep_scores(folder, {metric: Scores(names_of(map(str, range(examples))), right(held[max(held)], examples))})
    (folder / "metrics.jsonl").unlink()
    lines = MetricsFile(folder / "metrics.jsonl")
    for step in range(31):
        if step:
            lines.append(step, {"loss": 1.0, "kl": 0.01 * step, "reward/mean": 0.02 * step, "tokens": 10 * step, "generated": 7 * step})
        if step in held:
            lines.append(step, {metric: held[step]})
    lines.close()
    return folder


def test_over_optimisation_is_told(tmp_path: Path) -> None:
    folder = course(tmp_path / "run", HELD)
    drift = drift_of(read_run(folder), METRIC, lower=False)
    assert drift is not None
    assert (drift.metric, drift.best, drift.lost) == (METRIC, 1, pytest.approx(0.35))
    assert drift.held_kl[1] == pytest.approx(0.11), "step 11 finds the policy that was measured after step 10"
    assert drift.over_optimised(0.05)
    assert not drift.over_optimised(0.5)
    assert drift_of(read_run(folder), METRIC, lower=True) is not None
    arm = type("Arm", (), {"name": "grpo"})
    (line,) = told([arm], [[drift]], 0.05)  # type: ignore[list-item]
    assert line.startswith("grpo, seed 3: over-optimised. From a divergence of 0.11 nats a token on")
    assert "(p <0.0001)" in line


def test_a_fall_is_tested_on_the_same_examples(tmp_path: Path) -> None:
    """A loss of 6 % is within the noise of 200 other examples, and not of the same ones; nor may the best be chosen for nothing."""
    held = {0: 0.3, 10: 0.6, 20: 0.5, 30: 0.54}
    folder = course(tmp_path / "run", held)
    unpaired = drift_of(read_run(folder), METRIC, lower=False)
    assert unpaired is not None
    assert not unpaired.over_optimised(0.01)
    keep_scores_at(folder, {METRIC: Scores(names_of(f"question {k}" for k in range(200)), right(0.6))}, 10)
    paired = drift_of(read_run(folder), METRIC, lower=False)
    assert paired is not None
    assert paired.over_optimised(0.01)
    assert paired.p == pytest.approx(3 * 2 * 2**-12), "twelve answers that all got worse, and three measurements to choose the best from"
    keep_scores_at(folder, {METRIC: Scores(names_of(f"question {k}" for k in range(200)), right(0.55))}, 10)
    assert drift_of(read_run(folder), METRIC, lower=False) == unpaired, "scores that do not make the value that was logged"


def test_what_decides_between_arms_is_no_measure_of_another_metric(tmp_path: Path) -> None:
    folder = course(tmp_path / "run", HELD, "val/reward")
    drift = drift_of(read_run(folder), METRIC, lower=False)
    assert drift is not None
    assert (drift.metric, drift.decides) == ("val/reward", False)
    assert drift.over_optimised(0.5), "0.5 is of the metric that decides"


def test_runs_that_never_get_worse_are_seldom_called_over_optimised() -> None:
    """The best of eleven noisy measurements is above the last one in most runs."""
    draws, names, found = np.random.default_rng(0), names_of(map(str, range(200))), 0
    for _ in range(300):
        answers = (draws.random((11, 200)) < 0.7).astype(float)
        held = answers.mean(1)
        best = int(held.argmax())
        drift = Drift(1, (), (), (), tuple(held), METRIC, True, best, float(held[best] - held[-1]), float("nan"), 1.0)
        first, last = (Scores(names, answers[place]) for place in (best, -1))
        paired, unpaired = (replace(drift, p=chance(drift, some, last)).over_optimised(0.01) for some in (first, None))
        found += paired or unpaired
    assert found <= 0.05 * 300


def with_start(runs: list[Path], start: np.ndarray, *, kept: bool, prompts: str = "question") -> list[Path]:
    """The runs as if the model that they started from had scored so."""
    for folder in runs:
        result = json.loads((folder / "result.json").read_text())
        rewrite(folder, "result.json", metrics={**result["metrics"], f"{METRIC}/before": float(start.mean())})
        if kept:
            keep_scores_at(folder, {METRIC: Scores(names_of(f"{prompts} {k}" for k in range(len(start))), start)}, 0)
    return runs


def test_what_changed_is_tested(tmp_path: Path) -> None:
    """Once by examples, once by seeds alone, once by nothing; a change that is no more than noise is not called one."""
    start = read_run(make_arm(tmp_path / "start", "start", gain=0.0, seeds=1)[0]).scores[METRIC].values
    arms = {
        "sft": with_start(make_arm(tmp_path, "sft", gain=0.0), start, kept=True),
        "grpo": with_start(make_arm(tmp_path, "grpo", gain=0.2), start, kept=True),
        "dpo": with_start(make_arm(tmp_path, "dpo", gain=0.2), start, kept=False),
        "kto": with_start(make_arm(tmp_path, "kto", gain=0.2, seeds=1), start, kept=False),
    }
    found = reported(make_study(tmp_path, arms))
    verdicts = {change["arm"]: change["verdict"] for change in found["changes"]}
    assert verdicts == {"sft": "not shown to differ", "grpo": "better", "dpo": "better", "kto": "not tested"}
    by_arm = {change["arm"]: change for change in found["changes"]}
    for name in ("sft", "grpo", "dpo"):
        change = by_arm[name]
        assert change["low"] < change["gain"] < change["high"]
        assert change["holm"] >= change["p"]
    assert by_arm["kto"]["p"] is None
    page = (tmp_path / "compare" / "compare.html").read_text()
    assert page.count("<td>not shown to differ</td>") == 1
    assert "<td>not tested</td>" in page


def begun(folder: Path, *, before: np.ndarray, after: np.ndarray, **options: Any) -> Path:
    """A run that measured the first questions before and after."""
    made = make_run(folder, seed=1, scores=after, **options)
    with_start([made], before, kept=True, prompts=options.get("prompts", "question"))
    return made


def test_a_pipeline_is_compared_with_the_model_that_its_policy_started_from(tmp_path: Path) -> None:
    """Not with what another stage started from; and on the examples that were answered both times."""
    start, end = np.r_[np.zeros(40), np.ones(20)], np.r_[np.zeros(10), np.ones(40)]
    teacher = begun(tmp_path / "teacher", before=1 - start, after=1 - start)
    sft = begun(tmp_path / "sft", before=start, after=start)
    dpo = begun(tmp_path / "dpo", before=end, after=end)
    folder = make_pipeline(tmp_path / "staged", {"teacher": teacher, "sft": sft, "dpo": dpo}, seed=1)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["stages"][1]["inputs"] = {}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (change,) = changes_of([Arm("staged", {}, (read_run(folder),))])
    assert (change.before, change.after) == ((0.2,), (0.8,)), "of the fifty questions of the end, ten were known before"
    other = begun(tmp_path / "other", before=start, after=start, prompts="another")
    assert changes_of([Arm("staged", {}, (read_run(make_pipeline(tmp_path / "mixed", {"sft": other, "dpo": dpo}, seed=1)),))]) == []


def test_a_run_is_compared_with_the_model_that_the_run_before_it_started_from(tmp_path: Path) -> None:
    start, end = np.zeros(20), np.ones(20)
    folder = begun(tmp_path / "dpo", before=end, after=end, config={"method": {"name": "dpo"}, "entering": ["method=sft"]})
    begun(folder / "entering", before=start, after=start)
    (change,) = changes_of([Arm("dpo", {}, (read_run(folder),))])
    assert (change.before, change.after) == ((0.0,), (1.0,)), "whose cost is its own too"


def test_the_same_study_elsewhere_and_slower_says_the_same(tmp_path: Path) -> None:
    arms = {name: make_arm(tmp_path / "one", name, gain=gain, seeds=2, examples=40) for name, gain in (("sft", 0.0), ("dpo", 0.1))}
    make_study(tmp_path / "one", arms)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for name in ("sft-1", "dpo-2"):
        rewrite(tmp_path / "other" / name, "result.json", train_seconds=99.0, peak_memory_bytes=2**31, tokens_per_second=1.0)
    found = [reported(tmp_path / home) for home in ("one", "other")]
    measured = [each.pop("measured") for each in found]
    assert found[0] == found[1]
    assert [each["folder"] for each in measured] == [str(tmp_path / "one"), str(tmp_path / "other")]
    assert measured[0]["arms"] != measured[1]["arms"]
    pages = [(tmp_path / home / "compare" / "compare.html").read_text() for home in ("one", "other")]
    assert pages[0] != pages[1]
    bare = [re.sub("<section>.*?</section>", "", page, flags=re.S) for page in pages]
    assert bare[0] == bare[1]
    assert str(tmp_path) not in bare[0]
    assert "within 0 %: in the grey band" in bare[0], "both arms cost the same, and are drawn so"


def test_the_front() -> None:
    assert pareto([1.001, 1.0, 1.002], [0.9, 0.5, 0.7], lower=False) == [0], "a thousandth less is no less"
    assert pareto([1.0, 1.03], [0.5, 0.5], lower=False) == [0]
    assert pareto([3, 1, 2, 2], [0.9, 0.5, 0.4, 0.7], lower=False) == [1, 3, 0]
    assert pareto([3, 1, 2, 2], [0.9, 0.5, 0.4, 0.7], lower=True) == [1, 2]


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        command(Call(arguments=arguments))
    return "\n".join(map(str, caught.value.problems))


def test_what_is_wrong_with_a_study(tmp_path: Path) -> None:
    assert "no such folder" in refused(f"study={tmp_path / 'none'}")
    assert "there is no study.json in it" in refused(f"study={tmp_path}")
    assert "exclude each other" in refused(f"study={tmp_path}", f"runs={tmp_path}")
    sft, stopped = make_arm(tmp_path, "sft", gain=0.0, seeds=2), make_run(tmp_path / "stopped", seed=1, status="stopped")
    told = refused(f"study={make_study(tmp_path, {'sft': sft, 'dpo': [stopped, tmp_path / 'gone']})}")
    assert "stopped: the run is stopped" in told
    assert "gone: no such folder" in told
    told = refused(f"study={make_study(tmp_path, {'sft': []}, better='most', smallest=0, budget={'unit': 1})}")
    for key in ("better", "smallest", "budget", "arms"):
        assert f"study.json: {key} is" in told
    assert "differ in name only" in refused(f"study={make_study(tmp_path, {'one': sft[:1], 'other': sft[1:]})}")
    again = make_run(tmp_path / "again", seed=1, scores=np.zeros(200), config={"method": {"name": "sft"}})
    assert "seed 1 of sft is there more than once" in refused(f"study={make_study(tmp_path, {'sft': [*sft, again]})}")
    assert "is there 2 times" in refused(f"study={make_study(tmp_path, {'sft': [*sft, sft[0]]})}")
