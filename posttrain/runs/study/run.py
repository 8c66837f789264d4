"""`posttrain study=NAME`: composes and checks every arm times every seed, runs what is missing, and compares the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from posttrain.errors import ConfigError, Problem, UserError, after_start
from posttrain.runs import options, report, suggest
from posttrain.runs.budget.amount import UNITS, is_little
from posttrain.runs.commands.table import Call
from posttrain.runs.group_config import hydra_config, quoted
from posttrain.runs.overrides import STUDY, Choice, Parsed, parse
from posttrain.runs.pipeline.lines import key_of
from posttrain.runs.study.arms import alike, unmeasured
from posttrain.runs.study.spec import LAUNCHER, Study, as_far_as_readable, of_the_study, study_problems
from posttrain.runs.sweep import master_of, rules_of, run_jobs
from posttrain.runs.sweep_jobs import Planned, checked_jobs


def run_study(call: Call) -> int:
    """Runs what is missing of a study and compares its arms, where some failed those that did not; returns the worst exit code.

    Raises:
        ConfigError: with everything that is wrong with the study and its runs; nothing was started then.
    """
    folders = options.search_path(call.config_dirs)
    seeded = [line for line in call.overrides if key_of(line) == "seed"]
    lines = [line for line in call.overrides if line not in seeded]
    parsed = parse(lines, options.groups(folders))
    node, budget = _nodes(call, parsed, folders)
    problems = [*parsed.problems, *of_the_study(seeded), *study_problems(node)]
    study = as_far_as_readable(node)
    if parsed.problems or study is None:
        raise ConfigError(problems)
    problems += _replaced(study, budget)
    folder = _folder(parsed, study)
    own = [] if any(line.startswith(LAUNCHER[0]) for line in parsed.hydra) else study.launcher
    master = master_of([*own, *parsed.hydra, f"hydra.sweep.dir={quoted(str(folder))}"], [], folders)
    jobs, found = checked_jobs(planned(study, budget, _of_runs(lines, parsed)), call, folder, rules_of(master), arms="study.arms")
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for job in jobs:
        arms.setdefault(job.arm, {})[job.config["seed"]] = job.config
    first = {name: next(iter(by_seed.values())) for name, by_seed in arms.items()}
    problems += [*found, *alike(arms), *(unmeasured(study, first) if len(first) == len(study.arms) else [])]
    if not problems or any(map(is_little, first.values())):
        from posttrain.runs.budget.check import overspent_at_once  # heavy: other mistakes are told without it

        problems += overspent_at_once(first, call.allow_targets)
    if problems:
        raise ConfigError(problems)
    code = run_jobs(jobs, call, master, folders, study)
    if not master.hydra.launcher.get("dry_run"):
        _compare(folder, code)
    return code


def _compare(folder: Path, code: int) -> None:
    """code: of the runs; where that is not 0, what cannot be compared is told and no error."""
    from posttrain.runs.comparison.command import report_on_finished, report_on_study  # reads arrays and tests: heavy

    if code == 0:
        with after_start():
            report_on_study(folder)
        return
    try:
        report_on_finished(folder)
    except UserError as error:
        report.show(error.problems, started=True)


def _nodes(call: Call, parsed: Parsed, folders: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """The `study` node with what the command line changes of it, and its budget as overrides.

    Raises ConfigError for a study that is not there.
    """
    if call.base is not None:
        raise ConfigError(Problem("--config", "a study composes its own configurations", "leave --config out"))
    name = next(choice.option for choice in reversed(parsed.choices) if choice.group == STUDY)
    names = [option.name for option in options.options(folders, STUDY)]
    if name not in names:
        raise ConfigError(Problem(f"study={name}", f"study has no option '{name}'", suggest.hint(str(name), names, most=40)))
    config = hydra_config([Choice(STUDY, name, f"study={name}")], folders)
    OmegaConf.set_struct(config, False)
    for value in parsed.values:
        if value.key.startswith(f"{STUDY}."):
            OmegaConf.update(config, value.key, value.value, merge=False, force_add=True)
    node = cast(dict[str, Any], OmegaConf.to_container(config.get(STUDY) or OmegaConf.create({}), resolve=True))
    amounts = {unit: config.budget[unit] for unit in UNITS if config.budget[unit] is not None}
    replaced = any(value.key.startswith("budget.") for value in parsed.values)
    return node, [] if replaced else [f"budget.{unit}={amount}" for unit, amount in amounts.items()]


def _replaced(study: Study, budget: Sequence[str]) -> list[Problem]:
    """Lines of arms in place of which the study's budget would stand."""
    units = {key_of(line) for line in budget}
    lines = {"study.common": study.common, **{f"study.arms.{name}": some for name, some in study.arms.items()}}
    hint = "leave it out, or the budget beside the study, so that each arm has its own"
    return [
        Problem(where, f"sets {key_of(line)}, and so does the study for all arms", hint)
        for where, some in lines.items()
        for line in some
        if key_of(line) in units
    ]


def _folder(parsed: Parsed, study: Study) -> Path:
    given = [value.value for value in parsed.values if value.key == "output_dir"]
    return Path(given[-1]).expanduser().absolute() if given else Path("outputs/studies", study.name).absolute()


def _of_runs(lines: Sequence[str], parsed: Parsed) -> list[str]:
    """What of the command line goes to every run."""
    own = {choice.text for choice in parsed.choices if choice.group == STUDY} | set(parsed.hydra)
    own |= {value.text for value in parsed.values if value.key == "output_dir" or value.key.startswith(f"{STUDY}.")}
    return [line for line in lines if line not in own]


def planned(study: Study, budget: Sequence[str], given: Sequence[str]) -> list[Planned]:
    """Every arm with every seed. given: overrides of the command line, which win over the study's."""
    return [
        Planned(f"{arm}/seed={seed}", arm, tuple(last_wins([*study.common, *lines, *budget, *given, f"seed={seed}"])))
        for arm, lines in study.arms.items()
        for seed in study.seeds
    ]


def last_wins(lines: Sequence[str]) -> list[str]:
    """The overrides without those that a later one of the same key replaces."""
    latest: Mapping[str, int] = {key_of(line): place for place, line in enumerate(lines)}
    return [line for place, line in enumerate(lines) if latest[key_of(line)] == place]
