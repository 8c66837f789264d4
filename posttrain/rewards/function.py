"""A function of the user as a reward: `reward=function reward.function.path=mypackage.mymodule:fn`, or `path=file.py:fn`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Isolated
from posttrain.rewards.modules import folders, source_of
from posttrain.types import Sample

INPUTS = ("prompt", "completion", "answer", "meta")


class Function(Isolated):
    """Calls `fn(prompt=, completion=, answer=, meta=, **options)`, which returns a number, in processes of its own.

    prompt: a list of messages (role, content). completion: the text. answer: the expected one or None. meta: a mapping, see `Example`.
    path: of the function, as `module:name` (modules of the current folder are found too) or `file.py:name`. Naming it is the permission
    to run that code: nothing is imported here, its processes import it when the run starts. options: further keyword arguments.
    """

    def __init__(self, *, path: str, options: Mapping[str, Any] | None = None, **common: Any) -> None:
        super().__init__(**common)
        if problem := problem_with(path):
            raise ConfigError(problem)
        self.path, self.options = path, dict(options or {})
        self._function: Callable[..., float] | None = None

    def start(self) -> None:
        """Import the function. Raises TypeError where it does not take what it is given."""
        self._function = load(self.path)
        inspect.signature(self._function).bind(**dict.fromkeys(INPUTS), **self.options)

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        assert self._function is not None, "start comes first"
        return [self._call(self._function, sample) for sample in samples]

    def _call(self, function: Callable[..., float], sample: Sample) -> float:
        inputs = {"prompt": [*sample.prompt], "completion": sample.completion, "answer": sample.answer, "meta": sample.meta}
        return function(**inputs, **self.options)


def problem_with(path: str, where: str = "reward.function.path") -> Problem | None:
    """What is wrong with a function's path, found without running any of its code; None if nothing is."""
    module, colon, name = path.rpartition(":")
    if not colon or not module or not name.isidentifier():
        return Problem(where, f"expected module:name or file.py:name, got {path!r}")
    file = source_of(module)
    if file is None:
        return Problem(where, f"there is no {'file' if module.endswith('.py') else 'module'} {module}", f"looked in {os.getcwd()} too")
    if file.suffix != ".py":  # compiled: known when it is imported
        return None
    try:
        defined = names_in(ast.parse(file.read_text(encoding="utf-8")))
    except (SyntaxError, UnicodeDecodeError) as error:
        return Problem(f"{file}:{getattr(error, 'lineno', None) or 1}", f"is no Python: {error}")
    return None if name in defined or "*" in defined else Problem(where, f"{file} defines no {name}")


def names_in(tree: ast.Module) -> set[str]:
    """Names that a module has at its top, also under if and try; `*` where it takes all names of another one."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add(node.asname or node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif not isinstance(node, ast.AsyncFunctionDef | ast.Lambda):
                pending.append(node)
    return found


def load(path: str) -> Callable[..., float]:
    """The function itself: runs its module."""
    module, _, name = path.rpartition(":")
    sys.path[:] = folders()
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), name)
    file = Path(os.path.expanduser(module)).resolve()
    sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, loaded)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)
