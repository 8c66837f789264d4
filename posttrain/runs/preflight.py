"""What is looked at before anything trains: one function a check. Errors stop the run (exit 2), doubts are told in a line.

A new check is a function under `@check`; it runs on every rank before any weight is loaded. What needs connected ranks, or the metrics of
the first optimizer step, is in `posttrain.runs.callbacks.preflight`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from posttrain.cores import usable_cores
from posttrain.errors import ConfigError, Problem
from posttrain.methods.base import Method
from posttrain.models.loading import base_where_adapted
from posttrain.models.policy import causal_lm
from posttrain.models.tokenizers import end_token_ids
from posttrain.runs import float8_rules, machine, online_doubts
from posttrain.runs.planning.estimate import adapters_off_restore
from posttrain.runs.planning.shapes import Weights
from posttrain.runs.planning.states import States, states_of
from posttrain.runs.planning.strategies import SHARDINGS, Group
from posttrain.runs.planning.trace import adapted
from posttrain.runs.planning.weights import weights_of
from posttrain.runs.strategies import choice_of
from posttrain.runs.tracking.uris import SERVERS, redacted, resolve_uri, sqlite_path
from posttrain.runs.train import Job
from posttrain.types import TokenizedExample

log = logging.getLogger(__name__)

GIB = 2**30
SAMPLE = 64  # examples that are looked at
NEARLY = 0.8  # of the free memory, that states may take without a doubt
CONNECT_SECONDS = 0.5
PORTS = {"http": 80}


@dataclass(frozen=True)
class Finding:
    """What a check found. stops: whether the run must not begin; else it is a doubt."""

    problem: Problem
    stops: bool = False


@dataclass(frozen=True)
class Subject:
    """What is about to train."""

    job: Job
    method: Method

    @cached_property
    def shapes(self) -> nn.Module:
        """The model with its adapters on the meta device."""
        return adapted(base_where_adapted(self.job.config["model"]))

    @cached_property
    def weights(self) -> Weights:
        """Bytes of the model's, whole."""
        config = self.job.config
        return weights_of(self.shapes, causal_lm(self.shapes), config["model"].get("peft"), config["precision"])

    @cached_property
    def kept(self) -> States:
        """What a device keeps from step to step, from shapes alone."""
        config, world = self.job.config, self.job.ranks.world
        model, hardware = config["model"], config["hardware"]
        copies = self.method.copies(adapters_off_restore=adapters_off_restore(model.get("peft")))
        return states_of(
            self.weights,
            config["optimizer"],
            SHARDINGS[choice_of(config).name],
            Group(world, gpus=hardware["accelerator"] == "cuda", half=config["precision"] != "float32", copies=copies),
            offload=hardware["offload"],
            together=hardware["tensor_parallel"],
        )

    @cached_property
    def sample(self) -> list[TokenizedExample]:
        """The first training examples."""
        train = self.job.prepared.train
        return [train[place] for place in range(min(SAMPLE, len(train)))]


