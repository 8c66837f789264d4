"""`posttrain eval run=DIR` without data: what the run held out, with the run's own numbers."""

import json
import shutil

import pytest

from posttrain.errors import ConfigError
from posttrain.runs import evaluate
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.runs.kept_scores import kept_scores


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out") / "run"
    overrides = [
        "evaluation=none",
        "tracking=none",
        "hardware=cpu",
        "limit=60",
        "data.generator.held_out=20",
        "global_batch=8",
        "max_steps=3",
    ]
    assert run_job(compose([*overrides, f"output_dir={folder}"])) == 0
    return folder


def test_validation_gives_the_loss_the_run_ended_with(trained):
    assert evaluate.main({"run": str(trained), "suite": "validation"}) == 0
    measured = json.loads((trained / "eval" / "validation.json").read_text())["metrics"]
    ended = json.loads((trained / "result.json").read_text())["metrics"]
    assert measured["loss"] == pytest.approx(ended["val/loss"], rel=1e-5)
    assert measured["token_accuracy"] == pytest.approx(ended["val/token_accuracy"])


def test_single_examples_are_kept_and_named_alike(trained):
    """Runs after the evaluation: its examples are those that the run held out."""
    ended = json.loads((trained / "result.json").read_text())["metrics"]
    scores = kept_scores(trained)
    assert len(scores["val/loss"].values) == 20
    for metric in ("val/loss", "val/token_accuracy"):
        assert scores[metric].mean == pytest.approx(ended[metric], rel=1e-9)
    later = scores["eval/validation/loss"]
    assert sorted(later.examples) == sorted(scores["val/loss"].examples)
    assert later.mean == pytest.approx(scores["val/loss"].mean, rel=1e-5)


def test_single_pairs_are_kept_by_loss_and_by_whether_they_are_told_apart(tmp_path):
    line = ["method=dpo", "evaluation=none", "tracking=none", "hardware=cpu", "limit=20", "global_batch=8", "max_steps=1", "max_length=128"]
    assert run_job(compose([*line, "data.generator.held_out=10", f"output_dir={tmp_path}"])) == 0
    ended, scores = json.loads((tmp_path / "result.json").read_text())["metrics"], kept_scores(tmp_path)
    for metric in ("val/loss", "val/rewards/accuracy"):
        assert scores[metric].mean == pytest.approx(ended[metric], rel=1e-6)
    assert scores["val/rewards/accuracy"].examples == scores["val/loss"].examples


def test_a_plain_folder_has_no_held_out_data(trained):
    with pytest.raises(ConfigError, match="not a run's folder"):
        evaluate.main({"run": str(trained / "artifact"), "suite": "validation"})


def test_texts_are_measured_as_texts(trained, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Once there was a fox."}\n{"text": "It was quick."}\n')
    assert evaluate.main({"run": str(trained), "suite": "validation", "data": str(tmp_path / "texts.jsonl")}) == 0
    found = json.loads((trained / "eval" / "validation.json").read_text())
    assert found["details"]["kind"] == "text"
    assert found["metrics"]["tokens"] == len("Once there was a fox.") + len("It was quick.")  # bytes, all but the first, and an end


def test_what_was_held_out_is_not_guessed_where_the_data_have_changed(tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) for n in range(40)]
    data.write_text("\n".join(rows))
    line = ["evaluation=none", "tracking=none", "hardware=cpu", "global_batch=8", "max_steps=1", f"output_dir={tmp_path / 'run'}"]
    assert run_job(compose([*line, "data=files", f"data.train={data}", "data.val_fraction=0.2"])) == 0
    assert evaluate.main({"run": str(tmp_path / "run"), "suite": "validation"}) == 0
    data.write_text("\n".join(reversed(rows)))
    with pytest.raises(ConfigError, match=r"rows\.jsonl has other contents than when the run trained"):
        evaluate.main({"run": str(tmp_path / "run"), "suite": "validation"})
    assert evaluate.main({"run": str(tmp_path / "run"), "suite": "validation", "data": str(data)}) == 0


def test_held_out_examples_are_read_with_the_artifacts_own_tokenizer(tmp_path):
    base = tmp_path / "base"
    line = ["evaluation=none", "tracking=none", "hardware=cpu", "limit=20", "data.generator.held_out=8", "global_batch=8", "max_steps=1"]
    assert run_job(compose([*line, f"output_dir={base}"])) == 0
    moved = (base / "artifact").rename(tmp_path / "start")
    assert run_job(compose([*line, "model=hf", f"model.path={moved}", f"output_dir={tmp_path / 'run'}"])) == 0
    shutil.rmtree(moved)
    assert evaluate.main({"run": str(tmp_path / "run"), "suite": "validation"}) == 0


def test_sources_that_are_read_from_one_file_are_each_compared_with_themselves(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"question": f"{n}+1?", "a": str(n + 1), "b": f"It is {n + 1}"}) for n in range(40)))
    sources = ",".join(f"{{path:{data},columns:{{answer:{name}}}}}" for name in "ab")
    line = ["data=mixed", f"data.sources=[{sources}]", "data.val_fraction=0.2", "evaluation=none", "tracking=none", "hardware=cpu"]
    assert run_job(compose([*line, "global_batch=8", "max_steps=1", f"output_dir={tmp_path / 'run'}"])) == 0
    assert evaluate.main({"run": str(tmp_path / "run"), "suite": "validation"}) == 0
