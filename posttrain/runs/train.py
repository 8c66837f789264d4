"""One training run: builds the method, hands it to Lightning's loop, and writes what the run leaves behind."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from transformers import PreTrainedTokenizerBase

from posttrain.data.loader import TreeLoader
from posttrain.data.mixture import epoch_order
from posttrain.data.plan import StepPlan, make_plan
from posttrain.data.prepare import Prepared
from posttrain.errors import ConfigError, Problem
from posttrain.methods.base import Method
from posttrain.methods.parts.online import Online
from posttrain.methods.parts.recipe import Recipe
from posttrain.models.build import build_policy
from posttrain.rollout.experience import ExperienceLoader
from posttrain.rollout.plan import ExperiencePlan
from posttrain.runs import entering, online, targets
from posttrain.runs.budget.amount import Budget, budget_of, is_known_before, length_of
from posttrain.runs.budget.watch import BudgetWatch, Meter
from posttrain.runs.callbacks.evaluate import Evaluator
from posttrain.runs.callbacks.record import StepRecorder
from posttrain.runs.callbacks.replan import Replanner
from posttrain.runs.callbacks.save import CheckpointWriter
from posttrain.runs.checkpoint_io import StreamingCheckpointIO
from posttrain.runs.kept_scores import keep_scores_at
from posttrain.runs.measure import Measures
from posttrain.runs.ranks import Ranks
from posttrain.runs.reporter import Reporter
from posttrain.runs.resume import Start
from posttrain.runs.separators import separators
from posttrain.runs.signals import StopRequest
from posttrain.runs.strategies import Distribution
from posttrain.types import Rendering

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "bf16_true": "32-true"}  # bf16_true: the weights themselves are bfloat16


@dataclass(frozen=True)
class Job:
    """Everything a run is made of, once its data is there. flops: operations spent on the model before training, over all ranks."""

    config: Config
    ranks: Ranks
    start: Start
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared
    plan: StepPlan | ExperiencePlan
    device: torch.device
    distribution: Distribution
    allow_targets: Collection[str] = ()
    flops: float = 0.0

    @property
    def folder(self) -> Path:
        """The run's output folder."""
        return Path(self.config["output_dir"])


