"""The signature is the schema: keyword-only parameters of a `_target_` are its keys, with their types and defaults."""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, get_type_hints

from posttrain.runs import source
from posttrain.runs.annotations import evaluate, plain

RESERVED = ("_target_", "_partial_")


@dataclass(frozen=True)
class Parameter:
    """One configurable key: its type as a runtime annotation (`Any` where the source names no plain type)."""

    name: str
    annotation: Any
    required: bool
    default: Any = None
    doc: str = ""


@dataclass(frozen=True)
class Signature:
    """Keys of a config node. positional: names of the runtime inputs, not configurable. open: any further key is accepted."""

    name: str
    parameters: dict[str, Parameter]
    positional: tuple[str, ...] = ()
    open: bool = False
    is_class: bool = False


@lru_cache(maxsize=512)
def read_signature(target: str) -> Signature | None:
    """Signature of a dotted name, or None if there is no such function or class.

    This package is read as source text; other packages (which must be on the allow-list) are imported and inspected.
    """
    if target.split(".", maxsplit=1)[0] != source.PACKAGE:
        return _imported(target)
    found = source.locate(target)
    return None if found is None else replace(_from_source(found), name=target)


def _from_source(found: source.Found) -> Signature:
    if isinstance(found.node, ast.FunctionDef):
        return _from_arguments(found.node.args, found.module, skip=0)
    assert isinstance(found.node, ast.ClassDef)
    init = next((item for item in found.node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None and _is_dataclass(found.node):
        return _from_fields(found)
    inherited = next(iter(source.bases(found)), None)
    parent = _from_source(inherited) if inherited is not None else Signature("", {}, is_class=True)
    if init is None:
        return parent
    own = replace(_from_arguments(init.args, found.module, skip=1), is_class=True)
    if init.args.kwarg is None or inherited is None:
        return own
    return replace(own, parameters=parent.parameters | own.parameters, open=parent.open)


def _from_arguments(arguments: ast.arguments, module: source.Module, *, skip: int) -> Signature:
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {argument.arg: _parameter(argument.arg, argument.annotation, default, module) for argument, default in keywords}
    positional = tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args))[skip:]
    return Signature("", parameters, positional, open=arguments.kwarg is not None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    return any(isinstance(name, ast.Name) and name.id.endswith("dataclass") for name in names)


def _from_fields(found: source.Found) -> Signature:
    assert isinstance(found.node, ast.ClassDef)
    inherited = [_from_source(base).parameters for base in source.bases(found)]
    fields = [item for item in found.node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    fields = [item for item in fields if "ClassVar" not in ast.unparse(item.annotation)]
    own = {item.target.id: _parameter(item.target.id, item.annotation, item.value, found.module) for item in fields}  # type: ignore[union-attr]
    merged: dict[str, Parameter] = {}
    for parameters in (*inherited, own):
        merged |= parameters
    return Signature("", merged, is_class=True)


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None, module: source.Module) -> Parameter:
    kind = Any if annotation is None else evaluate(annotation, module)
    return Parameter(name, kind, required=default is None, default=_literal(default, module))


def _literal(default: ast.expr | None, module: source.Module) -> Any:
    """Value of a default that is a literal or a constant of the package; None otherwise."""
    if isinstance(default, ast.Name):
        found = source.find(default.id, module)
        default = found.node if found is not None and isinstance(found.node, ast.expr) else None
    try:
        return None if default is None else ast.literal_eval(default)
    except ValueError:  # an expression such as math.inf: there is a default, its value is the callee's business
        return None


def _imported(target: str) -> Signature | None:
    """Signature of a function or class of another package; parameters that have a default, or are keyword-only, are configurable."""
    module_name, _, attribute = target.rpartition(".")
    try:
        found = vars(importlib.import_module(module_name)).get(attribute)
    except ImportError:
        return None
    if found is None:
        return None
    listed = inspect.signature(found).parameters.values()
    hints = _hints(found.__init__ if inspect.isclass(found) else found)
    keyed = [item for item in listed if item.kind is item.KEYWORD_ONLY or item.default is not item.empty]
    parameters = {
        item.name: Parameter(item.name, plain(hints.get(item.name, Any)), item.default is item.empty, item.default) for item in keyed
    }
    positional = tuple(item.name for item in listed if item.name not in parameters and item.kind is item.POSITIONAL_OR_KEYWORD)
    is_open = any(item.kind is item.VAR_KEYWORD for item in listed)
    return Signature(target, parameters, positional, is_open, inspect.isclass(found))


def _hints(found: Any) -> dict[str, Any]:
    """Resolved annotations; empty when they name things that exist only for type checkers."""
    try:
        return get_type_hints(found)
    except (NameError, TypeError):
        return {}
