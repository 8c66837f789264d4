"""A rank's training session: from the data to the artifact and the closing words."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from transformers.utils.logging import disable_progress_bar

from posttrain.errors import ConfigError, after_start
from posttrain.evaluation.suites.registry import Suite
from posttrain.methods.base import Method
from posttrain.runs import entering, plots, preflight, reports, targets
from posttrain.runs.budget.amount import budget_of
from posttrain.runs.budget.plan import within_budget
from posttrain.runs.budget.watch import BudgetWatch
from posttrain.runs.callbacks.preflight import FirstStep, RanksAgree
from posttrain.runs.callbacks.record import StepRecorder
from posttrain.runs.callbacks.save import SignalsReturned
from posttrain.runs.context import check_context
from posttrain.runs.data_record import keep_data
from posttrain.runs.handover import save_run_artifact
from posttrain.runs.inputs import load_inputs
from posttrain.runs.kept_scores import keep_scores
from posttrain.runs.opening import Opening, next_commands, paths_of, print_samples, run_info, tracking_node
from posttrain.runs.progress import closing_panel
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.ranks import Ranks, barrier, placed
from posttrain.runs.records import Result, Status, open_log, peak_memory_bytes, reopen, write_result
from posttrain.runs.reference_cache import with_cached_reference
from posttrain.runs.reporter import Reporter
from posttrain.runs.resume import end_of, find_start, past_the_end
from posttrain.runs.signals import Stopped, StopRequest, stop_on_signals
from posttrain.runs.strategies import distribution_of
from posttrain.runs.suites import check_suites, measure_end, suites_of
from posttrain.runs.tracking.base import Tracker
from posttrain.runs.tracking.none import NoTracker
from posttrain.runs.train import (
    Job,
    build_method,
    build_trainer,
    callbacks_of,
    device_of,
    fit,
    loader_of,
    measures_of,
    meter_of,
    plan_of,
    write_samples,
)
from posttrain.runs.unused import check_used

log = logging.getLogger(__name__)


def train(config: Mapping[str, Any], ranks: Ranks, *, allow_targets: Collection[str] = ()) -> int:
    """Train one run as one of its ranks; returns the exit code: 0, or 128 + signal where a signal stopped it at the end of a step.

    Raises Stopped where one stopped it before the first step or after the last.
    """
    ranks = placed(ranks, config["hardware"])
    quiet_libraries()
    disable_progress_bar()  # a bar a file written is of no use beside ours
    folder = Path(config["output_dir"])
    open_log(folder, ranks.rank)
    with stop_on_signals() as stop:
        tokenizer, prepared = load_inputs(config)
        check_context(config, prepared)
        check_suites(config, allow_targets)
        start = find_start(config, folder)
        keep_data(folder, prepared, tokenizer, config["model"], leads=ranks.leads)
        plan = plan_of(config, prepared, ranks, start.ends)
        job = Job(config, ranks, start, tokenizer, prepared, plan, device_of(config, ranks), distribution_of(config), allow_targets)
        method = build_method(job)  # before the reference is computed: it may object to its options
        check_used(job, method)
        if (budget := budget_of(config)) is not None:
            with after_start():
                entering.check_left(config, budget)
        job = within_budget(job, method)
        doubts = preflight.run(job, method)
        if config["method"].get("reference") == "cached":
            job = within_budget(with_cached_reference(job), method)
        if problems := list(past_the_end(start, config, job.plan.steps)):
            raise ConfigError(problems)
        session = Session(job, method, stop, doubts)
        try:
            with stop.before_errors():
                session.run()
        except BaseException as error:
            session.end_early("stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
            raise
        finally:
            session.loader.close()
        return stop.exit_code if stop.agreed else 0


class Session:
    """One rank's run: wires files, tracker and loop, and closes them whatever happens. doubts: of the preflight."""

    def __init__(self, job: Job, method: Method, stop: StopRequest, doubts: int = 0) -> None:
        self.job = job
        self.doubts = doubts
        self.stop = stop
        # Only the leading rank tracks; the others have nothing to send.
        self.tracker: Tracker = targets.build(tracking_node(job.config)) if job.ranks.leads else NoTracker()
        self.reporter = Reporter(job.folder, job.ranks, self.tracker, device=str(job.device))
        self.loader = loader_of(job, method)
        self.measures = measures_of(job, self.loader, self.reporter.say)
        self.callbacks = callbacks_of(job, self.loader, self.reporter, self.measures, stop)
        self.recorder = next(c for c in self.callbacks if isinstance(c, StepRecorder))
        budget, watch = budget_of(job.config), next((c for c in self.callbacks if isinstance(c, BudgetWatch)), None)
        self.meter = watch.meter if watch is not None else None if budget is None else meter_of(job, budget, self.recorder)
        self.method = method

    def run(self) -> None:
        """Train, evaluate, hand on."""
        job = self.job
        self.reporter.rewind(-1 if job.start.state is None else job.start.step)
        if job.ranks.leads:
            reopen(job.folder / "result.json")
            self.tracker.start(run_info(job))
        before = [SignalsReturned(self.stop), RanksAgree(job, self.doubts), Opening(job, self.reporter)]
        trainer = build_trainer(job, [*before, *self.callbacks, FirstStep(self.reporter)])
        fit(job, self.method, trainer, self.loader)
        self.stop.end_steps()
        if self.stop.agreed:
            self._close(trainer, "stopped", None)
        else:
            with after_start():
                self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Final evaluation and artifact; the strategy has let go of the model, so it is put back on the device."""
        job, method = self.job, self.method
        method.sharding.place(method, job.device)
        method.eval()
        self.measures.ready(method)  # training has not begun where the checkpoint is of the last step
        self.measures.scores.clear()  # those of an evaluation before the end
        loss = self.measures.loss(method) if job.config["validate"]["at_end"] else {}
        self.reporter.final(trainer.global_step, {**loss, **self.measures.answers(method, "after")})
        if job.ranks.leads and self.measures.scores:
            self.tracker.artifact(keep_scores(job.folder, self.measures.scores), "eval")
        artifact = save_run_artifact(job, method, self.reporter.latest)
        barrier()  # the leading rank alone has written: groups of parts of the ranks, as sharding has them, would not wait as long
        self._report(method)
        barrier()  # what is left is for the leading rank alone, and may take longer than a collective would wait
        if artifact is not None and (suites := suites_of(job.config)):
            self._measure_artifact(trainer.global_step, suites, artifact)
        self._close(trainer, "finished", artifact)

    def _measure_artifact(self, step: int, suites: Sequence[Suite], artifact: Path) -> None:
        """The suites of the run's end."""
        job = self.job
        if self.method.sharding.whole:
            self.method.cpu()  # makes room for the artifact
        self.reporter.say(f"evaluating the artifact: {', '.join(suite.name for suite in suites)}")
        found = measure_end(job.config, suites, artifact, device=str(job.device), allow=job.allow_targets)
        self.reporter.final(step, found.metrics)
        for file in found.files:
            self.tracker.artifact(file, "eval")

    def _report(self, method: Method) -> None:
        """What the method's kind of report says of the held-out data, as JSON and a picture; all ranks take part."""
        if method.report is None or not self.job.config["validate"]["at_end"]:
            return
        if not (outcomes := self.measures.outcomes(method)) or not self.job.ranks.leads:
            return
        table, picture = reports.write(method.report, outcomes, self.job.folder)
        self.tracker.artifact(table, "reports")
        self.tracker.figure(picture)

    def end_early(self, status: Status) -> None:
        """Leave the record of a run that an error or an interrupt ended complete; the last checkpoint stays."""
        try:
            if self.job.ranks.leads:
                write_result(self.job.folder / "result.json", self._result(status, self.reporter.last_step, None))
                self.tracker.finish(status)
            self.reporter.close()
        except OSError as error:  # the disk that ended the run is still full: the first error is the one to report
            log.error("%s", error)

    def _close(self, trainer: Trainer, status: Status, artifact: Path | None) -> None:
        if status == "finished":
            self.stop.ignore()
        self.reporter.close()
        if not self.job.ranks.leads:
            return
        folder = self.job.folder
        if self.measures.samples:
            write_samples(folder, self.measures.samples)
            self.tracker.table("samples", self.measures.samples)
            print_samples(self.measures.samples, self.job.config["evaluation"]["samples"])
        if plots.loss_plot(folder / "metrics.jsonl", folder / "loss.png"):
            self.tracker.figure(folder / "loss.png")
        if plots.online_plot(folder / "metrics.jsonl", folder / "reward.png"):
            self.tracker.figure(folder / "reward.png")
        result = self._result(status, trainer.global_step, artifact)
        write_result(folder / "result.json", result)
        self.tracker.finish(status)
        log.info("%s: %s", status, dict(result.metrics), extra={"file_only": True})
        closing_panel(result, paths_of(folder, artifact), next_commands(folder, status, self.tracker.hint(), self.method))

    def _result(self, status: Status, step: int, artifact: Path | None) -> Result:
        totals = self.recorder.totals
        seconds = max(float(totals["train_seconds"]), 1e-9)
        final = {name: value for name, value in self.reporter.latest.items() if name not in ("tokens", "examples", "lr")}
        before = {f"{name}/before": value for name, value in self.reporter.before.items() if name in self.reporter.measured_again}
        return Result(
            status=status,
            method=self.job.config["method"]["name"],
            steps=step,
            examples=int(totals["examples"]),
            tokens=int(totals["tokens"]),
            flops=float(totals["flops_before"] + totals["flops"]),
            train_seconds=seconds,
            tokens_per_second=totals["tokens"] / seconds,
            peak_memory_bytes=peak_memory_bytes(str(self.job.device)),
            metrics={**final, **before},
            artifact=None if artifact is None else str(artifact),
            mlflow_run_id=self.tracker.run_id,
            budget=self._budget(),
            entering=self._entered(),
            end=end_of(self.job.config),
        )

    def _entered(self) -> dict[str, Any] | None:
        """What the run cost that this one starts from."""
        if not self.job.config["entering"]:
            return None
        made = entering.result_of(self.job.config)
        return {"folder": entering.FOLDER, **{name: made[name] for name in ("flops", "tokens", "train_seconds")}}

    def _budget(self) -> dict[str, Any] | None:
        """What was asked for and what was spent."""
        if self.meter is None:
            return None
        return {"unit": self.meter.budget.unit, "asked": self.meter.budget.amount, "spent": float(self.meter.spent)}
