"""Reads this package's own source with `ast`: what a dotted name is defined as, without importing the (heavy) module."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = "posttrain"
_ROOT = Path(__file__).resolve().parents[1]
Definition = ast.FunctionDef | ast.ClassDef | ast.expr


@dataclass(frozen=True)
class Module:
    """Top-level names of one source file: what it defines and what it takes from other modules of the package."""

    name: str
    definitions: dict[str, Definition]
    imports: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """A definition and the module it is written in."""

    module: Module
    node: Definition


@lru_cache(maxsize=256)
def load_module(name: str) -> Module | None:
    """The module `name` of this package, parsed; None if there is no such file."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    stem = _ROOT.joinpath(*parts[1:])
    for file in (stem.with_suffix(".py"), stem / "__init__.py"):
        if file.is_file():
            tree = ast.parse(file.read_text(encoding="utf-8"))
            return Module(name, _definitions(tree.body), _imports(tree.body))
    return None


def _definitions(body: list[ast.stmt]) -> dict[str, Definition]:
    found: dict[str, Definition] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
            found[statement.target.id] = statement.value
    return found


def _imports(body: list[ast.stmt]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for statement in body:
        if isinstance(statement, ast.If):  # `if TYPE_CHECKING:`
            found |= _imports(statement.body)
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None and statement.level == 0:
            found |= {alias.asname or alias.name: (statement.module, alias.name) for alias in statement.names}
    return found


def find(name: str, module: Module, *, depth: int = 8) -> Found | None:
    """What `name` means inside `module`, following imports within the package; None if it is defined elsewhere."""
    if name in module.definitions:
        return Found(module, module.definitions[name])
    if name not in module.imports or depth == 0:
        return None
    origin, attribute = module.imports[name]
    other = load_module(origin)
    return None if other is None else find(attribute, other, depth=depth - 1)


def locate(target: str) -> Found | None:
    """The function or class a dotted `_target_` of this package names; None if there is none (an imported module does not count)."""
    module_name, _, attribute = target.rpartition(".")
    module = load_module(module_name)
    found = None if module is None else find(attribute, module)
    return found if found is not None and isinstance(found.node, ast.FunctionDef | ast.ClassDef) else None


def public_names(module_name: str) -> list[str]:
    """Dotted names of the public functions and classes of a module of this package; empty if there is no such module."""
    module = load_module(module_name)
    if module is None:
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [f"{module_name}.{name}" for name, node in module.definitions.items() if isinstance(node, kinds) and not name.startswith("_")]


def bases(found: Found) -> list[Found]:
    """The base classes of a class that are defined in this package."""
    if not isinstance(found.node, ast.ClassDef):
        return []
    named = [find(base.id, found.module) for base in found.node.bases if isinstance(base, ast.Name)]
    return [base for base in named if base is not None and isinstance(base.node, ast.ClassDef)]


def class_constant(target: str, attribute: str) -> object | None:
    """The literal value of a class attribute, looked up through base classes; None if it is not written as a literal."""
    start = locate(target)
    queue = [] if start is None else [start]
    while queue:
        found = queue.pop(0)
        if isinstance(found.node, ast.ClassDef):
            value = _definitions(found.node.body).get(attribute)
            if isinstance(value, ast.expr):
                return ast.literal_eval(value)
        queue += bases(found)
    return None