def plan_of(config: Config, prepared: Prepared, ranks: Ranks, ends: Sequence[int] = ()) -> StepPlan | ExperiencePlan:
    """The step plan of a run. ends: of the run that goes on, see `StepPlan`. Raises ConfigError where the data does not fit the numbers."""
    train = prepared.train
    if config["rollout"] is not None:
        return online.plan_of(config, prepared, ranks)

    def order(epoch: int) -> np.ndarray:
        return epoch_order(train.sizes, train.source_weights, exhaustion=train.exhaustion, seed=config["seed"], epoch=epoch)

    try:
        return make_plan(
            train.lengths, train.targets, order, global_batch=config["global_batch"], max_tokens=config["max_tokens"],
            ranks=ranks.readers, ends=ends, **length_of(config),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(Problem("max_tokens", str(error), "raise max_tokens or lower max_length")) from error


def device_of(config: Config, ranks: Ranks) -> torch.device:
    """The device of this rank."""
    return torch.device("cuda", ranks.local) if config["hardware"]["accelerator"] == "cuda" else torch.device("cpu")


def build_method(job: Job, *, trains: bool = True) -> Method:
    """The LightningModule of the configured method; its model is built by the strategy. trains: see `Recipe`."""
    config = job.config
    recipe = Recipe(
        policy=partial(
            build_policy,
            config["model"],
            job.tokenizer,
            precision=config["precision"],
            seed=config["seed"],
            device=job.device,
            context=job.ranks.context if trains else 1,  # the leading rank alone builds one to hand on
            context_method=job.ranks.cut,
        ),
        optimizer=targets.build({**config["optimizer"], "_partial_": True}, allow=job.allow_targets),
        scheduler=targets.build({**config["scheduler"], "_partial_": True}, allow=job.allow_targets),
        max_steps=job.plan.steps,
        gradient_clip=config["gradient_clip"],
        seed=config["seed"],
        rendering=rendering_of(config["data"]),
        sharding=job.distribution.sharding,
        trains=trains,
        half=config["precision"] != "float32",
    )
    return method_of(config, recipe, allow_targets=job.allow_targets)


def method_of(config: Config, recipe: Recipe, *, allow_targets: Collection[str] = ()) -> Method:
    """The configured method, trained by `recipe`. Raises ConfigError for options that it objects to."""
    node = {key: value for key, value in config["method"].items() if key != "name"}
    method = targets.build(node, recipe, allow=allow_targets)
    assert isinstance(method, Method)
    return method


def untrained(config: Config, *, allow_targets: Collection[str] = ()) -> Method:
    """The configured method to ask about its options: it has no model, and cannot be trained."""

    def nothing(*_: Any) -> Any:
        raise RuntimeError("this method is not for training")

    return method_of(config, Recipe(nothing, nothing, nothing, max_steps=1, seed=config["seed"]), allow_targets=allow_targets)


def rendering_of(data: Config) -> Rendering:
    """How a `data` node's conversations are rendered."""
    stated = {"system": data.get("system"), "template_kwargs": data.get("template_kwargs")}
    stated["separator"] = next(iter(separators(data).values()))  # a method that keeps it has all its sources agree
    return Rendering(**{key: value for key, value in stated.items() if value is not None})


def build_trainer(job: Job, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer: the loop, the strategy and the precision; logging, checkpoints and progress are ours."""
    hardware = job.config["hardware"]
    return Trainer(
        accelerator="gpu" if hardware["accelerator"] == "cuda" else "cpu",
        devices=hardware["devices"],
        num_nodes=hardware["nodes"],
        strategy=job.distribution.strategy,
        precision=PRECISION[job.config["precision"]],  # type: ignore[arg-type]
        max_steps=job.plan.steps,
        max_epochs=-1,
        accumulate_grad_batches=job.plan.micro_batches,
        callbacks=callbacks,
        default_root_dir=str(job.folder),
        plugins=[StreamingCheckpointIO(), LightningEnvironment()],  # ranks are ours to start: no cluster is to be detected
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def loader_of(job: Job, method: Method) -> TreeLoader | ExperienceLoader:
    """Where the run's micro-batches come from."""
    if isinstance(job.plan, ExperiencePlan):
        assert isinstance(method, Online)
        return online.loader_of(job.config, job.tokenizer, job.prepared, job.plan, job.ranks, method, allow=job.allow_targets)
    return TreeLoader(job.prepared.train, job.plan, rank=job.ranks.reader, stretch=job.ranks.stretch)


def measures_of(job: Job, loader: TreeLoader | ExperienceLoader, say: Callable[[str], None]) -> Measures:
    """What a run is measured by on held-out data."""
    if isinstance(loader, ExperienceLoader):
        sampled = loader.plan.answers * job.config["rollout"]["max_new_tokens"]
        return online.OnlineMeasures(job.config, job.prepared, job.tokenizer, job.ranks, say, sampled, collector=loader.collector)
    return Measures(job.config, job.prepared, job.tokenizer, job.ranks, say, loader.plan.tokens)


def callbacks_of(
    job: Job, loader: TreeLoader | ExperienceLoader, reporter: Reporter, measures: Measures, stop: StopRequest
) -> list[Callback]:
    """In the order in which they act at a step's end: record, evaluate, save."""
    config = job.config
    last, every = job.plan.steps, config["log"]["every_steps"]
    recorder = StepRecorder(reporter, loader, last=last, seed=config["seed"], ranks=job.ranks, every_steps=every, flops=job.flops)

    def before(method: Method) -> dict[str, float]:
        loss = measures.loss(method) if config["validate"]["at_start"] else {}
        share = job.prepared.report.truncated_share
        return {**loss, **measures.answers(method, "before"), **({"data/truncated": share} if share else {})}

    def keep(step: int) -> None:
        if job.ranks.leads and measures.scores:
            keep_scores_at(job.folder, measures.scores, step)
        measures.scores.clear()

    budget, watch = budget_of(config), list[Callback]()
    if budget is not None and not is_known_before(config):
        often = job.plan.steps_per_rollout if isinstance(job.plan, ExperiencePlan) else 1
        watch = [BudgetWatch(meter_of(job, budget, recorder), per_rollout=often)]
    every_steps = config["validate"]["every_steps"]
    evaluator = Evaluator(reporter, recorder, before=before, during=measures.loss, every_steps=every_steps, keep=keep)
    writer = CheckpointWriter(reporter, stop, ranks=job.ranks, ends_at=job.plan.ends_at, **config["checkpoint"])
    sampled = [online.Sampler(loader, reporter, config, measures)] if isinstance(loader, ExperienceLoader) else []
    return [Replanner(), *sampled, recorder, *watch, evaluator, writer]


def meter_of(job: Job, budget: Budget, recorder: StepRecorder) -> Meter:
    """What the run has spent of its budget, the run that it starts from included."""
    return Meter(budget, recorder, job.ranks, entered=entering.spent(job.config, budget.unit))


def fit(job: Job, method: Method, trainer: Trainer, loader: TreeLoader | ExperienceLoader) -> None:
    """Train to the plan's end, or to the step at which a signal stopped it."""
    method.steps = loader
    state = None if job.start.state is None else str(job.start.state)
    with warnings.catch_warnings():
        # Lightning's advice about torch DataLoaders and about its own logging does not apply here.
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(method, loader, ckpt_path=state, weights_only=True)


def write_samples(folder: Path, rows: list[dict[str, Any]]) -> None:
    """samples.jsonl: the generations behind the last exact match."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
