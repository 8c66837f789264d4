"""From a recipe and a command line to one configuration in which every stage's own is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import options, suggest
from posttrain.runs.compose import Composed, compose_partly, compose_stage_again, is_below
from posttrain.runs.overrides import parse, read
from posttrain.runs.pipeline.inputs import INPUTS, entered, hands_on, placeholders
from posttrain.runs.pipeline.lines import effective, key_of, sorted_lines
from posttrain.runs.pipeline.recipe import IN_FULL, LIST, Stage, read_recipe
from posttrain.runs.pipeline.shares import unit_of

STORE = "outputs/stages"
NOTHING = (None, "false")  # options that choose none


@dataclass
class Attempt:
    """A stage composed with all lines that may be for it. refused: lines for all stages that do not suit this one, and why.

    doubted: those of them that could be composed, but break a rule.
    """

    stage: Stage
    lines: list[str]
    composed: Composed
    refused: dict[str, Problem] = field(default_factory=dict)
    doubted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Composer:
    """How a stage's lines become a config: by groups, or on top of the one that an earlier command line composed.

    bought: whether a budget says how long the stages of the recipe are.
    """

    config_dirs: Sequence[str | Path]
    groups: Sequence[str]
    bought: bool = False

    def compose(self, stage: Stage, lines: Sequence[str]) -> Composed:
        """The stage's own config, and what is wrong with its lines."""
        if stage.config is not None:
            return compose_stage_again(stage.config, lines, self.groups)
        return compose_partly(lines, config_dirs=self.config_dirs, stage=True)

    def lines(self, stage: Stage, general: Sequence[str]) -> list[str]:
        """The recipe's lines, those for all stages and those for this one; a later one wins."""
        given = [*general, *stage.lines]
        recipe = self._of_this_length(stage, {choice.group for choice in parse(given, self.groups).choices if choice.option not in NOTHING})
        return effective(recipe, given, {line: self._group(line) for line in [*recipe, *given]})

    def _of_this_length(self, stage: Stage, chosen: Set[str]) -> list[str]:
        """The recipe's lines, without a length where a budget or `debug` says how long the stage is. chosen: groups of given options."""
        if stage.config is not None or not (self.bought or "debug" in chosen):
            return list(stage.overrides)
        lines = [line for line in stage.overrides if key_of(line) != "max_steps"]
        return lines if {"debug", "experiment"} & chosen else [*lines, "max_steps=null"]  # also that of an experiment in the recipe

    def _group(self, line: str) -> str | None:
        choices = parse([line], self.groups).choices
        return choices[0].group if choices else None


def compose_pipeline(
    overrides: Sequence[str], recipe: Any, outer: Mapping[str, Any], *, config_dirs: Sequence[str | Path] = ()
) -> Composed:
    """The config of a pipeline: `stages` holds {name, inputs, share, config} for each; the other keys are the last stage's, to be compared
    by, and the pipeline's own.

    recipe: the `stages` of the method's option, or those of an earlier pipeline's config. outer: the method's name and what the groups say.
    """
    lines = sorted_lines(overrides)
    own, wrong = _own_keys(outer, [line for line in lines.own if key_of(line) != "stages"])
    budget, named = unit_of(own["budget"]) is not None, [line for line in lines.own if key_of(line) == "stages"]
    recipe, unread = _given_stages(named, recipe)
    stages, problems = ([], unread) if unread else read_recipe(recipe, lines.of_stage, budget=budget)
    composer = Composer(config_dirs, options.groups(options.search_path(config_dirs)), budget and not named)
    attempts = [_attempt(stage, lines.general, composer) for stage in stages]
    result = Composed({}, [*problems, *_for_nobody(attempts, lines.general)])
    seed = _seed(attempts, lines.general, outer)
    nodes = [_node(attempt, _suitable(attempt, attempts, lines.general, composer), result, seed) for attempt in attempts]
    result.problems = [
        *dict.fromkeys([*result.problems, *_wrong_inputs(nodes), *_decided_twice(stages, nodes), *_other_models(nodes), *wrong])
    ]
    given = {**own, "seed": seed, "method": {"name": outer["method"]["name"]}, "entering": None, "stages": nodes}
    result.config = {**_last(nodes), **given}
    return result


