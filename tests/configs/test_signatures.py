"""Signatures read from source text: names, types, defaults."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.runs import options, source, targets
from posttrain.runs.annotations import choices, fits, in_words, plain
from posttrain.runs.signatures import read_signature
from posttrain.runs.suggest import nearest


def configured_targets() -> list[str]:
    """Every `_target_` in the built-in YAML files."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in options.config_dir().rglob("*.yaml"))
    return sorted(set(re.findall(r"^\s*_target_: ([\w.]+)", text, re.MULTILINE)))


def keyword_only(real: Any) -> dict[str, Any]:
    """Keyword-only parameters and their defaults; those of the base class too where a class hands keywords on."""
    listed = inspect.signature(real).parameters.values()
    own = {item.name: item.default for item in listed if item.kind is item.KEYWORD_ONLY}
    hands_on = inspect.isclass(real) and any(item.kind is item.VAR_KEYWORD for item in listed)
    return keyword_only(real.__bases__[0]) | own if hands_on else own


@pytest.mark.parametrize("target", configured_targets())
def test_source_reading_agrees_with_python(target: str) -> None:
    module, _, name = target.rpartition(".")
    real = getattr(import_module(module), name)
    signature = read_signature(target)
    assert signature is not None
    listed = inspect.signature(real).parameters.values()
    keywords = keyword_only(real)
    assert {name: item.required for name, item in signature.parameters.items()} == {
        n: d is inspect.Parameter.empty for n, d in keywords.items()
    }
    read = {name: item.default for name, item in signature.parameters.items() if not item.required and item.default is not None}
    assert read == {name: keywords[name] for name in read}
    assert signature.positional == tuple(item.name for item in listed if item.kind is item.POSITIONAL_OR_KEYWORD)


def test_dataclass_fields_are_parameters() -> None:
    signature = read_signature("posttrain.models.peft_options.PeftOptions")
    assert signature is not None
    assert signature.parameters["kind"].annotation == Literal["lora", "dora", "rslora", "pissa"]
    assert signature.parameters["r"].annotation is int


def test_allowed_classes_of_other_packages() -> None:
    signature = read_signature("torch.optim.SGD")
    assert signature is not None
    assert signature.positional == ("params",)
    assert fits(0.1, signature.parameters["momentum"].annotation)
    assert targets.allowed("torch.optim.SGD")
    for name in ("torch.load", "torch.optim", "os.system", "posttrainer.x", "transformers.AutoModel", "builtins.eval", ""):
        assert not targets.allowed(name)


@pytest.mark.parametrize("target", sorted(targets.ALLOWED))
def test_allow_list_names_real_classes(target: str) -> None:
    pytest.importorskip(target.split(".", maxsplit=1)[0])
    assert inspect.isclass(getattr(import_module(target.rpartition(".")[0]), target.rpartition(".")[2]))


def test_only_definitions_of_this_package_can_be_named() -> None:
    assert source.locate("posttrain.runs.targets.build") is not None
    for name in ("posttrain.runs.job.subprocess", "posttrain.runs.job.Path", "posttrain.nowhere.x", "posttrain.runs.targets.ALLOWED"):
        assert read_signature(name) is None


def test_class_constants_are_found_in_base_classes() -> None:
    assert source.class_constant("posttrain.methods.supervised.SFT", "loss_inputs") == ("logps", "weight", "denominator")
    assert source.class_constant("posttrain.methods.supervised.SFT", "nothing") is None


def test_build_calls_the_target_and_drops_the_label() -> None:
    node = {"_target_": "posttrain.errors.Problem", "where": "here", "message": "wrong"}
    assert str(targets.build(node)) == "here: wrong"
    partial = targets.build({"_target_": "posttrain.errors.Problem", "_partial_": True, "message": "wrong", "name": "label"})
    assert partial("there").where == "there"
    with pytest.raises(ConfigError):
        targets.build({"_target_": "os.getcwd"})
    with pytest.raises(ConfigError):
        targets.build({"_target_": "posttrain.errors.Problem", "where": "x", "message": {"_target_": "os.getcwd"}})
    assert isinstance(targets.build({"_target_": "os.getcwd"}, allow=["os"]), str)
    with pytest.raises(ConfigError):
        targets.build({"_target_": "posttrain.runs.job.subprocess"})


FITS: list[tuple[Any, Any, bool]] = [
    (1, float, True), (1.5, float, True), ("fast", float, False), ("1", float, False), (True, float, False),
    (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False),
    (True, bool, True), (1, bool, False), ("yes", bool, False),
    (None, int | None, True), (3, int | None, True), ("x", int | None, False),
    ([0.9, 0.99], tuple[float, float], True), ([0.9], tuple[float, float], False), (["a"], list[str], True), ([1], list[str], False),
    ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False), ("x/y", Path, True), ({"a": 1}, dict[str, Any], True), (3, Any, True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation", "expected"), FITS)
def test_fits(value: Any, annotation: Any, expected: bool) -> None:
    assert fits(value, annotation) is expected


def test_words() -> None:
    assert in_words(int | None) == "an integer or null"
    assert in_words(tuple[float, float]) == "a list of a number"
    assert in_words(Literal["a", "b"]) == "one of a, b"
    assert choices(Literal["a", "b"] | None) == ["a", "b"]
    assert plain(Callable[[int], int]) is Any
    assert plain(list[int] | None) == list[int] | None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x, max_size=3)))
def test_everything_fits_any(value: Any) -> None:
    assert fits(value, Any)
    assert json.loads(json.dumps(value)) == value


NAMES = [
    "seed",
    "max_steps",
    "optimizer",
    "optimizer.lr",
    "optimizer.betas",
    "method",
    "method.loss",
    "data.train",
    "checkpoint.every_steps",
]


@pytest.mark.parametrize(
    ("asked", "best"),
    [("metod", "method"), ("lr", "optimizer.lr"), ("optimiser.lr", "optimizer.lr"), ("max_step", "max_steps"), ("steps", "max_steps"),
     ("dta.train", "data.train"), ("checkpoint.evry_steps", "checkpoint.every_steps"), ("zzz", None), ("rollout", None)],
)  # fmt: skip
def test_nearest(asked: str, best: str | None) -> None:
    assert nearest(asked, NAMES) == best
