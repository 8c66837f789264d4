"""The stages of a recipe: what its YAML says, with the rounds of repeated stages written out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import suggest
from posttrain.runs.overrides import read
from posttrain.runs.pipeline.lines import key_of

KEYS = ("name", "overrides", "inputs", "share", "repeat")
COMPOSED = (*KEYS, "seed", "config")  # of a stage that an earlier command line composed
LIST, IN_FULL = "stages=[sft,dpo]", """'stages=[{name: a, overrides: ["method=sft"]}]'"""  # what to write
NAME = re.compile(r"[A-Za-z0-9][\w-]*")
ROUNDING = 1e-9
OF_ALL = {"output_dir": "output_dir=DIR; stages lie in DIR/1_NAME, ...", "stages_dir": "stages_dir=DIR", "resume": "resume=never"}


@dataclass(frozen=True)
class Stage:
    """One stage before it is composed.

    family: its name in the recipe, which the rounds of a repeated stage share. lines: of the command line, for it alone.
    inputs: which earlier stage's artifact becomes what. config: complete, where an earlier command line composed it; seed: what it made the
    stage's seed, `+1` = one more than the pipeline's. round: from 0.
    """

    name: str
    family: str
    overrides: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    share: float | None = None
    config: Mapping[str, Any] | None = None
    seed: int | str | None = None
    round: int = 0


def read_recipe(nodes: Any, lines: Mapping[str, Sequence[str]], *, budget: bool = False) -> tuple[list[Stage], list[Problem]]:
    """The stages in order, and everything that is wrong with their names, inputs and shares.

    lines: of the command line, by stage. budget: whether the pipeline has one, which the stages share.
    """
    if not isinstance(nodes, list) or not nodes:
        return [], [Problem("stages", f"expected a list of stages, got {nodes!r}", f"{LIST}; posttrain list method shows recipes")]
    problems: list[Problem] = []
    stages: list[Stage] = []
    rest = {name: list(given) for name, given in lines.items()}
    for number, node in enumerate(_written_out(nodes), 1):
        if wrong := list(_malformed(node, number)):
            problems += wrong
            continue
        name = node["name"]
        stated, wrong = _with_settings(node, rest.get(name, []))
        rest[name] = [line for line in rest.get(name, []) if not _is_setting(line)]
        problems += [*wrong, *_bad_values(stated)]
        if not wrong:
            stages += _rounds(stated, rest, _handing_on(stages))
    problems += [*_names(stages), *_unknown_lines(stages, lines), *_pipelines_own(stages)]
    problems += _shares(stages) if budget else _shares_of_nothing(lines)
    return stages, problems


def _written_out(nodes: Sequence[Any]) -> list[Any]:
    """`sft` for short is a stage of that method which starts from the one before it."""
    full: list[Any] = []
    for node in nodes:
        before = full[-1].get("name") if full and isinstance(full[-1], dict) else None
        short = {"name": node, "overrides": [f"method={node}"], "inputs": {"policy": before} if before else {}}
        full.append(short if isinstance(node, str) else node)
    return full


def _malformed(node: Any, number: int) -> list[Problem]:
    """What keeps a stage from being read at all."""
    where = f"stages.{number - 1}"
    if not isinstance(node, dict):
        return [Problem(where, f"expected a stage, got {node!r}", '{name: sft, overrides: ["method=sft"]}')]
    name = node.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return [Problem(f"{where}.name", f"expected letters, digits, - and _, got {name!r}", "name: sft")]
    known = COMPOSED if "config" in node else KEYS
    unknown = [Problem(f"stage {name}: {key}", "unknown key of a stage", suggest.hint(str(key), KEYS)) for key in node if key not in known]
    overrides = node.get("overrides") or []
    if not isinstance(overrides, list) or not all(isinstance(line, str) for line in overrides):
        unknown.append(Problem(f"stage {name}: overrides", f"expected a list of overrides, got {overrides!r}", 'overrides: ["method=sft"]'))
    inputs = node.get("inputs") or {}
    return [*unknown, *([] if isinstance(inputs, dict) else [_no_inputs(name, inputs)])]


def _no_inputs(name: str, inputs: Any) -> Problem:
    return Problem(f"stage {name}: inputs", f"expected stages by input, got {inputs!r}", "inputs: {policy: sft}")


def _is_setting(line: str) -> bool:
    """Whether a line of a stage is about the stage, and not about its run."""
    return line.lstrip("+~").split("=", 1)[0].split(".")[0] in ("inputs", "share", "repeat")


def _with_settings(node: dict[str, Any], lines: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The stage with what the command line says of its inputs, share and repetitions."""
    node, problems = {**node, "inputs": dict(node.get("inputs") or {})}, []
    for line in filter(_is_setting, lines):
        override = read(line)
        if isinstance(override, Problem):
            problems.append(Problem(f"stage {node['name']}: {override.where}", override.message, override.hint))
            continue
        key, _, name = override.key_or_group.partition(".")
        value = None if override.is_delete() else override.value()
        if key == "inputs" and name:
            node["inputs"] = {**(node["inputs"] if isinstance(node["inputs"], dict) else {}), name: value}
        else:
            node[key] = value
    return node, problems


