"""Every mistake of the user: exit code 2, one screen, no traceback, what to do, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.runs.rules import data_files_exist

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
    "boolean is no integer": (["seed=true"], ["seed: expected an integer >= 0 < 4294967296, got True"]),
    "out of bounds": (["global_batch=0"], ["global_batch: expected an integer >= 1, got 0"]),
    "not a choice": (["precision=bf17"], ["expected one of float32, bf16, bf16_true, got 'bf17' (did you mean bf16?)"]),
    "key of another level": (["lr=1e-4"], ["did you mean optimizer.lr?"]),
    "key of a loss without keys": (["method.loss.betta=1"], ["method.loss has no keys", "method.label_smoothing"]),
    "key of a target": (["optimizer.weight_decy=0"], ["did you mean optimizer.weight_decay?"]),
    "runtime input": (["+optimizer.params=1"], ["optimizer.params: is given by the run and cannot be configured"]),
    "key of a group that is not chosen": (["model.peft.r=8"], ["model.peft is null", "posttrain list model/peft"]),
    "a term that is no loss": (
        ["method=dpo", "method.loss=weighted", "method.loss.terms={sigmod:0.8}"],
        ["method.loss.terms.sigmod: there is no such pair loss (did you mean method.loss.terms.sigmoid?)"],
    ),
    "no terms": (["method=dpo", "method.loss=weighted", "method.loss.terms={}"], ["method.loss.terms: a weighted loss needs its losses"]),
    "an option of a term out of range": (
        ["method=dpo", "method.loss=weighted", "method.loss.terms={discopop:{tau:0}}"],
        ["method.loss.terms.discopop.tau: expected a number > 0, got 0"],
    ),
    "an option of a term of another type": (
        ["method=dpo", "method.loss=weighted", "method.loss.terms={sigmoid:{label_smoothing:a}}"],
        ["method.loss.terms.sigmoid.label_smoothing: expected a number, got 'a'"],
    ),
    "an option that a term has not": (
        ["method=dpo", "method.loss=weighted", "method.loss.terms={hinge:{tau:1}}"],
        ["method.loss.terms.hinge.tau: unknown key"],
    ),
    "a weight below zero": (
        ["method=dpo", "method.loss=weighted", "method.loss.terms={bco:{weight:-1}}"],
        ["method.loss.terms.bco.weight: expected a number >= 0, got -1"],
    ),
    "missing file": (["data=files", "data.train=nowhere/a.jsonl"], ["data.train: no such file: nowhere/a.jsonl", "nowhere does not exist"]),
    "no data": (["data=files"], ["one of data.train, data.sources, data.generator is needed"]),
    "whole answers in rows that are cut": (
        ["hardware=2xcpu", "hardware.context_parallel=2", "method=dpo"],
        ["hardware.context_parallel: method=dpo looks at whole answers", "method=sft"],
    ),
    "devices that are not there": (["hardware=4xa100"], ["needs 4 CUDA devices", "posttrain plan hardware=4xa100", "hydra/launcher=slurm"]),
    "several machines": (["hardware=2x8xh100"], ["several machines (2) need a cluster"]),
    "rows and layers cut": (
        ["hardware=2xcpu_fsdp", "hardware.context_parallel=2", "hardware.tensor_parallel=2"],
        ["not known to be cut right at the same time"],
    ),
    "a reference that moves in factors": (
        ["method=dpo", "model/peft=lora", "method.reference_update_every=2"],
        ["method.reference_update_mix: 0.6 would mix the adapters' factors", "method.reference_update_mix=1"],
    ),
    "adapters on nothing": (["model/peft=lora", "model.peft.targets=[]"], ["model.peft.targets: nothing would have adapters"]),
    "quantised and sharded": (["hardware=2xcpu_fsdp", "model/peft=qlora"], ["nf4 are packed", "hardware.strategy=ddp"]),
    "8-bit moments and sharded": (["hardware=2xcpu_fsdp", "optimizer=adamw_8bit"], ["in blocks of whole weights", "optimizer=adamw"]),
    "offload without shards": (["hardware=2xcpu", "hardware.offload=true"], ["does not say that there are any", "fsdp2"]),
    "offload on the CPU": (["hardware=2xcpu_fsdp", "hardware.offload=true"], ["lie in host memory already"]),
    "sharded over one device": (["hardware=cpu", "hardware.strategy=fsdp2"], ["shards over several devices"]),
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
    "not finite": (["optimizer.lr=nan"], ["optimizer.lr: expected a finite number, got nan"]),
    "not finite in a list": (["optimizer.betas=[0.9,inf]"], ["optimizer.betas: expected a finite number"]),
    "a seed no generator takes": (["seed=99999999999999999999"], ["seed: expected an integer >= 0 < 4294967296"]),
    "a list for a group": (["log=[]"], ["log is a group of keys, not a list"]),
    "a sweep over nothing": (["-m", "model=glob(zz*)"], ["model=glob(zz*): no value matches", "posttrain list model"]),
    "home of nobody": (['output_dir="~nobody_at_all/x"'], ["output_dir: there is no user nobody_at_all"]),
    "a name that is too long": (["output_dir=" + "a" * 300], ["output_dir: a name in the path is longer than 255 bytes"]),
    "no pattern": (["data=files", "data.train=a**b.jsonl"], ["data.train: a**b.jsonl: is no pattern"]),
    "no key=value": (["train", "seed"], ["seed: expected key=value"]),
    "unreadable": (["data.train=a[b"], ["cannot be read as key=value", "quote special characters"]),
    "several values": (["seed=1,2"], ["several values are a sweep (run them with -m"]),
    "sweep setting": (["hydra/launcher=slurm"], ["belongs to a sweep (add -m)"]),
    "unknown command": (["tarin"], ["did you mean train?"]),
    "unknown flag": (["--multi"], ["did you mean --multirun?"]),
    "flag without value": (["--config"], ["--config: needs a value"]),
    "command of a later version": (["serve", "run=x"], ["comes with serving"]),
    "config that is not there": (["--config", "no.yaml"], ["no.yaml: no such file"]),
    "config folder that is not there": (["--config-dir", "mine"], ["no such folder"]),
    "unknown group": (["list", "modle"], ["there is no such group (did you mean model?)"]),
    "quoted number": (["tracking.experiment=5"], ["expected a text, got 5", "tracking.experiment='\"5\"'"]),
}


SEVERAL = {
    "adapters that train nothing": (
        ["model/peft=qlora_int8", "model.peft.r=0", "model.peft.alpha=0", "model.peft.dropout=-0.5", "model.peft.outlier_threshold=-3"],
        [
            "model.peft.r: expected a number at least 1, got 0",
            "model.peft.alpha: expected a number above 0",
            "model.peft.dropout: expected a number at least 0 and below 1, got -0.5",
            "model.peft.outlier_threshold: expected a number at least 0",
        ],
    ),
    "keys of a quantisation that is not there": (
        ["model/peft=qlora_int8", "model.peft.compute_dtype=float32", "model.peft.double_quantise=false"],
        ["model.peft.compute_dtype: has no effect with quantise=int8: it belongs to nf4", "model.peft.double_quantise"],
    ),
    "adapters on what is no matrix": (
        ["model/peft=lora", "model.peft.targets=[mlp,norm,q_proj]", "model.peft.modules_to_save=[self_attn]"],
        [
            "'mlp' (Qwen3MLP) cannot have adapters: it has no matrix of its own (name what is inside: down_proj, gate_proj, up_proj)",
            "'norm' (Qwen3RMSNorm) cannot have adapters",
            "'q_proj' is also trained in full, by modules_to_save",
        ],
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_mistake(posttrain: Callable[..., Any], tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    outcome = posttrain(*arguments)
    assert_user_error(outcome, "posttrain: 1 problem, nothing was started", *expected)
    assert outcome.seconds < 10  # a second on idle cores; what is not imported for it is test_speed's to tell
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "expected"), SEVERAL.values(), ids=SEVERAL)
def test_mistakes_that_are_told_together(posttrain: Callable[..., Any], arguments: list[str], expected: list[str]) -> None:
    assert_user_error(posttrain(*arguments), f"posttrain: {len(expected)} problems, nothing was started", *expected)


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


def test_patterns_are_matched_as_the_data_code_matches_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    for name in ("one/a.jsonl", "one/deep/a.jsonl", "b[1].jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    good = ["*/a.jsonl", "**/a.jsonl", str(tmp_path / "*" / "a.jsonl"), str(tmp_path / "**" / "a.jsonl"), "b[1].jsonl"]
    assert list(data_files_exist({"data": {"train": good, "sources": [{"path": good}]}})) == []
    bad = {"train": "*/b.jsonl", "val": "./empty", "sources": [{"path": ["c.jsonl"]}]}
    assert [problem.where for problem in data_files_exist({"data": bad})] == ["data.train", "data.val", "data.sources[0].path"]


def test_config_that_contains_itself(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("a: &a [*a, *a]\n")
    assert_user_error(posttrain("--config", "loop.yaml"), "loop.yaml: is nested too deeply, or contains itself")


def test_output_dir_that_holds_the_config_of_something_else(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for content in ("a: [b", "- 1\n"):
        (tmp_path / "out" / "config.yaml").write_text(content)
        assert_user_error(posttrain("output_dir=out"), "config.yaml is not the configuration of a run", "resume=never")


def test_numbers_out_of_range_are_all_named(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("optimizer.lr=-1", "optimizer.betas=[0.9,2]", "scheduler.warmup=-1", "method.label_smoothing=1")
    assert_user_error(outcome, "4 problems", "optimizer.lr: expected a number >= 0, got -1", "optimizer.betas: expected a list of")
    assert_user_error(outcome, "scheduler.warmup: expected a number >= 0", "method.label_smoothing: expected a number >= 0 < 1")


def test_paths_that_cannot_be_are_missing(posttrain: Callable[..., Any]) -> None:
    nobody = "~nobody_at_all/x.jsonl"
    outcome = posttrain("data=files", f'data.train="{nobody}"', "resume=" + "a" * 300, f'model.path="{nobody}"')
    assert_user_error(outcome, "3 problems", "data.train: no such file", "resume: expected auto", "model.path: no such file")
