"""Finds every mistake in a configuration before anything heavy is imported, read or written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.compose import compose_partly, is_below
from posttrain.runs.rules import HERE, Rule
from posttrain.runs.validate import validate


def check(config: dict[str, Any], *, allow_targets: Collection[str] = (), rules: Sequence[Rule] = HERE) -> list[Problem]:
    """Every problem of a composed configuration: names, types, targets, then the rules over several keys.

    allow_targets: packages the user lets configs name in `_target_` besides the built-in list.
    rules: what must hold besides; `rules.PLAN` for a plan, `rules.HERE` for a run that starts now.
    """
    if config.get("stages") is not None:
        from posttrain.runs.pipeline.check import pipeline_problems

        return pipeline_problems(config, allow_targets=allow_targets, rules=rules)
    problems = validate(config, allow=allow_targets)
    broken = {problem.where for problem in problems}
    sound = [rule for rule in rules if not any(_overlap(key, place) for key in rule.reads for place in broken)]
    return problems + [problem for rule in sound for problem in rule.problems(config, allow_targets)]


def _overlap(one: str, other: str) -> bool:
    return is_below(one, {other}) or is_below(other, {one})


def compose_and_check(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str | Path] = (),
    base: Path | None = None,
    allow_targets: Collection[str] = (),
    rules: Sequence[Rule] = HERE,
) -> dict[str, Any]:
    """The resolved configuration of a command line, checked.

    Raises:
        ConfigError: with the problems of the composition and of the values together.
    """
    composed = compose_partly(overrides, config_dirs=config_dirs, base=base)
    found = check(composed.config, allow_targets=allow_targets, rules=rules)
    problems = [*composed.problems, *(problem for problem in found if not is_below(problem.where, composed.broken))]
    if problems:
        raise ConfigError(problems)
    return composed.config
