"""Rules over several keys, each a function from a config whose types are right to the problems it sees.

PLAN holds for any config, CLUSTER for one that several machines which share this file system may run, ELSEWHERE for one that a single
other machine runs, HERE for one that runs here now, TASK inside a cluster's job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, Problem, UserError
from posttrain.runs import (
    adapter_rules,
    context_rules,
    float8_rules,
    machine_rules,
    online_rules,
    strategy_rules,
    suggest,
    suite_rules,
    tensor_rules,
    zero_rules,
)
from posttrain.runs.budget.amount import budget_is_one, budget_of, schedule_fits_budget
from posttrain.runs.loss_terms import terms_are_losses
from posttrain.runs.ranges import numbers_are_in_range
from posttrain.runs.reward_ranges import rewards_are_in_range
from posttrain.runs.separators import steps_are_parted_alike
from posttrain.runs.signatures import read_signature
from posttrain.runs.source import class_constant

Config = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """find: config -> problems. reads: the keys it relies on; it runs only if their own types are right.

    targets: whether `find` also takes the packages that configs may name, as `allow_targets`.
    """

    find: Callable[..., Iterator[Problem]]
    reads: tuple[str, ...]
    targets: bool = False

    def problems(self, config: Config, allow_targets: Collection[str]) -> Iterator[Problem]:
        """What it finds."""
        return self.find(config, allow_targets=allow_targets) if self.targets else self.find(config)


LONGEST_NAME = 255  # of a file or folder, bytes; on every common file system
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")


def has_an_end(config: Config) -> Iterator[Problem]:
    """A run needs a number of steps or of epochs."""
    if config["max_steps"] is None and config["epochs"] is None and budget_of(config) is None:
        yield Problem("max_steps", "neither max_steps nor epochs nor a budget says when to stop", "set max_steps=1000 or epochs=1")


def weights_exist(config: Config) -> Iterator[Problem]:
    """Pretrained weights need a place they come from, random ones an architecture; a folder that is named must exist."""
    model = config["model"]
    path, weights = model["path"], model["weights"]
    if weights == "random" and model["architecture"] is None and path is None:
        yield Problem(
            "model.architecture",
            "weights=random needs an architecture",
            "name a model that has one (posttrain list model), or model.path=DIR",
        )
    if weights == "pretrained" and path is None:
        yield Problem(
            "model.path",
            f"model={model['name']} has no pretrained weights without a path",
            "set model.path=DIR_OR_HUB_ID or model.weights=random",
        )
    yield from _existing("model.path", path)
    yield from _existing("model.tokenizer", model["tokenizer"])


def _existing(key: str, path: str | None) -> Iterator[Problem]:
    """A text that can only be a local path must exist; `owner/name` may be a hub id."""
    if path is None or exists(path) or not path.startswith((".", "/", "~")):
        return
    yield Problem(key, f"no such file or folder: {path}", near_file(path))


def suites_can_run(config: Config) -> Iterator[Problem]:
    """The suites that the run is measured by at its end."""
    yield from suite_rules.suites_can_run(config, _existing)


def resume_exists(config: Config) -> Iterator[Problem]:
    """`resume=PATH` must name a checkpoint that is there."""
    resume = config["resume"]
    if resume not in ("auto", "never") and not exists(resume):
        near = suggest.nearest(resume, ("auto", "never"))
        yield Problem(
            "resume",
            f"expected auto, never or an existing checkpoint, got {resume!r}",
            f"did you mean {near}?" if near else near_file(resume),
        )


def data_is_consistent(config: Config) -> Iterator[Problem]:
    """The data node as the data code reads it."""
    from posttrain.data.settings import read_settings

    try:
        read_settings(config["data"])
    except UserError as error:
        yield from error.problems


def data_files_exist(config: Config) -> Iterator[Problem]:
    """Data that can only be local files must be there, and found as the data code finds them."""
    from posttrain.data.sources import find_files

    for key, text in _data_paths(config["data"]):
        try:
            if is_local_data(text):
                find_files(text)
        except DataError as error:
            found = error.problems[0]
            gone = not exists(text) and not any(sign in text for sign in "*?[")
            yield Problem(key, f"no such file: {text}", near_file(text)) if gone else Problem(key, f"{text}: {found.message}", found.hint)


def exists(text: str) -> bool:
    """Whether a path is there. One that cannot be (too long, the home of nobody) is not, where pathlib would raise."""
    return os.path.exists(os.path.expanduser(text))


def _data_paths(data: Config) -> Iterator[tuple[str, str]]:
    places = {f"data.{key}": data.get(key) for key in ("train", "val")}
    places |= {f"data.sources[{i}].path": source.get("path") for i, source in enumerate(data.get("sources") or [])}
    for key, value in places.items():
        yield from ((key, item) for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def is_local_data(text: str) -> bool:
    """Whether a data source is a path rather than a hub id: by how it starts, or by a data file's ending."""
    return text.startswith((".", "/", "~")) or text.endswith(DATA_SUFFIXES)


