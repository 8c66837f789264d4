"""Walks a plain config beside its schema: which keys may be where, and which values do not fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel

from posttrain.errors import Problem
from posttrain.runs import suggest, targets
from posttrain.runs.annotations import choices, fits, in_words
from posttrain.runs.schema import KeysOf, Run
from posttrain.runs.signatures import RESERVED, Parameter, Signature, read_signature

ROOT = ""


@lru_cache(maxsize=32)
def model_signature(model: type[BaseModel]) -> Signature:
    """A pydantic model as a signature: one parameter a field, bounds kept in the annotation."""
    parameters = {}
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        default = None if field.is_required() else field.default
        parameters[name] = Parameter(name, kind, field.is_required(), default, field.description or "")
    return Signature(model.__name__, parameters)


def group_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation (`Model`, `Peft | None`), if there is one."""
    for item in (annotation, *get_args(annotation)):
        if inspect.isclass(item) and issubclass(item, BaseModel):
            return item
    return None


def signature_of(value: Any, annotation: Any) -> Signature | None:
    """What describes the keys of this node: its `_target_`, else the schema's model; None where keys are free or it is a leaf."""
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        return read_signature(value["_target_"]) if targets.allowed(value["_target_"]) else None
    return group_signature(annotation)


def group_signature(annotation: Any) -> Signature | None:
    """The keys the schema states for a group, by a pydantic model or by naming a class; None where it states none."""
    named = next((item.name for item in get_args(annotation) if isinstance(item, KeysOf)), None)
    if named is not None:
        return read_signature(named)
    model = group_model(annotation)
    return None if model is None else model_signature(model)


def join(path: str, key: str) -> str:
    """`a.b` of `a` and `b`."""
    return f"{path}.{key}" if path else key


def known_keys(config: dict[str, Any]) -> list[str]:
    """Every dotted key this config has or may have."""
    return list(_known(config, Run, ROOT))


def _known(value: Any, annotation: Any, path: str) -> Iterator[str]:
    signature = signature_of(value, annotation)
    present = value if isinstance(value, dict) else {}
    parameters = {} if signature is None else signature.parameters
    for key in dict.fromkeys([*parameters, *(key for key in present if isinstance(key, str) and key not in RESERVED)]):
        dotted = join(path, key)
        yield dotted
        yield from _known(present.get(key), parameters[key].annotation if key in parameters else Any, dotted)


def accepts(config: dict[str, Any], dotted: str) -> bool:
    """Whether a key that is absent from the config may be set: a schema key, a parameter of a `_target_`, or inside free keys."""
    value: Any = config
    annotation: Any = Run
    for key in dotted.split("."):
        if value is None:  # a group of which nothing is chosen
            return False
        signature = signature_of(value, annotation)
        present = value if isinstance(value, dict) else {}
        if signature is None:
            return isinstance(value, dict) and ("_target_" in value or path_is_free(annotation))  # an unknown target is a problem by itself
        if key not in signature.parameters and key not in present:
            return signature.open
        annotation = signature.parameters[key].annotation if key in signature.parameters else Any
        value = present.get(key)
    return True


def path_is_free(annotation: Any) -> bool:
    """Whether the annotation is a mapping with free keys (`model.architecture`)."""
    return annotation is Any or any(
        item is dict or getattr(item, "__origin__", None) is dict for item in (annotation, *get_args(annotation))
    )


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the schema's default written in for every optional key that is absent, so that a run's config is complete."""
    return _filled(config, Run)


def _filled(value: Any, annotation: Any) -> Any:
    model = group_model(annotation)
    if model is None or not isinstance(value, dict) or "_target_" in value:
        return value
    parameters = model_signature(model).parameters
    absent = {name: parameter.default for name, parameter in parameters.items() if name not in value and not parameter.required}
    return {key: _filled(item, parameters[key].annotation) if key in parameters else item for key, item in (value | absent).items()}


def validate(config: dict[str, Any], *, allow: Collection[str] = ()) -> list[Problem]:
    """Problems with names, types, bounds and targets, in the order of the config."""
    return list(_node(config, model_signature(Run), ROOT, allow))


def node_problems(node: dict[str, Any], path: str, *, allow: Collection[str] = ()) -> list[Problem]:
    """Problems of one `_target_` node that is not part of a run's config. path: what it is called."""
    return list(_target(node, path, allow))


