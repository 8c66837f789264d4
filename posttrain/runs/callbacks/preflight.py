"""The checks that need connected ranks, or the first step's metrics."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from posttrain.errors import ConfigError, Problem
from posttrain.methods.parts.collectives import gather
from posttrain.methods.parts.health import START_DRIFT
from posttrain.runs import preflight
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.records import versions
from posttrain.runs.reporter import Reporter
from posttrain.runs.train import Job

log = logging.getLogger(__name__)


def same_on_all_ranks(job: Job) -> None:
    """Raises ConfigError where ranks have another configuration, other data or other library versions. All ranks take part."""
    mine = {
        "the configuration": _digest(job.config),
        "the data": job.prepared.report.fingerprint,
        "the versions of libraries": _digest(versions()),
    }
    compare(gather(mine))


def compare(everybody: Sequence[Mapping[str, str]]) -> None:
    """See `same_on_all_ranks`; everybody: of each rank, what must be alike."""
    different = [name for name in everybody[0] if len({one[name] for one in everybody}) > 1]
    if different:
        others = [rank for rank, one in enumerate(everybody) if one != everybody[0]]
        words = f"ranks {others} differ from rank 0 in {' and '.join(different)}"
        raise ConfigError(Problem("hardware", words, "the same config.yaml, files and environment on every machine"))


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


Look = Callable[[Mapping[str, float]], Iterator[Problem]]


def rewards_vary(values: Mapping[str, float]) -> Iterator[Problem]:
    """Of the first sample."""
    if values.get("groups/informative") == 0.0:
        words = "in the first rollout all answers to each prompt got the same reward, so the first step learns nothing"
        yield Problem("reward", words, "if it stays so: look at the samples, rollout.temperature, or an easier start")


def starts_at_the_reference(values: Mapping[str, float]) -> Iterator[Problem]:
    """Of a method that samples; those on pairs look at it themselves."""
    if values.get("kl", 0.0) > START_DRIFT:
        words = f"policy and reference differ before the first update ({values['kl']:.2g} nats a token)"
        yield Problem("method.reference", words, "dropout in the model, or a reference that is not what entered this stage")


FIRST_STEP: tuple[Look, ...] = (rewards_vary, starts_at_the_reference)


class RanksAgree(Callback):
    """Before anything trains: all ranks were given the same; then says how the preflight went. doubts: how many were told before."""

    def __init__(self, job: Job, doubts: int) -> None:
        self.job, self.doubts = job, doubts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        same_on_all_ranks(self.job)
        if self.job.ranks.leads:
            log.info(preflight.summary(self.doubts))


class FirstStep(StepCallback):
    """Behind whatever records a step: looks at the first one's metrics."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step != 1:
            return
        for look in FIRST_STEP:
            for problem in look(self.reporter.latest):
                log.warning("step 1: %s", problem)
