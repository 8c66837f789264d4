"""Overrides become one plain configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.data.settings import KEYS
from posttrain.errors import ConfigError
from posttrain.runs import machine, options
from posttrain.runs.base_config import load_config
from posttrain.runs.check import check, compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.rules import PLAN
from posttrain.runs.schema import Data
from posttrain.runs.signatures import read_signature
from posttrain.runs.slurm.live import Live
from posttrain.runs.sweep_jobs import Job
from posttrain.runs.sweep_recording import recorded

BUILTIN = options.search_path()
EXPERIMENTS = [option.name for option in options.options(BUILTIN, "experiment")]
SHAPES = ("auto", "cpu", "2xcpu", "2xcpu_fsdp", "2xcpu_zero3", "1xh200", "8xh100", "2x8xh100")
CHOICES = [
    (group, option.name)
    for group in (
        "hardware",
        "model",
        "model/peft",
        "optimizer",
        "scheduler",
        "data",
        "evaluation",
        "tracking",
        "method",
        "method/loss",
        "method/head",
    )
    for option in options.options(BUILTIN, group)
]
NEEDS_A_PATH = {"data": "files", "model": "hf"}


def where(overrides: list[str], **keywords: Any) -> set[str]:
    """Keys and overrides that a composition complains about."""
    with pytest.raises(ConfigError) as caught:
        compose_and_check(overrides, **keywords)
    return {problem.where for problem in caught.value.problems}


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    """The hardware of every kind of machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "usable_gpus", lambda: 64)
        return {name: compose([f"hardware={name}"])["hardware"] for name in SHAPES}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_checks(experiment: str) -> None:
    found = {problem.where for problem in check(compose([f"experiment={experiment}", "hardware=cpu"]), rules=PLAN)}
    assert found <= {"data.train", "data.val"}  # files of the user


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_checks_on_every_kind_of_hardware(
    experiment: str, shapes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_gpus", lambda: 64)
    first = SHAPES[EXPERIMENTS.index(experiment) % len(SHAPES)]
    composed = compose_and_check([f"experiment={experiment}", f"hardware={first}"], rules=PLAN)
    for name, hardware in shapes.items():
        whole = name == first or composed["stages"] is not None  # stages have hardware of their own
        config = compose([f"experiment={experiment}", f"hardware={name}"]) if whole else {**composed, "hardware": hardware}
        assert config["hardware"] == hardware
        allowed = {"data.train", "data.val"}  # files of the user
        if hardware["nodes"] > 1:  # a cluster's to start; a run that is made first has one machine
            allowed |= {"hardware.nodes", "entering"}
        if hardware["strategy"] in ("fsdp2", "zero2", "zero3"):  # quantised bases and 8-bit moments are not cut
            allowed |= {"hardware.strategy"}
        assert {problem.where for problem in check(config)} <= allowed


METHODS = {
    ("logps", "weight", "denominator"): "method=sft",
    ("pairs",): "method=dpo",
    ("answers",): "method=kto",
    ("chosen", "rejected", "gap"): "method=reward_model",
    ("judged", "score"): "method=rating_model",
    ("tokens",): "method=grpo",
}


def taken_by(option: str) -> list[str]:
    """The method that a loss option is for, by the inputs of its function."""
    (file,) = (found.path for found in options.options(BUILTIN, "method/loss") if found.name == option)
    node = yaml.safe_load(file.read_text())
    signature = read_signature(node["_target_"])
    assert signature is not None
    return [METHODS[signature.positional]]


@pytest.mark.parametrize(("group", "option"), CHOICES, ids=["=".join(choice) for choice in CHOICES])
def test_every_option_composes_and_checks(group: str, option: str) -> None:
    path = {"data": ["data.train=x.jsonl"], "model": ["model.path=some/model"]}.get(group, []) if NEEDS_A_PATH.get(group) == option else []
    method = taken_by(option) if group == "method/loss" else ["method=reward_model"] if group == "method/head" else []
    terms = ["method.loss.terms={sigmoid:0.8,bco:0.2}"] if option == "weighted" else []
    config = compose_and_check([*method, f"{group}={option}", *path, *terms], rules=PLAN)
    assert yaml.safe_load(yaml.safe_dump(config)) == config


@pytest.mark.parametrize("group", options.groups(BUILTIN))
def test_every_option_has_a_description(group: str) -> None:
    for option in options.options(BUILTIN, group):
        assert option.description, option.path


def test_several_machines_are_refused_here_but_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_gpus", lambda: 64)
    assert where(["hardware=2x8xh100"]) == {"hardware.nodes"}
    assert compose_and_check(["hardware=2x8xh100"], rules=PLAN)["hardware"]["nodes"] == 2


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["method=sft"], set()),
        (["method=pretrain", "hardware=2xcpu_fsdp"], set()),
        (["hardware=cpu"], {"hardware.context_parallel"}),
        (["hardware=2xcpu_zero2"], {"hardware.context_parallel"}),
        (["method=grpo"], {"hardware.context_parallel"}),
        (["method.neftune_alpha=5"], {"method.neftune_alpha"}),
        (["model.layout=packed", "model.attention=sdpa"], {"model.layout", "model.attention"}),
        (["model.attention=sdpa", "hardware.context_method=ulysses"], set()),
        (["hardware.context_parallel=1", "hardware.context_method=ulysses"], {"hardware.context_method"}),
        (["hardware.context_method=torch"], {"hardware.context_method"}),  # on a CPU
        (["hardware=8xh100", "hardware.context_method=torch", "model.attention=flex"], set()),
        (["hardware=8xh100", "hardware.context_method=torch", "model.attention=varlen"], {"model.attention"}),
    ],
)
def test_rows_are_cut_only_where_it_is_exact(given: list[str], wrong: set[str]) -> None:
    base = ["hardware=2xcpu", "hardware.context_parallel=2"]
    swapped = [word for word in base if not (word.startswith("hardware=") and any(one.startswith("hardware=") for one in given))]
    assert {problem.where for problem in check(compose([*swapped, *given]), rules=PLAN)} == wrong


