"""Folders of pipelines and of their stages: what an earlier command left there, and what a later one makes of it. Nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import posttrain
from posttrain.errors import ConfigError
from posttrain.runs import resume, rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.pipeline import identity, store
from posttrain.runs.pipeline.run import open_pipeline
from posttrain.runs.study.reuse import is_finished

LINE = ["method=staged", "model=nano", "max_steps=2", "tracking=none"]


def composed(folder: Path, *overrides: str) -> dict[str, Any]:
    return compose_and_check([*LINE, *overrides, f"output_dir={folder}", f"stages_dir={folder}/stages"], rules=rules.PLAN)


def left(folder: Path, config: dict[str, Any], status: str = "finished") -> None:
    """What a pipeline leaves, as far as folders go."""
    folder.mkdir()
    open_pipeline(config, folder)
    for name, key in (("1_sft", "a"), ("2_grpo", "b")):
        (folder / "stages" / key).mkdir(parents=True)
        store.note_begun(folder, name, folder / "stages" / key)
        store.link(folder / name, folder / "stages" / key)
    (folder / "result.json").write_text(json.dumps({"status": status}))


@pytest.mark.parametrize("change", ["max_steps=3", "precision=bf16", "stages.grpo.optimizer.lr=1e-9", "budget.flops=1e12"])
@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_study_refuses_a_pipeline_with_other_settings(tmp_path: Path, change: str, status: str) -> None:
    folder = tmp_path / "arm"
    left(folder, composed(folder), status)
    assert not is_finished(composed(folder, "checkpoint.every_steps=7"))  # it goes on
    with pytest.raises(ConfigError) as raised:
        is_finished(composed(folder, change))
    assert change.partition("=")[0].removeprefix("stages.grpo.") in raised.value.problems[-1].where
    assert not is_finished(composed(folder, change, "resume=never"))


def test_a_study_refuses_a_pipeline_with_other_shares_or_data(tmp_path: Path) -> None:
    folder, rows = tmp_path / "arm", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1", "completion": "2"}\n')
    line = ["budget.flops=1e12", "stages.sft.share=0.4", "stages.sft.data=files", f"stages.sft.data.train={rows}"]
    left(folder, composed(folder, *line))
    with pytest.raises(ConfigError, match=r"budget.shares.sft: .*0.4.*0.5"):
        is_finished(composed(folder, *line, "stages.sft.share=0.5"))
    (folder / "1_sft" / "data.json").write_text(json.dumps([{"part": "train", "origin": str(rows), "digest": "other"}]))
    with pytest.raises(ConfigError, match=r"stage sft: data.train: .* has other contents"):
        is_finished(composed(folder, *line))


def test_a_changed_pipeline_does_not_keep_the_result_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left(folder, composed(folder))
    open_pipeline(composed(folder, "checkpoint.every_steps=7"), folder)
    assert (folder / "result.json").is_file()
    open_pipeline(composed(folder, "max_steps=3"), folder)
    assert not (folder / "result.json").exists()


def test_a_lengthened_run_is_not_finished_by_its_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**compose_and_check(["model=nano", "max_steps=4"], rules=rules.PLAN), "output_dir": str(tmp_path)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished", "steps": 4, "end": resume.end_of(config)}))
    checkpoint = tmp_path / "checkpoints" / "step-4"
    monkeypatch.setattr(resume.checkpoint, "latest", lambda folder: resume.checkpoint.Checkpoint(checkpoint, 4))
    monkeypatch.setattr(resume, "_sound", lambda found: found.path)
    monkeypatch.setattr(resume, "_unfit", lambda *_: ())
    assert resume.open_folder(config, tmp_path).finished
    for _ in range(2):  # killed before its first checkpoint, and started again
        assert not resume.open_folder({**config, "max_steps": 8}, tmp_path).finished


def test_a_length_beside_a_budget_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_pipeline(composed(tmp_path, "budget.flops=1e12"), tmp_path)
    told = capsys.readouterr().out
    assert [f"stage {name}: max_steps=2 ends it there" in told for name in ("sft", "grpo")] == [True, True]


def test_a_stage_made_anew_lies_beside_the_one_that_others_read(tmp_path: Path) -> None:
    def made(command: str | None, key: str = "key") -> str:
        with store.holding(tmp_path, key, lambda: None, command) as folder:
            (folder / "config.yaml").touch()
            return folder.name

    assert [made(command) for command in (None, "one", "one", None, "two", "one", None)] == [
        "key", "key-2", "key-2", "key-2", "key-3", "key-2", "key-3",
    ]  # fmt: skip
    assert made("one", "other") == "other"
    store.begin_anew(tmp_path / "key-2")  # found damaged
    assert made("one") == "key-2"
    assert store.folder_of(tmp_path, "nothing", "one") == tmp_path / "nothing"


def test_the_runs_of_a_command_make_stages_anew_together(tmp_path: Path) -> None:
    again, other = composed(tmp_path, "resume=never"), composed(tmp_path)
    assert resume.of_command(again, "one") == {**again, "anew": "one"}
    assert resume.of_command(other, "one") == other


def test_links_of_a_pipeline_that_is_set_aside_point_to_its_stages(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left(folder, composed(folder))
    (tmp_path / "elsewhere").mkdir()
    store.link(folder / "1_sft", tmp_path / "elsewhere")
    open_pipeline(composed(folder, "resume=never"), folder)
    assert (folder / "previous-1" / "1_sft").resolve() == tmp_path / "elsewhere"


def test_a_stage_is_of_the_code_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(posttrain.__file__).parent
    for room in identity.ROOMS:
        shutil.copytree(root / room, tmp_path / "posttrain" / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "posttrain" / "runs").mkdir()
    monkeypatch.setattr(posttrain, "__file__", str(tmp_path / "posttrain" / "__init__.py"))
    stage = composed(tmp_path / "run")["stages"][0]["config"]
    folder = tmp_path / "run"
    left(folder, composed(folder))
    new = folder / "stages" / "new"

    def now(*, edited: str | None = None) -> str:
        if edited is not None:
            (tmp_path / "posttrain" / edited).write_text("# changed\n")
        identity.code_digest.cache_clear()
        return identity.stage_hash(stage, {})

    first = now()
    assert store.outdated(folder / "1_sft", new) is None
    assert now(edited="runs/plots.py") == first
    assert len({first, now(edited="rewards/principles.yaml"), now(edited="functional/advantages.py")}) == 3
    assert store.outdated(folder / "1_sft", new) == (folder / "stages" / "a").resolve()
    assert store.outdated(folder / "1_sft", folder / "stages" / "a") is None
    monkeypatch.undo()
    assert now() == first
