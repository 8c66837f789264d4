"""Arguments of the commands that work on an artifact (`eval`, `export`, `chat`): checked against signatures, before anything heavy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.runs.annotations import fits, in_words
from posttrain.runs.signatures import Parameter, read_signature
from posttrain.runs.suggest import hint

ARTIFACT_FILES = ("artifact.json", "config.json", "adapter_config.json")


def parameters_of(target: str) -> dict[str, Parameter]:
    """Keyword-only parameters of a function of this package, without importing its module. Raises LookupError if there is none."""
    signature = read_signature(target)
    if signature is None:
        raise LookupError(f"there is no {target}")
    return dict(signature.parameters)


def bind(args: Mapping[str, Any], known: Mapping[str, Parameter], *, command: str) -> dict[str, Any]:
    """`args` with their types; texts are read as YAML where a parameter takes no text.

    Raises ConfigError with every unknown name, wrong type and missing argument.
    """
    problems = [
        Problem(f"{name}={args[name]}", f"{command} has no argument {name}", hint(name, known)) for name in args if name not in known
    ]
    bound: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in args:
            if parameter.required:
                problems.append(Problem(name, "is needed", f"posttrain {command} {name}=..."))
            continue
        value = _read(args[name], parameter)
        if not fits(value, parameter.annotation):
            problems.append(Problem(f"{name}={args[name]}", f"expected {in_words(parameter.annotation)}"))
        bound[name] = value
    if problems:
        raise ConfigError(problems)
    return bound


def _read(value: Any, parameter: Parameter) -> Any:
    """The value itself if it fits, else what its text means in YAML, else the one element of a list."""
    if isinstance(value, Path):
        value = str(value)
    if fits(value, parameter.annotation):
        return value
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        if fits(value, parameter.annotation):
            return value
    # `data=2024` or `tasks=gsm8k`: a number where a text, and a text where a list of them is meant.
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return next((text for text in (str(value), [str(value)]) if fits(text, parameter.annotation)), value)
    return value


def find_artifact(run: str, *, key: str = "run") -> Path:
    """The artifact of a run folder, or the folder itself where it is an artifact or a plain Hugging Face model.

    key: the argument that names it. Raises ConfigError that says what to do when there is none.
    """
    folder = Path(os.path.expanduser(run))
    if not folder.is_dir():
        what = "is a file, expected the output folder of a run" if folder.exists() else "no such folder"
        raise ConfigError(Problem(f"{key}={run}", what, "give the output_dir of a run, or a Hugging Face model folder"))
    for candidate in (folder / "artifact", folder):
        if any((candidate / name).is_file() for name in ARTIFACT_FILES):
            return candidate
    raise ConfigError(Problem(f"{key}={run}", *_why_no_artifact(folder)))


def _why_no_artifact(folder: Path) -> tuple[str, str]:
    """Why a folder has no artifact, and what to do."""
    if not (folder / "config.yaml").is_file():
        inside = sorted(path.parents[0] for path in folder.glob("*/artifact") if path.is_dir())
        nearby = f"did you mean {inside[0]}?" if inside else "give the output_dir of a run"
        return "is no run folder: it has neither an artifact nor a config.yaml", nearby
    result = folder / "result.json"
    status = json.loads(result.read_text(encoding="utf-8")).get("status", "unknown") if result.is_file() else "not finished"
    resume = f"run the same command again with output_dir={folder}: it resumes from the last checkpoint"
    return f"has no artifact (the run is {status})", resume