def _seed(attempts: Sequence[Attempt], general: Sequence[str], outer: Mapping[str, Any]) -> Any:
    """The pipeline's seed: what the command line says for all stages, else what its groups or an earlier config say."""
    given = [value.value for value in parse([line for line in general if _sets_seed(line)], ()).values if value.verb != "delete"]
    following = (attempt.composed.config for attempt in attempts if not any(map(_sets_seed, attempt.stage.lines)))
    resolved = [config["seed"] for config in following if "seed" in config]
    return (resolved or given)[0] if given else outer.get("seed")


def _sets_seed(line: str) -> bool:
    return key_of(line) == "seed"


def _given_stages(lines: Sequence[str], recipe: Any) -> tuple[Any, list[Problem]]:
    """What the command line says the stages are, else the recipe's; and what of it cannot be read."""
    problems = []
    for line in lines:
        override = read(line)
        if isinstance(override, Problem):
            problems.append(Problem(line, "cannot be read as a list of stages", f"{LIST}, or with each override in quotes {IN_FULL}"))
        elif override.is_sweep_override():
            problems.append(Problem(line, "several values are a sweep", f"stages in a row are a list: {LIST}"))
        else:
            recipe = None if override.is_delete() else override.value()
    return recipe, problems


def _attempt(stage: Stage, general: Sequence[str], composer: Composer) -> Attempt:
    """Composes a stage with everything, and finds out which of the lines for all stages are not for this one."""
    lines = composer.lines(stage, general)
    attempt = Attempt(stage, lines, composer.compose(stage, lines))
    own = {*stage.overrides, *stage.lines}
    attempt.refused = {p.where: p for p in attempt.composed.problems if p.where in general and p.where not in own}
    found = _against_rules(stage, attempt.composed) if general else []
    doubtful = {line for line in lines if line in general and line not in own and any(is_below(p.where, {key_of(line)}) for p in found)}
    if doubtful - attempt.refused.keys():
        without = _against_rules(stage, composer.compose(stage, [line for line in lines if line not in doubtful]))
        for line in doubtful - attempt.refused.keys():
            gone = [p for p in found if is_below(p.where, {key_of(line)}) and p not in without]
            attempt.refused |= {line: gone[0]} if gone else {}
            attempt.doubted |= {line} if gone else set()
    return attempt


def _against_rules(stage: Stage, composed: Composed) -> list[Problem]:
    """What is wrong with a stage's config as far as it can be said anywhere."""
    from posttrain.runs import rules
    from posttrain.runs.check import check

    if composed.problems and "method" not in composed.config:
        return []
    found = check(entered(composed.config, placeholders(stage.inputs)), rules=rules.PLAN)
    return found + _starts_twice(stage.inputs, composed.config)


def _starts_twice(inputs: Mapping[str, str], config: Mapping[str, Any]) -> list[Problem]:
    """A stage starts from one artifact."""
    if "policy" not in inputs or not config.get("entering"):
        return []
    return [Problem("entering", "the stage starts from an earlier one's artifact already", "leave out one of entering and inputs.policy")]


def _for_nobody(attempts: Sequence[Attempt], general: Sequence[str]) -> list[Problem]:
    """Lines for all stages that no stage can have."""
    if not attempts:
        return []
    lost = [line for line in general if all(line in attempt.refused and line not in attempt.doubted for attempt in attempts)]
    return [attempts[-1].refused[line] for line in lost]


def _suitable(attempt: Attempt, attempts: Sequence[Attempt], general: Sequence[str], composer: Composer) -> Composed:
    """The stage without the lines that suit others and not this one."""
    elsewhere = {line for line in attempt.doubted if any(line not in other.refused for other in attempts)}
    if not elsewhere:
        return attempt.composed
    composed = composer.compose(attempt.stage, [line for line in attempt.lines if line not in elsewhere])
    own = {*attempt.stage.overrides, *attempt.stage.lines}
    attempt.refused |= {p.where: p for p in composed.problems if p.where in general and p.where not in own}  # keys of a group that went
    return composed


def _node(attempt: Attempt, composed: Composed, result: Composed, seed: Any) -> dict[str, Any]:
    """The stage as it stands in the pipeline's config; its problems go to the result, under its name. seed: the pipeline's."""
    stage, config = attempt.stage, composed.config
    own = {*stage.overrides, *stage.lines}
    told = [p for p in composed.problems if p.where in own or p.where not in attempt.refused]
    result.problems += [Problem(prefixed(stage.name, p.where), p.message, p.hint) for p in told]
    result.broken |= {prefixed(stage.name, key) for key in composed.broken}
    told_seed, config = _seeded(stage, config, seed)
    inputs = {name: source for name, source in placeholders(stage.inputs).items() if name != "policy"}
    config = {**entered(config, inputs), "stages": None, "output_dir": None} if "method" in config else config
    return {"name": stage.name, "inputs": dict(stage.inputs), "share": stage.share, "seed": told_seed, "config": config}