def test_schema_of_data_is_what_the_data_code_reads() -> None:
    assert set(Data.model_fields) == set(KEYS)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_gpus", lambda: 4)
    assert compose_and_check(["hardware=4xa100"])["precision"] == "bf16"
    assert where(["hardware=8xa100"]) == {"hardware.devices"}


def test_auto_hardware_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_count", lambda: 2)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
    config = compose([])
    assert (config["hardware"]["accelerator"], config["hardware"]["devices"], config["hardware"]["backend"]) == ("cuda", 1, "nccl")
    assert config["precision"] == "bf16"
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: False)
    assert compose([])["hardware"]["accelerator"] == "cpu"


def test_gpu_count_respects_visibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpu_count(tmp_path) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.gpu_count(tmp_path) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu_count(tmp_path) == 0


@pytest.mark.parametrize("override", ["model/peft=lora", "model.peft=lora", "+model/peft=lora", "+model.peft=lora"])
def test_group_choice_in_every_form(override: str) -> None:
    assert compose([override])["model"]["peft"]["kind"] == "lora"


def test_nested_choices() -> None:
    assert compose(["method.loss=dft"])["method"]["loss"]["_target_"].endswith(".dft")
    assert compose(["method=pretrain", "method/loss=dft"])["method"]["loss"]["_target_"].endswith(".dft")
    assert compose(["model.peft=lora", "model.peft=null"])["model"]["peft"] is None
    assert compose(["model.peft=lora", "model.peft.r=4"])["model"]["peft"]["r"] == 4
    assert compose(["~model/peft"])["model"]["peft"] is None


def test_experiment_with_and_without_plus() -> None:
    plain = compose(["experiment=quickstart"])
    assert plain == compose(["+experiment=quickstart"])
    assert plain["max_steps"] != compose([])["max_steps"]


def test_method_brings_its_data_and_the_command_line_overrules_it() -> None:
    assert compose(["method=pretrain"])["data"]["name"] == "text"
    assert compose(["method=pretrain", "data=files", "data.train=a.txt"])["data"]["name"] == "files"


def test_debug_means_three_steps_on_small_data() -> None:
    for overrides in (["debug=true"], ["experiment=sft_mixed_optimized", "debug=true"], ["+debug=true"]):
        config = compose_and_check(overrides)
        assert (config["max_steps"], config["model"]["name"], config["data"]["name"]) == (3, "nano", "arithmetic")
        assert config["data"]["sources"] is None
    assert compose(["debug=true", "method=pretrain"])["data"]["name"] == "text"
    assert compose(["debug=true", "data=files", "data.train=a.jsonl"])["data"]["train"] == "a.jsonl"
    assert compose(["debug=true", "max_steps=5"])["max_steps"] == 5
    assert compose(["debug=false"]) == compose([])


def test_values_win_over_groups_and_interpolations_follow() -> None:
    config = compose(["hardware.precision=bf16_true", "model.learning_rate=0.5"])
    assert config["precision"] == "bf16_true"
    assert config["optimizer"]["lr"] == 0.5
    assert compose(["precision=bf16", "hardware=cpu"])["precision"] == "bf16"


def test_a_parameter_of_a_target_needs_no_plus(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "short.yaml").write_text("# mine\n_target_: posttrain.models.optimizers.adamw\nlr: 1.0\n")
    config = compose_and_check(["optimizer=short", "optimizer.eps=0.5"], config_dirs=[tmp_path])
    assert config["optimizer"]["eps"] == 0.5
    assert where(["optimizer=short", "optimizer.epsilon=0.5"], config_dirs=[tmp_path]) == {"optimizer.epsilon=0.5"}


