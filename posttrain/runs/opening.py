"""What a run says at its start and end, to the user and to the tracker."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from posttrain.methods.base import Method
from posttrain.models.counts import parameter_counts
from posttrain.runs.budget.amount import budget_of, is_known_before
from posttrain.runs.evaluate import WRITTEN
from posttrain.runs.files import shown
from posttrain.runs.progress import Progress, human, opening_lines
from posttrain.runs.records import Status
from posttrain.runs.reporter import Reporter
from posttrain.runs.reports import PICTURE as REPORT
from posttrain.runs.tracking.base import DatasetRecord, RunInfo
from posttrain.runs.train import Job


def tracking_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tracker's target and keywords."""
    return {key: value for key, value in config["tracking"].items() if key != "name"}


def run_info(job: Job) -> RunInfo:
    """What the tracker learns about a run."""
    config = job.config
    return RunInfo(
        output_dir=job.folder,
        name=job.folder.name,
        config=config,
        tags={"method": config["method"]["name"], "study": None, "arm": None, "stage": None},
        datasets=_datasets(job),
        continued=config["resume"] != "never" or job.start.step > 0,
        start_step=job.start.step,
    )


def _datasets(job: Job) -> list[DatasetRecord]:
    return [
        DatasetRecord(name=s.name, source=s.origin, digest=s.digest, context=s.part, examples=s.examples, tokens=s.tokens)
        for s in job.prepared.report.sources
    ]


log = logging.getLogger(__name__)
MUCH_CUT = 0.1  # share of the examples


class Opening(Callback):
    """Tells, when training is about to begin, what will run where; then starts the progress display."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job = job
        self.reporter = reporter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.job.ranks.leads:
            return
        assert isinstance(pl_module, Method)
        for line in self.lines(pl_module):
            print(line, flush=True)
            log.info(line, extra={"file_only": True})
        share = self.job.prepared.report.truncated_share
        if share > MUCH_CUT:
            log.warning("%.0f %% of the examples are cut to max_length=%d: raise max_length", 100 * share, self.job.config["max_length"])
        self.reporter.progress = Progress(None if self.watched else self.job.plan.steps, trainer.global_step)

    @property
    def watched(self) -> bool:
        """Whether the run ends at a budget, and at which step is not known before."""
        return budget_of(self.job.config) is not None and not is_known_before(self.job.config)

    @property
    def ends(self) -> str:
        """The budget, in words."""
        budget = budget_of(self.job.config)
        return "" if budget is None else f", to spend {budget.words}"

    def lines(self, method: Method) -> list[str]:
        """Model, data, device and plan, a line each."""
        job = self.job
        counts = parameter_counts(method.model.causal_lm)
        layout = method.model.layout
        train, val = job.prepared.train, 0 if job.prepared.val is None else len(job.prepared.val)
        share = job.prepared.report.truncated_share
        cut = f", {share:.1%} of them cut to max_length={job.config['max_length']}" if share else ""
        begun = f", continuing after step {job.start.step}" if job.start.step else ""
        return opening_lines(
            model=f"{job.config['model']['name']} ({method.model.causal_lm.config.model_type}, {layout} layout)",
            parameters=counts.total,
            trainable=counts.trainable,
            data=f"{len(train)} training and {val} held-out examples{cut}, {human(float(train.lengths.sum()))} tokens",
            device=f"{device_name(job.device)} x {job.ranks.world}, {job.config['precision']}",
            plan=f"{'at most ' if self.watched else ''}{job.plan.words}{self.ends}{begun}",
        )


def device_name(device: torch.device) -> str:
    """The device as the user knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def print_samples(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """A few generations: the question, what the model answered and what was expected; a wrong one first, if there is one."""
    chosen = sorted(rows, key=lambda row: bool(row["correct"]))[:1] + [row for row in rows if row["correct"]]
    for row in chosen[:count]:
        mark = "right" if row["correct"] else f"wrong, expected {row['expected']}"
        print(f"  {_short(row['prompt'])}  ->  {_short(row['completion'])}  [{mark}]")


def _short(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width // 2]} ... {line[-width // 2 :]}"


def paths_of(folder: Path, artifact: Path | None) -> dict[str, str]:
    """What lies where, for the closing panel."""
    found = {
        "folder": folder,
        "artifact": artifact,
        "plot": folder / "loss.png",
        "rewards": folder / "reward.png",
        "report": folder / REPORT,
    }
    return {name: shown(path) for name, path in found.items() if path is not None and path.exists()}


def next_commands(folder: Path, status: Status, hint: str, method: Method) -> list[str]:
    """What a user may want to type next."""
    run = shown(folder)
    if status != "finished":
        return [f"the same command again continues this run (output_dir={run})"]
    use = [f"posttrain chat run={run}"] if method.language_model else []
    use += [f"posttrain eval run={run} suite=validation"] if method.data_kind in WRITTEN else []
    return [*use, *([hint] if hint else [])]
