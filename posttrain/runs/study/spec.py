"""What a study is, read from its configuration, with everything that is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from posttrain.errors import ConfigError, Problem
from posttrain.runs import suggest
from posttrain.runs.pipeline.lines import key_of

Better = Literal["auto", "higher", "lower"]
KEYS = ("name", "arms", "seeds", "common", "launcher", "metric", "better", "smallest")
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")
SMALLEST = 0.01
FOLDER_NAME = re.compile(r"[\w+-][\w.,=+-]*")
# Keys of a run that its place among arms and seeds decides, and what is written instead
OF_THE_STUDY = {"seed": "study.seeds=[{}]", "output_dir": "output_dir=DIR, the study's"}


@dataclass(frozen=True)
class Study:
    """arms: overrides by the arm's name. seeds: each arm is run with every one. common: overrides of all arms, before their own.

    launcher: choice and options of a launcher, unless the command line chooses one. metric: what decides, as result.json names it; None =
    the first alike in all runs. better: higher, lower, or auto, by the metric's name. smallest: the smallest difference that matters.
    """

    name: str
    arms: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    common: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    metric: str | None = None
    better: Better = "auto"
    smallest: float = SMALLEST


def read_study(node: Mapping[str, Any]) -> Study:
    """The study of a config's `study` node. Raises ConfigError with every problem of it."""
    if problems := list(study_problems(node)):
        raise ConfigError(problems)
    given = {key: node[key] for key in ("metric", "better", "smallest") if node.get(key) is not None}
    arms = {str(name): tuple(lines or ()) for name, lines in node["arms"].items()}
    common, launcher = (tuple(node.get(key) or ()) for key in ("common", "launcher"))
    return Study(str(node["name"]), arms, tuple(node["seeds"]), common, launcher, **given)


def as_far_as_readable(node: Mapping[str, Any]) -> Study | None:
    """The study of a `study` node that may have problems with its seeds or keys, so that those of its arms can be told as well; None
    where it has others."""
    seeds = node.get("seeds")
    whole = [seed for seed in seeds if isinstance(seed, int) and not isinstance(seed, bool)] if isinstance(seeds, list) else []
    mended = {**{key: value for key, value in node.items() if key in KEYS}, "seeds": list(dict.fromkeys(whole)) or [0]}
    return None if any(study_problems(mended)) else read_study(mended)


def study_problems(node: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a `study` node by itself."""
    for key in node:
        if key not in KEYS:
            yield Problem(f"study.{key}", "unknown key", suggest.hint(str(key), KEYS))
    if not _is_folder(node.get("name")):
        yield Problem("study.name", f"expected a name that can be a folder's, got {node.get('name')!r}")
    yield from _arm_problems(node.get("arms"))
    yield from _seed_problems(node.get("seeds"))
    if not _is_lines(node.get("common") or []):
        yield Problem("study.common", "expected a list of overrides, key=value each")
    else:
        yield from of_the_study(node.get("common") or [], "study.common")
    if not _is_lines(node.get("launcher") or []) or not all(line.startswith(LAUNCHER) for line in node.get("launcher") or []):
        yield Problem("study.launcher", "expected a list such as [hydra/launcher=slurm, hydra.launcher.partition=gpu]")
    if node.get("metric") is not None and not isinstance(node["metric"], str):
        yield Problem("study.metric", f"expected the name of a metric, got {node['metric']!r}")
    if node.get("better", "auto") not in get_args(Better):
        yield Problem("study.better", f"expected auto, higher or lower, got {node['better']!r}")
    smallest = node.get("smallest", SMALLEST)
    if isinstance(smallest, bool) or not isinstance(smallest, int | float) or not smallest > 0:
        yield Problem("study.smallest", f"expected a number above 0, got {smallest!r}", "the smallest difference that matters")


def _arm_problems(arms: Any) -> Iterator[Problem]:
    if not isinstance(arms, Mapping) or not arms:
        yield Problem("study.arms", "a study needs arms", "study.arms: {NAME: [overrides], ...}")
        return
    for name, lines in arms.items():
        where = f"study.arms.{name}"
        if not _is_folder(name):
            yield Problem(where, "an arm's name is a folder's: letters, digits and _ . , = + -")
        if not _is_lines(lines or []):
            yield Problem(where, f"expected a list of overrides, key=value each, got {lines!r}")
        else:
            yield from of_the_study(lines or [], where)


def of_the_study(lines: Sequence[str], where: str | None = None) -> Iterator[Problem]:
    """Overrides of keys that the study gives to each run. where: what holds the lines; None = the command line, where each is its own."""
    for line in lines:
        key = key_of(line)
        if key in OF_THE_STUDY:
            value = line.partition("=")[2].strip().strip("[]") or "1,2"
            yield Problem(where or line, f"sets {key} itself, which the study gives to each run", OF_THE_STUDY[key].format(value))


def _seed_problems(seeds: Any) -> Iterator[Problem]:
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        yield Problem("study.seeds", f"expected a list of whole numbers, got {seeds!r}", "study.seeds=[1,2,3]")
        return
    if twice := [str(seed) for seed, count in Counter(seeds).items() if count > 1]:
        yield Problem("study.seeds", f"{', '.join(twice)} given more than once: the same run would count twice", "give each seed once")


def _is_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _is_folder(name: Any) -> bool:
    return isinstance(name, str) and FOLDER_NAME.fullmatch(name) is not None
