"""Type annotations of config keys: from source text to runtime types, to checks, to words."""

from __future__ import annotations

import ast
import json
import types
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from posttrain.runs import source

_SIMPLE: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict[str, Any], "list": list[Any], "Path": Path}
_CONTAINERS = {"list": list, "Sequence": list, "Iterable": list, "Collection": list, "tuple": tuple, "dict": dict, "Mapping": dict}
_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}


def evaluate(node: ast.expr, module: source.Module) -> Any:
    """The runtime type an annotation means; `Any` for what is no plain value (tensors, callables, classes)."""
    if isinstance(node, ast.Constant):
        return type(None) if node.value is None else evaluate(ast.parse(str(node.value), mode="eval").body, module)
    if isinstance(node, ast.BinOp):
        return _union([evaluate(node.left, module), evaluate(node.right, module)])
    if isinstance(node, ast.Subscript):
        return _subscript(_tail(node.value), _items(node.slice), module)
    return _name(_tail(node), module)


def _tail(node: ast.expr) -> str:
    """`Any` for `typing.Any`: the last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _items(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _name(name: str, module: source.Module) -> Any:
    if name in _SIMPLE:
        return _SIMPLE[name]
    found = source.find(name, module)
    if found is not None and isinstance(found.node, ast.Subscript | ast.BinOp | ast.Name):
        return evaluate(found.node, found.module)
    return Any


def _subscript(base: str, items: list[ast.expr], module: source.Module) -> Any:
    if base == "Literal":
        return Literal[tuple(ast.literal_eval(item) for item in items)]
    if base == "Union":
        return _union([evaluate(item, module) for item in items])
    if base == "Optional":
        return _union([evaluate(items[0], module), type(None)])
    if base in ("Annotated", "Final"):
        return evaluate(items[0], module)
    if base not in _CONTAINERS:
        return Any
    parts = tuple(... if isinstance(item, ast.Constant) and item.value is ... else evaluate(item, module) for item in items)
    return types.GenericAlias(_CONTAINERS[base], parts)


def _union(members: list[Any]) -> Any:
    return Any if Any in members else reduce(or_, members)


def plain(annotation: Any) -> Any:
    """`annotation` if it is made of plain values only, else `Any` (tensors, callables, other classes)."""
    origin = get_origin(annotation)
    if origin is Literal:
        return annotation
    if origin is not None:
        known = origin in (list, tuple, dict, Union, types.UnionType)
        return annotation if known and all(item is ... or plain(item) is not Any for item in get_args(annotation)) else Any
    return annotation if annotation in _WORDS else Any


def fits(value: Any, annotation: Any) -> bool:
    """Whether a YAML value has the annotated type. An integer is a number; a text is not; true and false are neither."""
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        return False
    return True


def in_words(annotation: Any) -> str:
    """The type in words a user understands: `an integer >= 1 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(arguments[0]) + "".join(_bound(item) for item in arguments[1:])
    if origin is Literal:
        return "one of " + ", ".join("null" if item is None else str(item) for item in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(item) for item in sorted(arguments, key=lambda item: item is type(None)))
    if origin in (list, tuple):
        inner = [in_words(item) for item in arguments if item is not ...]
        return "a list" if Any in arguments else "a list of " + (inner[0] if len(set(inner)) == 1 else "(" + ", ".join(inner) + ")")
    if origin is dict or annotation is dict:
        return "a mapping"
    return _WORDS.get(annotation, "a group of keys")


def choices(annotation: Any) -> list[str]:
    """The texts a `Literal` anywhere in the annotation accepts."""
    if get_origin(annotation) is Literal:
        return [item for item in get_args(annotation) if isinstance(item, str)]
    return [choice for item in get_args(annotation) for choice in choices(item)]


def _bound(item: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = getattr(item, "metadata", None) or [item]  # pydantic's FieldInfo carries a list of bounds
    return "".join(f" {signs[name]} {value}" for bound in bounds for name, value in vars_of(bound).items() if name in signs)


def vars_of(bound: Any) -> dict[str, Any]:
    """Fields of an annotated-types bound (`Ge(ge=1)` -> `{"ge": 1}`)."""
    return {name: getattr(bound, name) for name in getattr(bound, "__dataclass_fields__", {})}
