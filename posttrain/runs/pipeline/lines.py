"""The command line of a pipeline, sorted: what is the pipeline's own, what goes to all stages, what to one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OWN = ("output_dir", "stages_dir", "resume", "budget", "stages")  # keys of the pipeline itself; the first part of their names
OF_A_STAGE = re.compile(r"(~|\+\+|\+)?stages[./]([^./=@]+)[./](.+)", re.DOTALL)


@dataclass
class Lines:
    """own: of the pipeline. general: for every stage that they suit. of_stage: by stage, without `stages.NAME.`."""

    own: list[str] = field(default_factory=list)
    general: list[str] = field(default_factory=list)
    of_stage: dict[str, list[str]] = field(default_factory=dict)


def key_of(line: str) -> str:
    """The dotted key that an override is about."""
    return line.split("=", 1)[0].split("@", 1)[0].strip().lstrip("+~").replace("/", ".")


def is_of_a_stage(line: str) -> bool:
    """Whether it is `stages.NAME.KEY=VALUE`."""
    return OF_A_STAGE.fullmatch(line) is not None


def sorted_lines(overrides: Sequence[str]) -> Lines:
    """The overrides by whom they are for; the choice of the method, which made this a pipeline, is for nobody."""
    found = Lines()
    for line in overrides:
        if match := OF_A_STAGE.fullmatch(line):
            found.of_stage.setdefault(match[2], []).append((match[1] or "") + match[3])
        elif key_of(line).split(".")[0] in OWN:
            found.own.append(line)
        elif key_of(line) != "method":
            found.general.append(line)
    return found


def effective(recipe: Sequence[str], given: Sequence[str], groups: Mapping[str, str | None]) -> list[str]:
    """A stage's overrides without those that a later one replaces: another option of the same group, and, where the command line chooses an
    option, the recipe's keys below that group.

    groups: the config group that a line chooses an option of; None for a value.
    """
    chosen = [group for line in given if (group := groups[line]) is not None]
    kept = [line for line in recipe if not any(key_of(line).startswith(f"{group.replace('/', '.')}.") for group in chosen)]
    lines = list(dict.fromkeys([*kept, *given]))
    last = {groups[line] or line: line for line in lines}
    return [line for line in lines if last[groups[line] or line] == line]