def _node(value: dict[str, Any], signature: Signature, path: str, allow: Collection[str]) -> Iterator[Problem]:
    free = () if "_target_" not in value else RESERVED if "." in path else (*RESERVED, "name")  # a group's option has a name
    for key, item in value.items():
        if key in signature.parameters:
            yield from _value(item, signature.parameters[key], join(path, key), allow)
        elif key not in free:
            if not signature.open:
                yield unknown_key(join(path, key), [join(path, name) for name in signature.parameters], signature)
            yield from _targets(item, join(path, key), allow)
    for parameter in signature.parameters.values():
        if parameter.required and parameter.name not in value:
            yield Problem(join(path, parameter.name), f"is missing; expected {in_words(parameter.annotation)}", parameter.doc)


def unknown_key(dotted: str, valid: list[str], signature: Signature) -> Problem:
    """An unknown key, with the nearest valid one. A runtime input is named as such."""
    if dotted.rsplit(".", 1)[-1] in signature.positional:
        return Problem(dotted, "is given by the run and cannot be configured")
    return Problem(dotted, "unknown key", suggest.hint(dotted, valid))


def _value(value: Any, parameter: Parameter, path: str, allow: Collection[str]) -> Iterator[Problem]:
    if value == "???":
        yield Problem(path, f"is missing; expected {in_words(parameter.annotation)}", f"set {path}=..." if path else "")
        return
    group = group_signature(parameter.annotation)
    if group is not None and isinstance(value, dict) and "_target_" not in value:
        yield from _node(value, group, path, allow)
        return
    if _has_target(value):
        yield from _targets(value, path, allow)
    elif _is_target_slot(parameter) and value is not None and not (isinstance(value, dict) and path_is_free(parameter.annotation)):
        yield Problem(path, f"expected an option of this group, got {value!r}", f"posttrain list {path.replace('.', '/')}")
    elif not fits(value, parameter.annotation):
        yield wrong_type(path, value, parameter)
    elif not _finite(value):
        yield Problem(path, f"expected a finite number, got {value!r}", parameter.doc)


def _finite(value: Any) -> bool:
    """Whether a value holds neither nan nor an infinity, which every bound lets pass or no run survives."""
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_target_slot(parameter: Parameter) -> bool:
    return path_is_free(parameter.annotation) and parameter.annotation is not Any


def wrong_type(path: str, value: Any, parameter: Parameter) -> Problem:
    """`expected a number, got 'fast'`, with what to do where that can be said."""
    text = f"expected {in_words(parameter.annotation)}, got {'null' if value is None else repr(value)}"
    near = suggest.nearest(value, choices(parameter.annotation)) if isinstance(value, str) else None
    if near is not None:
        return Problem(path, text, f"did you mean {near}?")
    if isinstance(value, int | float) and fits(str(value), parameter.annotation):
        return Problem(path, text, f"quote a text that looks like a number: {path}='\"{value}\"'")
    return Problem(path, text, parameter.doc)


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _targets(value: Any, path: str, allow: Collection[str]) -> Iterator[Problem]:
    """Problems of every `_target_` node in a value whose keys are free."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _targets(item, join(path, str(index)), allow)
    elif isinstance(value, dict) and "_target_" in value:
        yield from _target(value, path, allow)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _targets(item, join(path, str(key)), allow)


def _target(value: dict[str, Any], path: str, allow: Collection[str]) -> Iterator[Problem]:
    problem = targets.refusal(value["_target_"], join(path, "_target_"), allow)
    if problem is not None:
        yield problem
        return
    signature = read_signature(value["_target_"])
    if signature is None:
        yield targets.unknown(value["_target_"], join(path, "_target_"))
        return
    if not isinstance(value.get("_partial_", False), bool):
        yield Problem(join(path, "_partial_"), f"expected true or false, got {value['_partial_']!r}")
    yield from _node(value, signature, path, allow)