def near_file(text: str) -> str:
    """The nearest name beside a file that is not there, or the part of its path that does not exist."""
    path = Path(os.path.expanduser(text))
    parent = path.parent
    if not os.path.isdir(parent):
        missing = next((folder for folder in reversed(path.parents) if not os.path.exists(folder)), parent)
        return f"the folder {missing} does not exist"
    near = suggest.nearest(path.name, [item.name for item in parent.iterdir()])
    return f"did you mean {parent / near}?" if near else f"looked in {parent.resolve()}"


def output_is_writable(config: Config) -> Iterator[Problem]:
    """The run's folder must be one, or be creatable."""
    if config["output_dir"] is None:
        return
    named = os.path.expanduser(config["output_dir"])
    path = Path(named).absolute()
    existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if named.startswith("~"):
        yield Problem("output_dir", f"there is no user {Path(named).parts[0][1:]}", "choose another output_dir")
    elif any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        yield Problem("output_dir", f"a name in the path is longer than {LONGEST_NAME} bytes", "choose another output_dir")
    elif not existing.is_dir():
        yield Problem("output_dir", f"{existing} is a file, not a folder", "choose another output_dir")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Problem("output_dir", f"no permission to write in {existing}", "choose another output_dir")


def loss_fits_method(config: Config) -> Iterator[Problem]:
    """A loss takes, by position, exactly the tensors the method passes (`loss_inputs` of the method's class)."""
    method = config["method"]
    loss = method.get("loss")
    if not isinstance(loss, dict) or "_target_" not in loss or "_target_" not in method:
        return
    passed = class_constant(method["_target_"], "loss_inputs")
    signature = read_signature(loss["_target_"])
    if isinstance(passed, tuple) and signature is not None and signature.positional != passed:
        takes = ", ".join(signature.positional)
        yield Problem(
            "method.loss", f"{loss['_target_']} takes ({takes}), this method passes ({', '.join(passed)})", "posttrain list method/loss"
        )


def reference_is_there(config: Config) -> Iterator[Problem]:
    """A reference that is the policy without its adapters needs adapters whose base is the model that entered the stage."""
    peft, kind = config["model"].get("peft"), config["method"].get("reference")
    if config["method"].get("reference_update_every") and kind in ("adapters", "cached"):
        yield Problem("method.reference_update_every", f"reference={kind} cannot move", "method.reference=copy")
    yield from _mix_without_moves(config["method"])
    if config["method"].get("reference_cache") is not None and kind != "cached":
        yield Problem("method.reference_cache", f"is of no use with reference={kind}", "method.reference=cached")
    if kind != "adapters":
        return
    if peft is None:
        yield Problem("method.reference", "adapters needs a policy with adapters", "add model/peft=lora, or method.reference=copy")
    elif peft.get("kind") == "pissa":
        yield Problem("method.reference", "PiSSA moves weights out of the base, which is another model without it", "method.reference=copy")


def _mix_without_moves(method: Config) -> Iterator[Problem]:
    """How far the reference moves is of no use where it never does."""
    signature = read_signature(method.get("_target_", ""))
    known = None if signature is None else signature.parameters.get("reference_update_mix")
    if known is not None and method.get("reference_update_every") is None and method.get("reference_update_mix") != known.default:
        message = "is of no use: without reference_update_every the reference never moves"
        yield Problem("method.reference_update_mix", message, "set method.reference_update_every=STEPS, or leave the mix out")