def _bad_values(node: Mapping[str, Any]) -> list[Problem]:
    """Shares and repetitions that are no such numbers, inputs that are no names."""
    name, share, repeat, inputs = node["name"], node.get("share"), node.get("repeat", 1), node["inputs"]
    problems = []
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
        problems.append(
            Problem(f"stage {name}: share", f"expected a part of the budget above 0 and up to 1, got {share!r}", "null = what is left")
        )
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        problems.append(Problem(f"stage {name}: repeat", f"expected a number of rounds, got {repeat!r}", "repeat: 3"))
    if not isinstance(inputs, dict):
        return [*problems, _no_inputs(name, inputs)]
    wrong = {key: value for key, value in inputs.items() if value is not None and not isinstance(value, str)}
    return problems + [
        Problem(f"stage {name}: inputs.{key}", f"expected the name of a stage, got {value!r}") for key, value in wrong.items()
    ]


def _handing_on(stages: Sequence[Stage]) -> dict[str, str]:
    """The stage that a name in `inputs` means: a repeated stage's last round."""
    return {stage.family: stage.name for stage in stages}


def _rounds(node: Mapping[str, Any], lines: Mapping[str, Sequence[str]], last: Mapping[str, str]) -> list[Stage]:
    """A stage once, or once a round: each but the first starts from the round before it."""
    repeat, name = node.get("repeat", 1), node["name"]
    given = node["inputs"] if isinstance(node["inputs"], dict) else {}
    inputs = {key: last.get(value, value) for key, value in given.items() if isinstance(value, str)}
    share = node.get("share")
    stage = Stage(
        name, name, tuple(node.get("overrides") or ()), tuple(lines.get(name, ())), inputs,
        share if isinstance(share, int | float) else None, node.get("config"), node.get("seed"),
    )  # fmt: skip
    if not isinstance(repeat, int) or repeat < 2:
        return [stage]
    names = [f"{name}_{number}" for number in range(1, repeat + 1)]
    return [
        replace(
            stage,
            name=own,
            lines=(*stage.lines, *lines.get(own, ())),
            inputs=inputs if number == 0 else {**inputs, "policy": names[number - 1]},
            share=None if stage.share is None else stage.share / repeat,
            round=number,
        )
        for number, own in enumerate(names)
    ]


def _names(stages: Sequence[Stage]) -> list[Problem]:
    """Names that are there twice, and inputs that no earlier stage makes."""
    names = [stage.name for stage in stages]
    problems = [
        Problem("stages", f"two stages are called {name}", "give one of them another name")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for number, stage in enumerate(stages):
        earlier = names[:number]
        known = {*earlier, *(other.family for other in stages[:number])}
        for key, source in stage.inputs.items():
            if source in known:
                continue
            where = f"stage {stage.name}: inputs.{key}"
            later = source in names or source in {other.family for other in stages}
            what = f"{source} is this stage itself" if source in (stage.name, stage.family) else f"{source} comes later"
            message = f"{what}, so this would be a cycle" if later else f"no stage is called {source}"
            problems.append(Problem(where, message, suggest.hint(source, earlier) if earlier else "the first stage has no earlier one"))
    return problems


def _unknown_lines(stages: Sequence[Stage], lines: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Overrides of stages that are not there."""
    known = list(dict.fromkeys(name for stage in stages for name in (stage.family, stage.name)))
    unknown = {name: given[0] for name, given in lines.items() if name not in known}
    return [Problem(f"stages.{name}.{line}", f"no stage is called {name}", suggest.hint(name, known)) for name, line in unknown.items()]


def _pipelines_own(stages: Sequence[Stage]) -> list[Problem]:
    """Keys of a stage that only the pipeline as a whole has."""
    given = [(stage.name, line) for stage in stages for line in (*stage.overrides, *stage.lines)]
    return [
        Problem(f"stage {name}: {line}", "stages have no such key of their own, the pipeline has one", OF_ALL[key_of(line)])
        for name, line in given
        if key_of(line) in OF_ALL
    ]


def _shares(stages: Sequence[Stage]) -> list[Problem]:
    """Shares of one budget come to all of it, and leave something to the stages that have none."""
    total, without = sum(stage.share or 0.0 for stage in stages), [stage.name for stage in stages if stage.share is None]
    if total > 1 + ROUNDING:
        return [Problem("stages", f"the shares of the budget sum to {total:.3g}, more than 1", "lower one")]
    if total > 1 - ROUNDING:
        hint = "lower a share, or give this stage one"
        return [Problem(f"stage {name}: share", "the other stages' shares are the whole budget: nothing is left", hint) for name in without]
    if stages and not without:
        message = f"the shares of the budget sum to {total:.3g}, so that the rest would stay unspent"
        return [Problem("stages", message, f"raise one, or stages.{stages[-1].name}.share=null: what is left")]
    return []


def _shares_of_nothing(lines: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Shares that the command line gives, where there is no budget."""
    given = [(name, line) for name, of_stage in lines.items() for line in of_stage if key_of(line) == "share"]
    return [
        Problem(f"stage {name}: share", f"{line} is a part of a budget, and there is none", "budget.flops=1e14") for name, line in given
    ]
