"""What is wrong with the terms of a weighted loss (`method.loss.terms`), found before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import suggest
from posttrain.runs.annotations import fits, in_words
from posttrain.runs.options import config_dir, options
from posttrain.runs.ranges import RANGES, AtLeastZero
from posttrain.runs.validate import node_problems

MODULE = "posttrain.functional.preference."
WEIGHTED = f"{MODULE}weighted"
KEY = "method.loss.terms"


def terms_are_losses(config: dict[str, Any]) -> Iterator[Problem]:
    """Each term names a pair loss, and gives it a weight, or options that are its own and in range."""
    loss = config["method"].get("loss")
    if not isinstance(loss, dict) or loss.get("_target_") != WEIGHTED or not isinstance(loss.get("terms"), dict):
        return
    if not loss["terms"]:
        yield Problem(KEY, "a weighted loss needs its losses", "method.loss.terms={sigmoid:0.8,bco:0.2}")
    known = [option.name for option in options((config_dir(),), "method/loss") if MODULE in option.path.read_text(encoding="utf-8")]
    for name, term in loss["terms"].items():
        if name not in known or name == "weighted":
            valid = [f"{KEY}.{other}" for other in known if other != "weighted"]
            yield Problem(f"{KEY}.{name}", "there is no such pair loss", suggest.hint(f"{KEY}.{name}", valid, most=len(valid)))
        else:
            yield from _term(f"{KEY}.{name}", name, term if isinstance(term, dict) else {"weight": term})


def _term(path: str, name: str, term: dict[str, Any]) -> Iterator[Problem]:
    weight = term.get("weight", 1.0)
    if not fits(weight, AtLeastZero):
        yield Problem(f"{path}.weight" if "weight" in term else path, f"expected {in_words(AtLeastZero)}, got {weight!r}")
    given = {key: value for key, value in term.items() if key != "weight"}
    wrong = list(node_problems({"_target_": MODULE + name, **given}, path))
    yield from wrong
    for key, value in given.items():
        annotation = RANGES["method.loss"].get(key)
        if annotation is not None and not fits(value, annotation) and not any(problem.where == f"{path}.{key}" for problem in wrong):
            yield Problem(f"{path}.{key}", f"expected {in_words(annotation)}, got {value!r}")