def attributes_agree(config: Config) -> Iterator[Problem]:
    """A reward head reads the attributes that the data were tokenised with."""
    learnt, there = config["method"].get("attributes"), config["data"].get("attributes")
    if learnt is not None and learnt != there:
        yield Problem("method.attributes", f"{learnt} are not those of the data, {there}", "set data.attributes, which it follows")


def critic_is_sound(config: Config) -> Iterator[Problem]:
    """What a method with a critic is told to adapt, to stop or to start from must be there."""
    method = config["method"]
    if method.get("kl_target") is not None and not (method.get("kl") or {}).get("coef"):
        yield Problem("method.kl_target", "there is no pull towards a reference to adapt", "method.kl.coef=0.05")
    if method.get("target_kl") is not None and method.get("minibatches", 1) * method.get("rollout_epochs", 1) == 1:
        yield Problem("method.target_kl", "a rollout has a single step, so there are no others to stop", "method.rollout_epochs=4")
    if method.get("missing_end") and method.get("mask_truncated"):
        yield Problem("method.missing_end", "answers that were cut off are left out, so none is lowered", "method.mask_truncated=false")
    if method.get("value_from") is not None and not exists(method["value_from"]):
        yield Problem("method.value_from", f"no such folder: {method['value_from']}", near_file(method["value_from"]))


def entering_is_sound(config: Config, *, allow_targets: Collection[str] = ()) -> Iterator[Problem]:
    """The run that is made first must be one that could be made by itself."""
    if not config["entering"]:
        return
    from posttrain.runs.entering import config_of

    try:
        config_of(config["entering"], config, allow_targets=allow_targets)
    except UserError as error:
        yield from error.problems


PLAN: tuple[Rule, ...] = (
    Rule(has_an_end, ("max_steps", "epochs", "budget")),
    Rule(budget_is_one, ("budget",)),
    Rule(schedule_fits_budget, ("budget", "scheduler", "max_steps")),
    Rule(numbers_are_in_range, ("optimizer", "scheduler", "method")),
    Rule(terms_are_losses, ("method",)),
    Rule(adapter_rules.adapters_are_possible, ("model.peft",)),
    Rule(adapter_rules.moving_references_are_whole, ("model.peft", "method")),
    Rule(rewards_are_in_range, ("reward",)),
    Rule(steps_are_parted_alike, ("data", "method")),
    Rule(weights_exist, ("model",)),
    Rule(data_is_consistent, ("data",)),
    Rule(strategy_rules.strategy_fits, ("hardware",)),
    Rule(tensor_rules.tensor_parallel_fits, ("hardware", "model", "method", "evaluation")),
    Rule(context_rules.rows_can_be_cut, ("hardware", "method", "model")),
    Rule(loss_fits_method, ("method",)),
    Rule(reference_is_there, ("method", "model")),
    Rule(attributes_agree, ("method", "data")),
    *(Rule(find, reads) for find, reads in online_rules.RULES.items()),
    Rule(critic_is_sound, ("method",)),
    Rule(suites_can_run, ("method", "model", "entering")),
    Rule(float8_rules.float8_fits, ("model", "hardware", "precision")),
    Rule(float8_rules.float8_agrees, ("model", "method")),
)
CLUSTER: tuple[Rule, ...] = (
    *PLAN,
    Rule(data_files_exist, ("data",)),
    Rule(resume_exists, ("resume",)),
    Rule(output_is_writable, ("output_dir",)),
    Rule(strategy_rules.sharding_fits, ("hardware", "model", "optimizer")),
    Rule(zero_rules.deepspeed_is_there, ("hardware",)),
    Rule(float8_rules.torchao_is_there, ("model",)),
    Rule(entering_is_sound, ("entering", "seed", "hardware"), targets=True),
    Rule(machine_rules.entering_is_on_one_machine, ("entering", "hardware")),
)
TASK: tuple[Rule, ...] = (
    *CLUSTER,
    Rule(machine_rules.devices_are_on_this_node, ("hardware",)),
)
ELSEWHERE: tuple[Rule, ...] = (
    *CLUSTER,
    Rule(machine_rules.machines_are_one, ("hardware",)),
)
HERE: tuple[Rule, ...] = (
    *ELSEWHERE,
    Rule(machine_rules.devices_are_there, ("hardware",)),
)