Check = Callable[[Subject], Iterator[Finding]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check."""
    CHECKS.append(function)
    return function


def run(job: Job, method: Method) -> int:
    """Every check; tells doubts on the leading rank and returns their number. Raises ConfigError with all errors."""
    subject = Subject(job, method)
    found = [finding for function in CHECKS for finding in function(subject)]
    if errors := [finding.problem for finding in found if finding.stops]:
        raise ConfigError(errors)
    for finding in found if job.ranks.leads else ():
        log.warning("preflight: %s", finding.problem)
    return len(found)


@check
def devices(subject: Subject) -> Iterator[Finding]:
    """Every process of this machine has a device; processes on the CPU have a core."""
    hardware, asked = subject.job.config["hardware"], subject.job.config["hardware"]["devices"]
    if hardware["accelerator"] == "cuda":
        if (there := machine.usable_gpus()) < asked:
            yield Finding(
                Problem("hardware.devices", f"{asked} CUDA devices are asked for, this machine has {there}", "hardware=auto"), True
            )
    elif asked > (cores := usable_cores(os.environ)):
        yield Finding(Problem("hardware.devices", f"{asked} processes share {cores} cores", f"hardware.devices={cores}"))


@check
def memory(subject: Subject) -> Iterator[Finding]:
    """What lasts from step to step (weights, gradients, optimizer state, frozen copies) fits into what is free; the rest is `plan`'s."""
    needed, free = subject.kept.lasting, free_memory(subject.job)
    words = f"model and optimizer take {needed / GIB:.2f} GiB on a device, of which {free / GIB:.2f} GiB are free"
    hint = "posttrain plan with the same words says what to change"
    if needed > NEARLY * free:
        yield Finding(Problem("hardware", words, hint), needed > free)


@check
def cached_reference(subject: Subject) -> Iterator[Finding]:
    """The model whose log-probabilities are computed before training fits into what is free: every device has it whole."""
    if subject.job.config["method"].get("reference") != "cached":
        return
    needed, free = subject.weights.packed_bytes, free_memory(subject.job)
    words = f"cached takes a whole model on every device before training, {needed / GIB:.2f} GiB, of which {free / GIB:.2f} GiB are free"
    hint = "method.reference=copy, which fsdp2 and zero3 cut over the devices"
    if needed > NEARLY * free:
        yield Finding(Problem("method.reference", words, hint), needed > free)


@check
def float8(subject: Subject) -> Iterator[Finding]:
    """This rank's device multiplies 8-bit floats."""
    if not subject.job.config["model"].get("float8") or subject.job.device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(subject.job.device)
    if capability < float8_rules.LEAST:
        yield Finding(float8_rules.too_old(torch.cuda.get_device_name(subject.job.device), ".".join(map(str, capability))), True)


@check
def own_answers(subject: Subject) -> Iterator[Finding]:
    """Answers come from the policy that learns, and judges are models."""
    yield from map(Finding, online_doubts.doubts(subject.job.config))


@check
def tensor_parallel(subject: Subject) -> Iterator[Finding]:
    """The model's layers can be cut over the devices that compute together."""
    if (together := subject.job.config["hardware"]["tensor_parallel"]) > 1:
        from posttrain.models.tensor_parallel import obstacle

        if words := obstacle(causal_lm(subject.shapes).config, together):
            yield Finding(Problem("hardware.tensor_parallel", words, "hardware.tensor_parallel=1"), True)


def free_memory(job: Job) -> float:
    """Bytes that are free for one process on its device."""
    if job.device.type == "cuda":
        return float(torch.cuda.mem_get_info(job.device)[0])
    return available_memory() / job.config["hardware"]["devices"]


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Bytes of this machine's memory that can be had without swapping; all of it outside Linux."""
    if not meminfo.exists():
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return float(line.split()[1]) * 1024


@check
def disk(subject: Subject) -> Iterator[Finding]:
    """The folder's disk has room for the checkpoints that are kept, one more while it is written, and the artifact."""
    kept = subject.kept
    one, artifact = kept.weights + kept.optimizer, kept.weights
    settings = subject.job.config["checkpoint"]
    whole = artifact + (settings["keep_last"] + settings["keep_best"] + 1) * one
    there = sum(file.stat().st_size for file in (subject.job.folder / "checkpoints").rglob("*") if file.is_file())  # of a resumed run
    free = shutil.disk_usage(subject.job.folder).free + there
    if free < whole:
        words = f"{free / GIB:.2f} GiB are free, checkpoints and artifact will take {whole / GIB:.2f} GiB"
        hint = "another output_dir, or lower checkpoint.keep_last and checkpoint.keep_best"
        yield Finding(Problem("output_dir", words, hint), free < artifact + 2 * one)


def mlflow_address(config: Mapping[str, Any]) -> str | None:
    """The store of a run that is tracked by MLflow."""
    node = config["tracking"]
    return resolve_uri(node.get("uri"), Path.cwd()) if node.get("_target_", "").endswith(".MLflowTracker") else None


@check
def folders(subject: Subject) -> Iterator[Finding]:
    """What is written to can be written to."""
    places = {"output_dir": subject.job.folder}
    address = mlflow_address(subject.job.config)
    if address is not None and address.startswith("sqlite"):
        places["tracking.uri"] = sqlite_path(address).parent
    for key, folder in places.items():
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(Problem(key, f"no permission to write in {existing}", f"choose another {key}"), True)


@check
def tracking(subject: Subject) -> Iterator[Finding]:
    """A tracking server answers; where it does not, training goes on and what was missed is sent later."""
    address = urlsplit(mlflow_address(subject.job.config) or "")
    if not subject.job.ranks.leads or address.scheme not in SERVERS or address.hostname is None:
        return
    try:
        socket.create_connection((address.hostname, address.port or PORTS.get(address.scheme, 443)), CONNECT_SECONDS).close()
    except OSError as error:
        words = f"{redacted(address.geturl())} does not answer ({error}); training goes on"
        yield Finding(Problem("tracking.uri", words, f"posttrain sync run={subject.job.folder} sends what it missed"))


@check
def targets(subject: Subject) -> Iterator[Finding]:
    """There is something to learn from, and most examples have it."""
    if subject.method.online:
        return
    weights = subject.job.prepared.train.targets
    empty = int((weights == 0).sum())
    if empty == len(weights):
        yield Finding(Problem("data", "no example has a token that is trained on", "posttrain data shows what is; data.train_on"), True)
    elif empty > len(weights) / 2:
        yield Finding(
            Problem("data", f"{empty:,} of {len(weights):,} examples have no token that is trained on", "posttrain data shows them")
        )


@check
def ends_are_trained(subject: Subject) -> Iterator[Finding]:
    """Some sequence's last token is one that ends a turn, and is trained: else the model never learns to stop."""
    if subject.method.online or not subject.method.language_model:
        return
    ends = set(end_token_ids(subject.job.tokenizer))
    last = [(int(example.ids[mark]), float(example.weights[mark])) for example in subject.sample for mark in example.marks]
    if ends and last and not any(token in ends and weight for token, weight in last):
        words = f"in the first {len(subject.sample)} examples no end of an answer is trained, so the model will not learn to stop"
        yield Finding(Problem("data", words, "posttrain data shows the tokens; is everything cut at max_length, or the chat template odd?"))


@check
def beginning_is_single(subject: Subject) -> Iterator[Finding]:
    """No sequence begins with the beginning-of-text token twice (template and tokenizer both writing it)."""
    bos = subject.job.tokenizer.bos_token_id
    doubled = sum(len(example.ids) > 1 and example.ids[0] == example.ids[1] == bos for example in subject.sample)
    if doubled:
        words = f"{doubled} of the first {SAMPLE} examples begin with {subject.job.tokenizer.bos_token} twice"
        yield Finding(Problem("model.chat_template", words, "take it out of the template"), True)


@check
def positions(subject: Subject) -> Iterator[Finding]:
    """The longest example is within the positions that the model knows. Online methods look at it where they know their answers."""
    most = getattr(causal_lm(subject.shapes).config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(path_of, subject.sample), default=0)
    if most is not None and longest > most and not subject.method.online:
        yield Finding(Problem("max_length", f"sequences of {longest} tokens, the model has positions for {most}", f"max_length={most}"))


def path_of(example: TokenizedExample) -> int:
    """Tokens of the longest segment with its ancestors."""
    reached: list[int] = []
    for length, parent in zip(example.segment_lengths.tolist(), example.segment_parents.tolist(), strict=True):
        reached.append(length + (reached[parent] if parent >= 0 else 0))
    return max(reached, default=0)


def summary(doubts: int) -> str:
    """What a run says of its checks; that the ranks agree and that the layout was probed are two more."""
    done = len(CHECKS) + 2
    told = f", {doubts} doubts" if doubts > 1 else ", 1 doubt" if doubts else ""
    return f"preflight: {done - min(doubts, done)} checks passed{told}"
