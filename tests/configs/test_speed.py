"""What needs no torch answers at once and imports no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "lightning", "mlflow", "datasets", "pandas", "pyarrow")
LIGHT_MODULES = ("posttrain", "posttrain.__main__", "posttrain.errors", "posttrain.types", "posttrain.runs.compose", "posttrain.runs.check")


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["list"], ["optimizer.lr=fast", "metod=sft"], ["study=sft_lr", "study.seeds=[1,1]"]],
    ids=" ".join,
)
def test_command_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from posttrain.__main__ import main; main(sys.argv[1:]); print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_answers_at_once(fresh: Callable[..., Any]) -> None:
    outcome = fresh("--help")
    assert outcome.code == 0
    assert outcome.seconds < 3  # the aim is 1.5 s; a busy machine gets twice that
    for words in ("Usage", "Commands", "Overrides", "Examples", "data=files data.train=PATH", "-m, --multirun"):
        assert words in outcome.out


@pytest.mark.parametrize("command", ["train", "plan", "data", "eval", "chat", "export", "list"])
def test_every_command_has_its_help(posttrain: Callable[..., Any], command: str) -> None:
    outcome = posttrain(command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"posttrain {command}")
    assert outcome.err == ""
