"""Command-line overrides: parsed one by one, sorted into group choices and values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from posttrain.errors import ConfigError, Problem

Verb = Literal["set", "add", "delete"]


STUDY = "study"  # the group that names several runs
LISTED = ("reward", "evaluation/suite")  # groups of which several options compose, each under its own name


@dataclass(frozen=True)
class Choice:
    """`model=nano`: an option of a config group; None = no option. `reward=[math,length]`: several of them, in a group of LISTED."""

    group: str
    option: str | tuple[str, ...] | None
    text: str

    @property
    def names(self) -> tuple[str, ...]:
        """The options chosen."""
        return () if self.option is None else (self.option,) if isinstance(self.option, str) else self.option


@dataclass(frozen=True)
class Value:
    """`optimizer.lr=1e-4`: a value for a dotted key. add: the user wrote `+`; delete: the user wrote `~`."""

    key: str
    value: Any
    verb: Verb
    text: str


@dataclass
class Parsed:
    """Overrides of one run in the order given, and what could not be read."""

    choices: list[Choice] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def parse(lines: Sequence[str], groups: Sequence[str]) -> Parsed:
    """Reads every override; `groups` decides which keys are group choices (`model.peft=lora` and `model/peft=lora` are the same)."""
    parsed = Parsed()
    for line in lines:
        override = read(line)
        if isinstance(override, Problem):
            parsed.problems.append(override)
        elif override.is_hydra_override():
            parsed.hydra.append(line)
        elif override.is_sweep_override():
            parsed.problems.append(
                Problem(
                    line, "several values are a sweep", "run them with -m; a list is written key=[a,b], a text with commas key='\"a,b\"'"
                )
            )
        else:
            _sort(override, groups, line, parsed)
    return parsed


def read(line: str) -> Override | Problem:
    """One override in Hydra's grammar, or what is wrong with it."""
    if "=" not in line and not line.startswith("~"):
        return Problem(line, "expected key=value", "see posttrain --help")
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException:
        key = line.split("=", 1)[0]
        return Problem(line, "cannot be read as key=value", f"quote special characters: {key}='\"...\"'")


def _sort(override: Override, groups: Sequence[str], line: str, parsed: Parsed) -> None:
    value = override.value()
    group = override.key_or_group.replace(".", "/")
    if group in LISTED and isinstance(value, list):
        parsed.choices.append(Choice(group, tuple(map(_name, value)), line))
        return
    if group in groups and not isinstance(value, dict | list):
        chosen = None if override.is_delete() or value is None else _name(value)
        several = () if chosen is None else (chosen,)
        parsed.choices.append(Choice(group, several if group in LISTED else chosen, line))
        return
    verb: Verb = "delete" if override.is_delete() else "add" if override.is_add() or override.is_force_add() else "set"
    parsed.values.append(Value(override.key_or_group.replace("/", "."), value, verb, line))


def _name(value: Any) -> str:
    """An option's name as text, also where YAML reads `true` or a number."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def expand(lines: Sequence[str], options_of: Callable[[str], list[str]]) -> list[dict[str, str]]:
    """Every combination of the values of a sweep, the last key changing fastest; one job is {key: override}.

    options_of: group -> its options, for `glob(...)`.

    Raises:
        ConfigError: an override that cannot be read, or an interval, which only a search can sample.
    """
    overrides = [read(line) for line in lines]
    problems = [override for override in overrides if isinstance(override, Problem)]
    good = [override for override in overrides if isinstance(override, Override)]
    problems += [
        Problem(str(item.input_line), "an interval has no list of values", "use range(a,b,step) or a,b,c")
        for item in good
        if _is_interval(item)
    ]
    if problems:
        raise ConfigError(problems)
    table = {item.get_key_element(): _alternatives(item, options_of) for item in good}
    lines_of = {item.get_key_element(): str(item.input_line) for item in good}
    if empty := [key for key, values in table.items() if not values]:
        raise ConfigError([Problem(lines_of[key], "no value matches, so the sweep has no run", f"posttrain list {key}") for key in empty])
    return [dict(zip(table, combination, strict=True)) for combination in itertools.product(*table.values())]


def _is_interval(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_discrete_sweep()


def _alternatives(override: Override, options_of: Callable[[str], list[str]]) -> list[str]:
    """The override once for each value it sweeps over."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        return [f"{key}={name}" for name in value.filter(options_of(override.key_or_group.replace(".", "/")))]
    if override.is_sweep_override():
        return [f"{key}={text}" for text in override.sweep_string_iterator()]
    return [str(override.input_line)]


def of_many_runs(parsed: Parsed) -> list[Problem]:
    """What of a command line is about several runs, where it is for one: settings of a sweep, and a study."""
    swept = [Problem(line, "belongs to a sweep", "add -m") for line in parsed.hydra]
    named = [choice.option for choice in parsed.choices if choice.group == STUDY and choice.option is not None]
    hint = "`posttrain study={0}` runs it; here give what one of its arms has, as method=..."
    return [*swept, *(Problem(f"study={name}", "is a study, which is many runs", hint.format(name)) for name in named)]