def test_own_config_folder_adds_and_never_hides(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# mine\ndefaults: [_base, _self_]\nname: mine\npath: a/b\n")
    assert compose(["model=mine"], config_dirs=[tmp_path])["model"]["path"] == "a/b"
    (tmp_path / "model" / "nano.yaml").write_text("name: other\n")
    assert where([], config_dirs=[tmp_path]) == {str(tmp_path / "model" / "nano.yaml")}


def test_broken_yaml_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        compose(["model=broken"], config_dirs=[tmp_path])


def test_missing_value_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("# mine\ndefaults: [_base, _self_]\nname: mine\ntrain: ???\n")
    assert where(["data=mine"], config_dirs=[tmp_path]) == {"data.train"}


def test_a_run_config_alone_gives_the_same_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = compose(["seed=3", "optimizer.lr=1e-5", "model.peft=lora", f"output_dir={folder}", "tracking.parent_run_id=abc"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    again = compose([], base=folder / "config.yaml")
    identity = {"output_dir": None, "tracking": config["tracking"] | {"parent_run_id": None}}
    assert again == config | identity
    assert compose([], base=folder) == again
    moved = compose(["seed=4", "hardware=2xcpu", f"output_dir={tmp_path / 'b'}"], base=folder)
    assert (moved["seed"], moved["hardware"]["devices"], moved["optimizer"]["lr"]) == (4, 2, 1e-5)
    assert moved["output_dir"] == str(tmp_path / "b")


def test_a_base_config_is_not_interpolated_and_keeps_small_numbers(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    config = compose(["model.chat_template=plain"])
    config["model"]["chat_template"] = "${oc.env:HOME} {{ x }}"
    config["optimizer"]["lr"] = "LR"
    file.write_text(yaml.safe_dump(config).replace("LR", "1e-5"))
    again = compose([], base=file)
    assert again["model"]["chat_template"] == "${oc.env:HOME} {{ x }}"
    assert again["optimizer"]["lr"] == 1e-5


def test_a_base_config_takes_groups_but_no_experiment(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(compose([])))
    assert compose(["optimizer=sgd"], base=file)["optimizer"]["_target_"].endswith(".sgd")
    assert where(["experiment=quickstart"], base=file) == {"experiment=quickstart"}


def test_optional_keys_an_older_config_lacks_get_their_defaults(tmp_path: Path) -> None:
    config = compose([])
    del config["limit"], config["model"]["compile"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    again = compose([], base=file)
    assert again["limit"] is None
    assert again["model"]["compile"] is False


def test_user_can_allow_a_package() -> None:
    trusted = ["optimizer._target_=fractions.Fraction", "~optimizer.lr", "~optimizer.weight_decay", "~optimizer.betas", "~optimizer.eps"]
    trusted += ["~optimizer.fused"]
    assert where(trusted) == {"optimizer._target_"}
    assert compose_and_check(trusted, allow_targets=["fractions"])["optimizer"]["_target_"] == "fractions.Fraction"
    assert where(trusted, allow_targets=["fraction"]) == {"optimizer._target_"}


@pytest.mark.parametrize(
    "text", ["1e3", "2E-5", "+1e3", "1_0e3", "1000", "1.5", "yes", "null", "2026-01-02", "12:30", "~", "=", "", "a: b"]
)
def test_a_text_comes_back_as_text_from_its_config_file(tmp_path: Path, text: str) -> None:
    config = compose_and_check([f'data.system="{text}"', f"output_dir={tmp_path}"])
    assert config["data"]["system"] == text
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(config))
    assert yaml.safe_load(file.read_text()) == config == load_config(file)
    assert compose_and_check([], base=file)["data"]["system"] == text


def test_sweeps_write_texts_that_look_like_numbers_as_texts(tmp_path: Path) -> None:
    jobs = [Job(text, (), {"data": {"system": text}, "output_dir": str(tmp_path / text), "tracking": {}}, text) for text in ("1e3", "2e3")]
    record = recorded(jobs, tmp_path, None, Live())
    assert [load_config(job.file)["data"]["system"] for job in record.jobs] == ["1e3", "2e3"]


def test_a_changed_file_of_a_group_is_read_again(tmp_path: Path) -> None:
    """Files are parsed once, as long as they stay as they are; what is composed of them may be changed."""
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "mine.yaml"
    for path in ("a", "b"):
        file.write_text(f"# mine\ndefaults: [_base, _self_]\nname: mine\npath: {path}\n")
        os.utime(file, ns=(ord(path), ord(path)))
        for method in ("sft", "dpo"):
            composed = compose([f"method={method}", "model=mine"], config_dirs=[tmp_path])
            assert composed["model"]["path"] == path
            composed["model"]["path"] = composed["method"]["name"] = "changed"
