"""Every mistake of the user: exit code 2, one screen, no traceback, what to do, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ONE_SCREEN = 31


def assert_user_error(outcome: Any, *expected: str) -> None:
    """Exit 2 with these words, within a screen and without a traceback; all of it on stderr."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) <= ONE_SCREEN
    assert outcome.out == ""
    for words in expected:
        assert words in outcome.err


CASES = {
    "misspelt key": (["metod=sft"], ["metod=sft: there is no key 'metod' (did you mean method?)"]),
    "misspelt option": (["model=nanno"], ["model has no option 'nanno'", "did you mean nano?"]),
    "wrong type": (["optimizer.lr=fast"], ["optimizer.lr: expected a number, got 'fast'"]),
    "boolean is no integer": (["seed=true"], ["seed: expected an integer >= 0, got True"]),
    "out of bounds": (["global_batch=0"], ["global_batch: expected an integer >= 1, got 0"]),
    "not a choice": (["precision=bf17"], ["expected one of float32, bf16, bf16_true, got 'bf17' (did you mean bf16?)"]),
    "key of another level": (["lr=1e-4"], ["did you mean optimizer.lr?"]),
    "key of a loss without keys": (["method.loss.betta=1"], ["method.loss has no keys", "method.label_smoothing"]),
    "key of a target": (["optimizer.weight_decy=0"], ["did you mean optimizer.weight_decay?"]),
    "runtime input": (["+optimizer.params=1"], ["optimizer.params: is given by the run and cannot be configured"]),
    "key of a group that is not chosen": (["model.peft.r=8"], ["model.peft is null", "posttrain list model/peft"]),
    "missing file": (["data=files", "data.train=nowhere/a.jsonl"], ["data.train: no such file: nowhere/a.jsonl", "nowhere does not exist"]),
    "no data": (["data=files"], ["one of data.train, data.sources, data.generator is needed"]),
    "devices that are not there": (["hardware=4xa100"], ["needs 4 CUDA devices", "posttrain plan hardware=4xa100", "hydra/launcher=slurm"]),
    "several machines": (["hardware=2x8xh100"], ["several machines (2) are not available yet"]),
    "sharded strategy": (["hardware=2xcpu_fsdp"], ["fsdp2 is not available yet", "hardware.strategy=ddp"]),
    "target": (["optimizer._target_=os.system"], ["os.system is not on the list", "--allow-target os"]),
    "target that does not exist": (
        ["optimizer._target_=posttrain.models.optimizers.adamv"],
        ["posttrain.models.optimizers.adamw?"],
    ),
    "module behind a module": (["optimizer._target_=posttrain.runs.job.subprocess.run"], ["there is no function or class"]),
    "loss of another kind": (["method.loss._target_=posttrain.functional.supervised.z_loss"], ["takes (lse, weight, denominator)"]),
    "no end": (["max_steps=null", "epochs=null"], ["neither max_steps nor epochs"]),
    "resume": (["resume=atuo"], ["resume: expected auto, never or an existing checkpoint, got 'atuo' (did you mean auto?)"]),
    "weights without a place": (["model=hf"], ["model.path"]),
    "interpolation": (["seed=${sead}"], ["seed: cannot be resolved"]),
    "no key=value": (["train", "seed"], ["seed: expected key=value"]),
    "unreadable": (["data.train=a[b"], ["cannot be read as key=value", "quote special characters"]),
    "several values": (["seed=1,2"], ["several values are a sweep (run them with -m"]),
    "sweep setting": (["hydra/launcher=slurm"], ["belongs to a sweep (add -m)"]),
    "unknown command": (["tarin"], ["did you mean train?"]),
    "unknown flag": (["--multi"], ["did you mean --multirun?"]),
    "flag without value": (["--config"], ["--config: needs a value"]),
    "command of a later version": (["compare", "study=x"], ["comes with studies"]),
    "config that is not there": (["--config", "no.yaml"], ["no.yaml: no such file"]),
    "config folder that is not there": (["--config-dir", "mine"], ["no such folder"]),
    "unknown group": (["list", "modle"], ["there is no such group (did you mean model?)"]),
    "quoted number": (["tracking.experiment=5"], ["expected a text, got 5", "tracking.experiment='\"5\"'"]),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_mistake(posttrain: Callable[..., Any], tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    outcome = posttrain(*arguments)
    assert_user_error(outcome, "posttrain: 1 problem, nothing was started", *expected)
    assert outcome.seconds < 4
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_at_once(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("metod=sft", "model=nanno", "optimizer.lr=fast", "seed=x", "a=[", "resume=atuo", "hardware=4xa100")
    assert_user_error(
        outcome, "7 problems", "metod=sft", "model=nanno", "optimizer.lr: expected", "seed: expected", "a=[", "resume:", "hardware.devices:"
    )


def test_more_mistakes_than_a_screen_are_counted(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain(*(f"wrong{number}=1" for number in range(50)))
    assert_user_error(outcome, "50 problems", "... and 21 more")


def test_no_remarks_about_a_group_whose_option_is_wrong(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("method=dpoo", "method.loss.beta=0.1", "model=nanno", "model.depth=3")
    assert_user_error(outcome, "2 problems", "method has no option", "model has no option")


def test_output_dir_that_is_a_file(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_user_error(posttrain("output_dir=taken"), "taken is a file, not a folder")
    assert_user_error(posttrain("output_dir=taken/below"), "taken is a file, not a folder")


GOOD_ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
BAD_DATA = {
    "broken line": (GOOD_ROW + '\n{"messages": [\n', "bad.jsonl:2: broken JSON"),
    "empty": ("", "bad.jsonl: the data set is empty"),
    "no assistant turn": ('{"messages": [{"role": "user", "content": "a"}]}\n', "bad.jsonl:1: has no assistant turn"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(posttrain: Callable[..., Any], tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    outcome = posttrain("data=files", "data.train=bad.jsonl", "tracking=none", "output_dir=run")
    assert outcome.code == 2
    assert expected in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_misspelt_data_file_names_its_neighbour(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert_user_error(posttrain("data=files", "data.train=trian.jsonl"), "did you mean train.jsonl?")


def test_config_file_is_data(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tag.yaml").write_text("a: !!python/object/apply:os.system ['touch owned']\n")
    (tmp_path / "target.yaml").write_text("tracking:\n  _target_: os.system\n  command: touch owned\n")
    (tmp_path / "deep.yaml").write_text("data:\n  sources:\n    - generator: {_target_: builtins.eval}\n")
    assert_user_error(posttrain("--config", "tag.yaml"), "is not plain YAML")
    assert_user_error(posttrain("--config", "target.yaml"), "tracking._target_: os.system is not on the list")
    assert_user_error(posttrain("--config", "deep.yaml"), "builtins.eval is not on the list")
    assert not (tmp_path / "owned").exists()


def test_every_job_of_a_sweep_is_checked_before_the_first_starts(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    outcome = posttrain("-m", "optimizer.lr=1e-3,fast", "model=nano,nanno", "seed=1,2", "tracking=none")
    assert_user_error(outcome, "2 problems", "optimizer.lr: expected a number", "model has no option 'nanno'")
    assert list(tmp_path.iterdir()) == []


def test_interval_cannot_be_swept(posttrain: Callable[..., Any]) -> None:
    assert_user_error(posttrain("-m", "optimizer.lr=interval(0,1)"), "an interval has no list of values")