def _seeded(stage: Stage, config: dict[str, Any], seed: Any) -> tuple[Any, dict[str, Any]]:
    """What a stage's seed is to the pipeline's, +0 or what a round adds, or a seed of its own; and the config with it."""
    own = config.get("seed")
    if any(map(_sets_seed, stage.lines)) or not isinstance(own, int) or not isinstance(seed, int):
        return own, config
    told = stage.seed if stage.seed is not None else f"+{stage.round}" if own == seed else own + stage.round
    return told, {**config, "seed": seed + int(told) if isinstance(told, str) else told}


def prefixed(stage: str, where: str) -> str:
    """Where a stage's problem is."""
    return f"stage {stage}: {where}"


def _wrong_inputs(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Inputs that a stage's method does not take, or that the named stage does not make."""
    by_name = {node["name"]: node for node in nodes}
    problems = []
    for node in nodes:
        for key, source in node["inputs"].items():
            where = prefixed(node["name"], f"inputs.{key}")
            if key not in INPUTS:
                problems.append(Problem(where, "unknown input", suggest.hint(key, INPUTS)))
            elif "method" in node["config"] and (reason := INPUTS[key].refusal(node["config"])) is not None:
                problems.append(Problem(where, reason, "leave the input out"))
            elif source in by_name and "method" in by_name[source]["config"]:
                made = hands_on(by_name[source]["config"])
                if made != INPUTS[key].made:
                    problems.append(Problem(where, f"stage {source} hands on {made}, and this has to be {INPUTS[key].made}"))
        twice = _starts_twice(node["inputs"], node["config"])
        problems += [Problem(prefixed(node["name"], problem.where), problem.message, problem.hint) for problem in twice]
    return problems


def _decided_twice(stages: Sequence[Stage], nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Keys that a stage's own lines set and an artifact that it takes decides."""
    problems = []
    for stage, node in zip(stages, nodes, strict=True):
        given = {key_of(line) for line in (*stage.overrides, *stage.lines)}
        for name, source in stage.inputs.items():
            keys = INPUTS[name].keys(node["config"]) if name in INPUTS and "method" in node["config"] else ()
            for key in keys:
                if key in given:
                    message = f"the stage takes the artifact of stage {source}, which decides it"
                    problems.append(Problem(prefixed(stage.name, key), message, f"leave out one of it and inputs.{name}"))
    return problems


def _other_models(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Stages that name a model and start from the artifact of another: of theirs only defaults would count, such as the learning rate."""
    models = {node["name"]: node["config"].get("model") or {} for node in nodes}
    problems = []
    for node in nodes:
        own, source = models[node["name"]], node["inputs"].get("policy")
        entering = models.get(source, {})
        if differs := [key for key in ("path", "architecture") if entering and own.get(key) and own[key] != entering.get(key)]:
            message = (
                f"{own.get('name')} is not the model of stage {source} ({entering.get('name')}), whose artifact the stage starts from: "
                f"its {' and '.join(differs)} is another"
            )
            hint = "name one model, with one architecture, for both; or leave out inputs.policy"
            problems.append(Problem(prefixed(node["name"], "model"), message, hint))
    return problems


def _last(nodes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The config of the last stage, by which pipelines are compared."""
    found: Mapping[str, Any] = nodes[-1]["config"] if nodes else {}
    return found


def _own_keys(outer: Mapping[str, Any], lines: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The pipeline's own keys but `stages`, and what is wrong with the lines that set them."""
    budget = {"flops": None, "tokens": None, "gpu_seconds": None}
    config: dict[str, Any] = {key: outer.get(key) for key in ("output_dir", "stages_dir", "resume")}
    config["resume"], config["budget"] = config["resume"] or "auto", dict(outer.get("budget") or budget)
    parsed = parse(lines, ())
    problems = list(parsed.problems)
    for value in parsed.values:
        key, _, below = value.key.partition(".")
        if key == "budget" and below in budget:
            config["budget"][below] = value.value
        elif key == "budget" or below:
            problems.append(Problem(value.text, f"there is no key '{value.key}'", suggest.hint(value.key, [f"budget.{k}" for k in budget])))
        else:
            config[key] = value.value
    store = config["stages_dir"] or STORE
    config["stages_dir"] = str(Path(store).expanduser().absolute()) if isinstance(store, str) else store
    return config, problems
