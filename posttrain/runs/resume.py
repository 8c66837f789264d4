"""Whether a folder's run is continued, and from where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.runs import checkpoint
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.files import write_atomic

CONFIG, RESULT = "config.yaml", "result.json"
# Which value of a key that is new computes what was computed before it is known to nobody: a default may have come with other numbers.
OTHER_VERSION = (
    "if another version of posttrain began the run, finish it with that version; else give what it was given, another output_dir, or "
    "resume=never to start over"
)
ELSEWHERE = "choose another output_dir, or resume=never to set aside what is there"

ANEW = "anew"  # key of a pipeline that makes its stages anew: the command that it is part of, which makes each of them once

# What may change between a run and its continuation: where and how it computes, how often it reports, how long it goes on.
FREE = (
    "hardware", "precision", "max_tokens", "max_steps", "epochs", "budget", "checkpoint", "log", "validate", "evaluation", "tracking",
    "resume", "output_dir", "stages_dir", "model.layout", "model.attention", "model.gradient_checkpointing", "model.compile",
    "data.workers", "data.cache_dir", ANEW,
)  # fmt: skip
# What a checkpoint's weights and optimizer states depend on; these hold the optimizer's rates too.
FITTING = (
    "method._target_", "optimizer", "model.architecture", "model.peft.kind", "model.peft.r", "model.peft.targets",
    "model.peft.target_parameters", "model.peft.modules_to_save",
)  # fmt: skip

END = ("max_steps", "epochs", "budget")  # what says where a run ends

# What of this changes the numbers that a run comes to, or what they mean: a run that is compared with others is to be as it is asked for.
OF_NUMBERS = (
    "precision", "max_steps", "epochs", "budget", "validate.max_examples", "validate.at_start", "validate.at_end", "evaluation.exact_match",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where a run begins. state: what Lightning loads, None for the beginning. step: optimizer steps already done.
    finished: nothing is left to do. ends: after how many examples the run ended before, see `posttrain.data.plan.StepPlan`.
    """

    state: Path | None = None
    step: int = 0
    finished: bool = False
    ends: tuple[int, ...] = ()


def open_folder(config: dict[str, Any], folder: Path, *, more: Callable[[dict[str, Any]], Sequence[Problem]] = lambda config: ()) -> Start:
    """Decide how a run starts in `folder` and write its config.yaml. For the process that leads, before ranks exist.

    resume=auto continues the folder's own run from its newest checkpoint, or from the start if it has none. resume=never moves what
    the folder holds to `previous-N/`. Raises ConfigError if the folder's run had another configuration, or none that is still there (one
    that was refused before it measured anything does not count), or if `resume` names a run whose state does not fit into this one.

    more: what else may keep a run from going on; nothing is written then.
    """
    old = folder / CONFIG
    if config["resume"] == "never":
        set_aside(folder)
    elif old.is_file():
        there = _config_of(folder)
        if (has_begun(folder) or not config.keys() <= there.keys()) and (problems := list(differences(there, config))):
            raise ConfigError(problems)
    elif has_begun(folder):
        raise ConfigError(Problem("output_dir", f"{folder} holds a run without its {CONFIG}: is it this one?", f"put it back, {ELSEWHERE}"))
    start = find_start(config, folder)
    goes_on = start.state is not None and not start.finished
    if goes_on and (problems := [*_unfit(start, config), *_overspent(folder, config), *more(config)]):
        raise ConfigError(problems)
    if not start.finished:
        write_atomic(old, as_yaml(config))
    elif end_of(there := _config_of(folder)) != end_of(config):  # a longer run was asked for, and never began
        write_atomic(old, as_yaml({**there, **end_of(config)}))
    return start


def has_begun(folder: Path) -> bool:
    """Whether a run in the folder came as far as a line of metrics or a checkpoint."""
    metrics = folder / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or checkpoint.latest(folder / "checkpoints") is not None


