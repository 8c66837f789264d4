"""`posttrain eval`: from arguments to files and the MLflow record."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError, MissingExtra
from posttrain.evaluation.suites import registry
from posttrain.evaluation.suites.registry import GROUP, find_suite
from posttrain.runs.arguments import parameters_of
from posttrain.runs.evaluate import main, read_arguments, stderr_of
from posttrain.runs.kept_scores import kept_scores
from posttrain.runs.options import config_dir, options
from posttrain.runs.tracking.journal import Journal, State

SUITES = [option.name for option in options((config_dir(),), GROUP)]


@pytest.fixture
def questions(tmp_path: Path, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GSM8K-like file with the questions the trained model knows; it gets the second one wrong."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": question, "answer": f"{known[question]}\n#### {answer}"} for question, answer in zip(known, ("4", "9"), strict=True)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_exact_match_on_a_local_file(run_dir: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"run": str(run_dir), "data": str(questions), "max_new_tokens": 20}) == 0
    report = json.loads((run_dir / "eval" / "exact_match.json").read_text())
    assert report["metrics"] == {"exact_match": 0.5, "exact_match_stderr": math.sqrt(0.125), "n": 2.0, "answered": 1.0}
    assert report["settings"]["max_new_tokens"] == 20
    rows = [json.loads(line) for line in (run_dir / "eval" / "exact_match.samples.jsonl").read_text().splitlines()]
    assert [(row["extracted"], row["expected"], row["correct"]) for row in rows] == [("4", "4", True), ("8", "9", False)]
    assert kept_scores(run_dir)["eval/exact_match/exact_match"].values.tolist() == [1.0, 0.0]
    shown = capsys.readouterr().out
    assert "exact_match" in shown
    assert "0.5 +- 0.35" in shown


def test_validation_on_a_local_file(run_dir: Path, questions: Path) -> None:
    questions.write_text('{"question": "2+2?", "answer": "It is 4."}\n{"question": "3+5?", "answer": "It is 8."}\n')
    assert main({"run": str(run_dir), "suite": "validation", "data": str(questions)}) == 0
    report = json.loads((run_dir / "eval" / "validation.json").read_text())
    assert report["metrics"]["loss"] < 0.1
    assert report["metrics"]["token_accuracy"] == 1.0
    assert report["metrics"]["perplexity"] == pytest.approx(math.exp(report["metrics"]["loss"]))
    rows = [json.loads(line) for line in (run_dir / "eval" / "validation.samples.jsonl").read_text().splitlines()]
    weighted = sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert report["metrics"]["loss"] == pytest.approx(weighted)
    assert kept_scores(run_dir)["eval/validation/loss"].mean == pytest.approx(weighted)


def test_validation_of_plain_text(run_dir: Path, questions: Path) -> None:
    text = questions.with_name("words.txt")
    text.write_text("to be or not to be " * 40)
    assert main({"run": str(run_dir), "suite": "validation", "data": str(text), "max_length": 100}) == 0
    report = json.loads((run_dir / "eval" / "validation.json").read_text())
    assert report["details"]["kind"] == "text"
    assert report["metrics"]["tokens"] == len(text.read_bytes())  # every byte but the first, and the end of the text


def test_no_checkable_answer(run_dir: Path, questions: Path) -> None:
    questions.write_text('{"prompt": "2+2?", "completion": "four"}\n')
    with pytest.raises(DataError, match="no row has a checkable answer"):
        main({"run": str(run_dir), "data": str(questions)})


def test_results_reach_the_mlflow_run(run_dir: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("x", artifact_location=(tmp_path / "files").as_uri()))
    journal = Journal(run_dir)
    record(journal, uri, run.info.run_id)
    (run_dir / "result.json").write_text('{"steps": 60}')
    try:
        assert main({"run": str(run_dir), "data": str(questions), "max_new_tokens": 20}) == 0
        assert client.get_run(run.info.run_id).data.metrics["eval/exact_match/exact_match"] == 0.5
        assert client.get_metric_history(run.info.run_id, "eval/exact_match/n")[0].step == 60
        assert {file.path for file in client.list_artifacts(run.info.run_id, "eval")} == {
            "eval/exact_match.json",
            "eval/exact_match.samples.jsonl",
            "eval/exact_match.examples.parquet",
        }
        assert run.info.run_id in capsys.readouterr().out
        record(journal, "http://127.0.0.1:9", run.info.run_id)
        assert main({"run": str(run_dir), "data": str(questions), "max_new_tokens": 20}) == 0, "a store that is away costs nothing"
    finally:
        shutil.rmtree(journal.folder)
        (run_dir / "result.json").unlink()


def record(journal: Journal, uri: str, run_id: str) -> None:
    """What tracking leaves behind when a run was recorded in a store."""
    journal.append({"event": "start", "uri": uri, "experiment": "x", "run_key": "k"})
    journal.save(State(uri=uri, experiment="x", run_key="k", run_id=run_id))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "suite: is needed"),
        ({"suite": "quik"}, "did you mean quick"),
        ({"suite": "quick", "limt": "3"}, "did you mean limit"),
        ({"suite": "quick", "data": "x"}, "no argument data"),
        ({"suite": "quick", "limit": "many"}, "expected an integer or null"),
        ({"suite": "harness"}, "tasks: is needed"),
        ({"suite": "validation"}, "data: is needed"),
        ({"suite": "validation", "data": "/no/such/file.jsonl"}, "no such file"),
    ],
)
def test_wrong_arguments(run_dir: Path, args: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        main({"run": str(run_dir), **args})


def test_a_missing_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"posttrain\[eval\]"):
        find_suite("quick")


def test_texts_become_values() -> None:
    suite, settings = read_arguments({"run": "x", "suite": "harness", "tasks": "gsm8k", "limit": "8", "num_fewshot": "null"})
    assert suite.target == "posttrain.evaluation.suites.harness.harness"
    assert settings == {"run": "x", "tasks": ["gsm8k"], "limit": 8, "num_fewshot": None}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_file_fits_its_function(name: str) -> None:
    suite = find_suite(name)
    needed = {"data": "x"} if "data" in parameters_of(suite.target) else {"tasks": ["x"]}
    module, _, function = suite.target.rpartition(".")
    real = inspect.signature(getattr(__import__(module, fromlist=[function]), function))
    assert set(suite.settings) <= {p.name for p in real.parameters.values() if p.kind is p.KEYWORD_ONLY}
    real.bind(None, None, **{**needed, **suite.settings})


@pytest.mark.slow
def test_harness_suites_name_tasks_that_exist() -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    from posttrain.evaluation.suites.harness import task_manager

    known = set(task_manager([], None).all_tasks)
    assert {task for name in SUITES for task in find_suite(name).settings.get("tasks", ())} <= known


def test_stderr_names() -> None:
    assert stderr_of("gsm8k/exact_match/strict-match") == "gsm8k/exact_match_stderr/strict-match"
    assert stderr_of("arc/acc") == "arc/acc_stderr"
    assert stderr_of("exact_match") == "exact_match_stderr"


def test_wrong_arguments_import_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from posttrain.errors import UserError
from posttrain.runs import chat, evaluate, export
for main, args in ((evaluate.main, {{"suite": "quick"}}), (export.main, {{"to": "x"}}), (chat.main, {{}})):
    try:
        main({{"run": {str(tmp_path)!r}, **args}})
    except UserError:
        pass
    else:
        sys.exit("an empty folder was accepted")
heavy = {{"torch", "transformers", "lightning", "mlflow", "datasets"}} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
