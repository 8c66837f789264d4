"""Suites that judge a model's answers: a trained reward model, and a judge of pairs; by `posttrain eval` and at a run's end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Qwen3ForCausalLM

from posttrain.errors import ConfigError, UserError
from posttrain.evaluation.suites.judged import judged
from posttrain.models import hub
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.heads import make
from posttrain.models.loading import seeded
from posttrain.models.reward_artifact import save_reward_artifact
from posttrain.rewards.backends.base import Backend, Question, Silence
from posttrain.rewards.scorers import load_reward_model
from posttrain.runs import rules
from posttrain.runs.against import opponent, opponent_folder, weights_of
from posttrain.runs.check import compose_and_check
from posttrain.runs.comparison.read import read_run
from posttrain.runs.evaluate import main
from posttrain.runs.job import run_job
from posttrain.runs.kept_scores import kept_scores
from posttrain.runs.pipeline.outcome import Ended
from posttrain.runs.pipeline.wanted import place_of, wanted
from posttrain.runs.start import start_of, starting_model
from posttrain.runs.study.arms import is_measured, unmeasured
from posttrain.runs.study.reuse import is_finished
from posttrain.runs.study.spec import Study

RECORD = ArtifactRecord(method="sft", parent=None, data={}, config_hash="x", metrics={}, versions={})
QUICK = {"max_new_tokens": 12}


class Says(Backend):
    """A judge that says what it is told to: of the answers in the order in which they are shown."""

    def __init__(self, verdict: Any) -> None:
        self.verdict = verdict

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        return [self.verdict(question) for question in questions]


@pytest.fixture(scope="module")
def judge_of_answers(other: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's artifact."""
    with seeded(3):
        head = make("scalar", 48, (), {})
    return save_reward_artifact(
        Qwen3ForCausalLM.from_pretrained(other), head, tokenizer, tmp_path_factory.mktemp("rm") / "a", record=RECORD
    )