def _config_of(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder. Raises ConfigError where the folder holds something else."""
    try:
        content = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if isinstance(content, dict):
        return content
    raise ConfigError(Problem("output_dir", f"{folder / CONFIG} is not the configuration of a run", ELSEWHERE))


def find_start(config: Mapping[str, Any], folder: Path) -> Start:
    """The checkpoint that a run in `folder` continues from; changes nothing, so that every rank finds the same."""
    own = checkpoint.latest(folder / "checkpoints")
    if own is not None:  # also where the run began from another's checkpoint: it continues its own
        return Start(_sound(own), own.step, _finished(folder, config, own.step), own.ends)
    if config["resume"] in ("auto", "never"):
        return Start()
    found = _given(Path(os.path.expanduser(config["resume"])))
    return Start(_sound(found), found.step, ends=found.ends)


def _unfit(start: Start, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a checkpoint cannot be gone on from. Reads all of it, which the process that leads does once."""
    assert start.state is not None
    found = checkpoint.Checkpoint(start.state.parent, start.step)
    if corruption := found.corruption:
        hint = f"remove {found.path} to continue from the one before it"
        yield Problem("resume", f"the checkpoint {found.path} is damaged: {corruption}", hint)
    if config["max_steps"] is not None:
        yield from past_the_end(start, config, config["max_steps"])
    yield from _strangers(start.state, config)


def past_the_end(start: Start, config: Mapping[str, Any], last: int) -> Iterator[Problem]:
    """What is wrong where a run would begin behind its own last step: it would train nothing, and hand on what is not this run's."""
    if start.state is None or start.step <= last:
        return
    if start.state.absolute().parents[2] == Path(config["output_dir"]).absolute():
        whose, hint = "the run in output_dir has come to", f"raise it, {ELSEWHERE}"
    else:
        whose, hint = "the checkpoint that resume names is of", "raise it"
    given = [f"budget.{unit}" for unit, amount in (config["budget"] or {}).items() if amount is not None]
    key = "max_steps" if config["max_steps"] == last else next(iter(given), "epochs")
    yield Problem(key, f"{whose} step {start.step}, and this run ends at {last}", hint)


def _strangers(state: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys in which the run of a checkpoint had another model or optimizer, as far as its config.yaml is beside it."""
    run = state.absolute().parents[2]
    if not (run / CONFIG).is_file():
        return
    there = _config_of(run)
    old, new = dict(_flat(there)), dict(_flat(config))
    random = all(one.get("model.weights") == "random" and not one.get("entering") for one in (old, new))
    keys = (key for key in sorted(old.keys() | new.keys()) if any(key == part or key.startswith(f"{part}.") for part in FITTING))
    for key in keys:
        if old.get(key) != new.get(key) and (random or not key.startswith("model.architecture")):
            message = f"the run that resume names has {old.get(key)!r}, this command {new.get(key)!r}"
            yield Problem(key, message, "give the same value, or start from its artifact: model=hf model.path=RUN/artifact resume=auto")


def _sound(found: checkpoint.Checkpoint) -> Path:
    if found.damage:
        hint = f"remove {found.path} to continue from the one before it"
        raise ConfigError(Problem("resume", f"the checkpoint {found.path} is damaged: {found.damage}", hint))
    return found.state


def _given(path: Path) -> checkpoint.Checkpoint:
    """A checkpoint named by its folder, by a run's folder, or by a folder of checkpoints."""
    for folder in (path.parent, path, path / "checkpoints"):
        for found in reversed(checkpoint.checkpoints(folder)):
            if folder != path.parent or found.path == path:
                return found
    raise ConfigError(Problem("resume", f"{path} holds no complete checkpoint", "give RUN, RUN/checkpoints or RUN/checkpoints/step-N"))


def _overspent(folder: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    """A budget that the folder's run has spent already, where it was given a larger one."""
    before = (_past(folder) or {}).get("budget")
    now = (config["budget"] or {}).get(before["unit"]) if before else None
    if before and now is not None and now < min(before["asked"], before["spent"]):
        message = f"the run in output_dir has spent {before['spent']:.6g}, and this command gives it {now:.6g}"
        yield Problem(f"budget.{before['unit']}", message, f"raise it, {ELSEWHERE}")


def _finished(folder: Path, config: Mapping[str, Any], step: int) -> bool:
    past = _past(folder)
    if past is None:
        return False
    asked = past.get("end") or end_of(_config_of(folder))  # results that were written before they held it
    return bool(past["status"] == "finished" and past["steps"] == step and asked == end_of(config))


def end_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run is to end, as result.json keeps it: config.yaml has what the newest command asked for, whether it got there or not."""
    return {key: config.get(key) for key in END}


def _past(folder: Path) -> dict[str, Any] | None:
    """What the folder's run came to; None where it has not ended, or its record is damaged: the checkpoints then say where it is."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, counted: Sequence[str] = ()) -> Iterator[Problem]:
    """The keys in which two configurations describe different runs. counted: those that count although a run may change them."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and (not is_below(key, FREE) or is_below(key, counted)):
            has, wants = (repr(found[key]) if key in found else "no such key" for found in (old, new))
            hint = "give the same value to continue it, another output_dir, or resume=never"
            yield Problem(
                key, f"the run in output_dir has {has}, this command {wants}", hint if key in old and key in new else OTHER_VERSION
            )


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_aside(folder: Path) -> None:
    """Move everything a run left in `folder` to its `previous-N`, so that starting over loses nothing."""
    left = [path for path in folder.iterdir() if not path.name.startswith("previous-") and path.name != ".lock"]
    if not (folder / CONFIG).is_file() and not has_begun(folder):
        return
    numbers = [int(path.name.removeprefix("previous-")) for path in folder.glob("previous-*") if path.name[9:].isdecimal()]
    number = 1 + max(numbers, default=0)  # earlier ones may have been removed
    target = folder / f"previous-{number}"
    target.mkdir()
    for path in left:
        _move(path, target / path.name)


def _move(path: Path, target: Path) -> None:
    """Links go on pointing to where they do."""
    if not path.is_symlink():
        shutil.move(str(path), target)
        return
    target.symlink_to(os.path.relpath(path.resolve(), target.parent))
    path.unlink()


def of_command(config: dict[str, Any], command: str) -> dict[str, Any]:
    """A run of a command that has several, to which each stage that pipelines make anew is made once."""
    return {**config, ANEW: command} if config.get("stages") and config["resume"] == "never" else config