@pytest.fixture
def questions(tmp_path: Path, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The questions that the trained model knows."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    rows = [{"question": q, "answer": f"{known[q]}\n#### {known[q][6]}"} for q in known]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "questions.jsonl"


def test_who_knows_the_answers_wins(run_dir: Path, other: Path, questions: Path) -> None:
    asked = {"run": str(run_dir), "suite": "judge", "data": str(questions), **QUICK}
    assert main({**asked, "against": str(other), "backend.prefer": "contains", "backend.text": "It is"}) == 0
    report = json.loads((run_dir / "eval" / "judge.json").read_text())
    found = report["metrics"]
    assert (found["win_rate"], found["wins"], found["n"], found["unscored"]) == (1.0, 1.0, 2.0, 0.0)
    assert (found["consistent"], found["first"]) == (1.0, 0.5)
    assert report["settings"]["backend"]["prefer"] == "contains"
    assert report["measured_as"]["against"] == {"model": str(other), "weights": weights_of(other)}
    rows = [json.loads(line) for line in (run_dir / "eval" / "judge.samples.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["verdict"]) for row in rows] == [("It is 4.", "win"), ("It is 8.", "win")]
    assert kept_scores(run_dir)["eval/judge/win_rate"].values.tolist() == [1.0, 1.0]
    assert main({**asked, "against": str(run_dir)}) == 0
    assert json.loads((run_dir / "eval" / "judge.json").read_text())["metrics"]["ties"] == 1.0, "against itself"
    with pytest.raises(ConfigError, match=r"backend\.url: is missing") as wrong:
        main({**asked, "against": str(other), "backend": "openai"})
    assert len(wrong.value.problems) == 2
    for key, message in (("against", "against=/no: no such folder"), ("backend", "did you mean local"), ("backend.prefr", "prefer")):
        with pytest.raises(ConfigError, match=message):
            main({**asked, "against": str(other), key: {"against": "/no", "backend": "locl"}.get(key, "x")})


def test_positions_and_silence(trained_model: Any, tokenizer: Any, other: Path, questions: Path) -> None:
    def measured(verdict: Any) -> dict[str, float]:
        return dict(judged(trained_model, tokenizer, data=str(questions), backend=Says(verdict), against=str(other), **QUICK).metrics)

    first = measured(lambda question: question.verdicts[0])
    assert (first["win_rate"], first["ties"], first["consistent"], first["first"]) == (0.5, 1.0, 0.0, 1.0), "it likes what comes first"
    silent = measured(lambda q: Silence("away: 503") if "2+2" in q.messages[0]["content"] else q.verdicts[2])
    assert (silent["n"], silent["unscored"], silent["win_rate"]) == (1.0, 1.0, 0.5), "a pair without a verdict is counted and left out"
    mute = judged(trained_model, tokenizer, data=str(questions), backend=Says(lambda _: "hm"), against=str(other), **QUICK)
    assert (mute.metrics["unscored"], mute.scores, mute.details["reasons"]) == (2.0, {}, {"no verdict": 2})


def test_a_reward_model_scores_the_answers(run_dir: Path, judge_of_answers: Path, questions: Path, known: dict[str, str]) -> None:
    asked = {"run": str(run_dir), "suite": "reward_model", "data": str(questions), **QUICK}
    assert main({**asked, "reward.path": str(judge_of_answers)}) == 0
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in known.items()]
    expected = load_reward_model(judge_of_answers)(chats).tolist()
    kept = kept_scores(run_dir)["eval/reward_model/reward"]
    assert kept.values.tolist() == pytest.approx(expected, rel=1e-5)
    assert json.loads((run_dir / "eval" / "reward_model.json").read_text())["metrics"]["reward"] == pytest.approx(kept.mean)
    with pytest.raises(ConfigError, match=r"reward\.path: is missing"):
        main(asked)
    with pytest.raises(UserError, match="there is no folder /no"):
        main({**asked, "reward.path": "/no"})


def test_suites_at_the_end_of_a_run(run_dir: Path, judge_of_answers: Path, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = [
        "method=grpo", "model=hf", f"model.path={run_dir}/artifact", "data=files", f"data.train={questions}", f"data.val={questions}",
        "reward=[exact_match]", "rollout.max_new_tokens=12", "rollout.group_size=2", "global_batch=2", "max_steps=1", "max_length=64",
        "evaluation=none", "evaluation/suite=[sampled,validation,judge,reward_model]", "evaluation.suite.sampled.samples=2",
        f"evaluation.suite.reward_model.reward.path={judge_of_answers}", "hardware=cpu", "tracking=none", "optimizer.lr=0",
        *(f"evaluation.suite.{name}.max_new_tokens=12" for name in ("sampled", "judge", "reward_model")), f"output_dir={folder}",
    ]  # fmt: skip
    config = compose_and_check(line)
    assert run_job(config) == 0
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["eval/sampled/greedy"] == 1.0
    assert metrics["eval/validation/perplexity"] > 1.0
    assert metrics["eval/judge/win_rate"] == 0.5, "against the model that it started from, which it still is"
    assert json.loads((folder / "eval" / "judge.json").read_text())["measured_as"]["against"]["weights"] == weights_of(run_dir / "artifact")
    run = read_run(folder)
    for name in ("eval/sampled/maj_at_2", "eval/validation/loss", "eval/judge/win_rate", "eval/reward_model/reward"):
        assert is_measured(name, config)
        assert run.scores[name].mean == pytest.approx(run.metrics[name])
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval/judge/win_rate"] == 0.5
    asked_more = compose_and_check([*line, "evaluation.suite.judge.limit=1", "evaluation.suite.sampled.samples=1"])
    (folder / "eval" / "validation.json").unlink()
    before = (folder / "artifact" / "artifact.json").read_bytes()
    assert not is_finished(asked_more)
    assert run_job(asked_more) == 0
    assert is_finished(asked_more), "measured by what was lacking or asked for otherwise, and not trained again"
    later = read_run(folder)
    assert later.metrics["eval/judge/n"] == 1.0
    assert "eval/sampled/maj_at_1" in later.metrics
    assert not later.metrics.keys() & {"eval/sampled/maj_at_2", "eval/sampled/pass_at_2"}, "which are asked for no longer"
    assert (folder / "artifact" / "artifact.json").read_bytes() == before
    study = Study("s", {"a": ()}, (1,), metric="eval/sampled/pass_at_16")
    assert [problem.where for problem in unmeasured(study, {"a": config})] == ["study.metric"]


STAGED = ["method=staged_dpo", "hardware=cpu", "evaluation/suite=[judge]"]


def pipeline_in(folder: Path, line: list[str]) -> list[Path]:
    """A pipeline's folder and its stages', with what their configs say."""
    config = compose_and_check([*STAGED, *line], rules=rules.PLAN)
    places = [folder, *(folder / place_of(config["stages"], number) for number in range(2))]
    for place, content in zip(places, [config, *(node["config"] for node in config["stages"])], strict=True):
        place.mkdir()
        (place / "config.yaml").write_text(yaml.safe_dump(content))
    return places


def test_all_stages_are_judged_against_what_the_pipeline_starts_from(run_dir: Path, other: Path, tmp_path: Path) -> None:
    line = ["model=hf", f"model.path={run_dir}/artifact"]
    config = compose_and_check([*STAGED, *line, f"output_dir={tmp_path}"], rules=rules.PLAN)
    first = Ended("sft", tmp_path / "1_sft", other, "abc", False, "finished", config["stages"][0]["config"], {})
    sft, dpo = wanted(config, tmp_path, []), wanted(config, tmp_path, [first])
    complete = dpo.complete(tmp_path, {})
    assert complete["model"]["path"] == f"{other}/artifact", "it starts from the stage before it"
    assert complete["evaluation"]["suite"]["judge"]["against"] == f"{run_dir}/artifact"
    assert sft.config["evaluation"]["suite"]["judge"]["against"] == "start", "which is the same model"
    for place in pipeline_in(tmp_path / "later", line):
        assert start_of(place) == f"{run_dir}/artifact"


def test_a_run_that_enters_from_another_is_judged_against_what_that_one_started_from(run_dir: Path) -> None:
    first = f"entering=['method=sft','model=hf','model.path={run_dir}/artifact']"
    config = compose_and_check(["method=dpo", "model=nano", first, "evaluation/suite=[judge]", "hardware=cpu"], rules=rules.PLAN)
    assert starting_model(config) == f"{run_dir}/artifact"


def test_a_model_of_the_hub_is_an_opponent_too(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    config = {"entering": None, "model": {"path": "owner/name", "weights": "pretrained", "revision": "v1"}}
    assert starting_model(config) == "hf://owner/name@v1"
    asked = []
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append((name, options["revision"])) or str(other))
    assert opponent_folder("hf://owner/name@v1") == other
    assert asked == [("owner/name", "v1")]
    assert opponent("hf://owner/name@v1", other) == {"model": "hf://owner/name@v1", "weights": weights_of(other)}


def test_an_adapter_is_another_model_on_another_base(tmp_path: Path, run_dir: Path, other: Path) -> None:
    found = []
    for base in (run_dir / "artifact", other):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "revision": None}))
        found.append(weights_of(tmp_path))
    assert len({*found, weights_of(other)}) == 3


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (["evaluation/suite=[judge]", "method=staged_dpo"], "stage dpo: evaluation.suite.judge.against"),
        (["evaluation/suite=[judge]", "method=dpo", "entering=['experiment=quickstart']"], "evaluation.suite.judge.against"),
        (["evaluation/suite=[judge]"], "evaluation.suite.judge.against"),  # random weights are no opponent
        (["evaluation/suite=[choice]"], "evaluation.suite.choice.data"),
        (["evaluation/suite=[sampled]", "method=reward_model"], "evaluation.suite.sampled"),
        (["evaluation/suite=[sampled]", "evaluation.suite.sampled.temperature=0"], "evaluation.suite.sampled.temperature"),
        (["evaluation/suite=[sampled]", "evaluation.suite.judge.limit=3"], "evaluation.suite.judge.limit"),
        (["evaluation/suite=[reward_model]", "evaluation.suite.reward_model.reward.path=/no"], "evaluation.suite.reward_model.reward.path"),
    ],
)
def test_suites_that_cannot_run_are_refused_before_training(line: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        compose_and_check(["model=nano", "hardware=cpu", *line])
    assert [problem.where for problem in wrong.value.problems] == [where]
