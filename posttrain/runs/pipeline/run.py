"""Runs a pipeline: each stage in a process and a folder of its own, made where it is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import yaml

from posttrain.errors import ConfigError, after_start
from posttrain.runs import report
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.files import shown, write_atomic
from posttrain.runs.folder_lock import alone_in
from posttrain.runs.forking.client import serving_runs
from posttrain.runs.pipeline import measured, store
from posttrain.runs.pipeline.earlier import comes_to_the_same, differences_between
from posttrain.runs.pipeline.mirror import mirror
from posttrain.runs.pipeline.outcome import Ended, result_of_all, table_of
from posttrain.runs.pipeline.parent import Parent
from posttrain.runs.pipeline.shares import bounds_told
from posttrain.runs.pipeline.wanted import Wanted, wanted
from posttrain.runs.progress import duration
from posttrain.runs.records import Status, write_result
from posttrain.runs.resume import ANEW, CONFIG, set_aside
from posttrain.runs.signals import HANDLED, Stopped, stop_on_signals
from posttrain.runs.tracking.mlflow import closing_hint
from posttrain.runs.tracking.sweep import is_mlflow
from posttrain.runs.tracking.sync import complete

DONE, FAILED = 0, 1
STOPPED = tuple(128 + number for number in HANDLED)


def run_pipeline(config: dict[str, Any], folder: Path, *, allow_targets: Collection[str] = ()) -> int:
    """Makes or finds every stage, in order; returns 0, or the exit code of the stage that ended it.

    Raises:
        Taken: another process runs it.
        ConfigError: the folder holds something else, or a stage's part of the budget is nothing.
    """
    from posttrain.runs.job import run_isolated

    with alone_in(folder), stop_on_signals(), serving_runs([config]):  # while a stage runs, they are for it
        open_pipeline(config, folder)
        return Pipeline(config, folder, lambda stage: run_isolated(stage, allow_targets=allow_targets), allow=allow_targets).run()


def open_pipeline(config: dict[str, Any], folder: Path) -> None:
    """Writes the folder's config.yaml, and removes a result.json that is not of it. Tells which stages may end before their budget does.

    Raises ConfigError where a run or another pipeline lies there.
    """
    file = folder / CONFIG
    if config["resume"] == "never":
        set_aside(folder)
    elif file.is_file():
        there = yaml.safe_load(file.read_text(encoding="utf-8"))
        if problems := differences_between(there, config):
            raise ConfigError(problems)
        if not comes_to_the_same(there, config):
            (folder / store.RESULT).unlink(missing_ok=True)
    write_atomic(file, as_yaml(config))
    for line in bounds_told(config):
        say(line)


class Pipeline:
    """One pipeline on its way.

    make: trains a stage's complete config in the stage's folder; returns the exit code. allow: modules that suites may name parts of.
    """

    def __init__(self, config: dict[str, Any], folder: Path, make: Callable[[dict[str, Any]], int], *, allow: Collection[str] = ()) -> None:
        self.config, self.folder, self.make, self.allow = config, folder, make, allow
        self.store = Path(config["stages_dir"])
        self.command = config.get(ANEW) or (uuid4().hex if config["resume"] == "never" else None)
        self.ended: list[Ended] = []
        self.parent = Parent(config, folder)

    def run(self) -> int:
        """All stages; whatever ends it, result.json and the tracking run say how."""
        code, status = FAILED, cast(Status, "failed")
        try:
            code = next((code for _ in self.config["stages"] if (code := self.stage())), DONE)
            status = status_of(code)
        except (KeyboardInterrupt, Stopped) as stop:
            code, status = (stop.code if isinstance(stop, Stopped) else 130), "stopped"
        finally:
            self.close(status)
        return code

    def stage(self) -> int:
        """Makes or finds the next stage; returns its exit code."""
        with after_start() if self.ended else nullcontext():
            stage = wanted(self.config, self.folder, self.ended)
        wait = partial(say, f"{stage.title}: another process is making it; waiting")
        with store.holding(self.store, stage.key, wait, self.command) as folder:
            outdated = store.outdated(stage.place, folder)
            store.link(stage.place, folder)
            config = self._complete(stage, folder)
            code, found = self._made(stage, config, folder, outdated)
            self.ended.append(self._ended(stage, config, folder, status_of(code)))
        if not found:
            self._say_end(self.ended[-1], stage.title, code)
        return code

    def find(self, count: int) -> None:
        """Takes the next stages from the store, where others have made them; stops at the first that is not finished."""
        for _ in range(count):
            stage = wanted(self.config, self.folder, self.ended)
            folder = store.folder_of(self.store, stage.key, self.command)
            result = store.result_of(folder)
            if result is not None:
                store.link(stage.place, folder)
                self.ended.append(self._ended(stage, self._complete(stage, folder), folder, result["status"]))
            if result is None or result["status"] != "finished":
                return

    def _complete(self, stage: Wanted, folder: Path) -> dict[str, Any]:
        return stage.complete(folder, self.parent.tracking(stage.config, stage.name))

    def _ended(self, stage: Wanted, config: dict[str, Any], folder: Path, status: Status) -> Ended:
        reused = not store.was_begun(self.folder, stage.place.name, folder)
        result = measured.as_asked(store.result_of(folder), config)
        return Ended(stage.name, stage.place, folder, stage.key, reused, status, config, result)

    def _made(self, stage: Wanted, config: dict[str, Any], folder: Path, outdated: Path | None) -> tuple[int, bool]:
        """Makes the stage unless it is there; returns its exit code, and whether it was there.

        outdated: the folder in which it was made before, with other sources of this package.
        """
        past = store.result_of(folder)
        if past is not None and past["status"] == "finished":
            reason = store.distrust(folder, config)
            if reason is None:
                say(f"{stage.title}: reused, {shown(folder)}")
                measured.measure(config, allow=self.allow)
                complete(folder, "finished")
                return DONE, True
            say(f"{stage.title}: made anew, {reason}")
            store.begin_anew(folder)
        elif outdated is not None:
            say(f"{stage.title}: made anew, the code of posttrain is another than that of {shown(outdated)}")
        say(f"{stage.title}: {'continues' if (folder / 'checkpoints').is_dir() else 'begins'} in {shown(stage.place)}")
        store.note_begun(self.folder, stage.place.name, folder)
        return self.make(config), False

    def _say_end(self, stage: Ended, title: str, code: int) -> None:
        if code == DONE and stage.result is not None:
            say(f"{title}: finished, {stage.result['steps']} steps in {duration(float(stage.result['train_seconds']))}")
        elif code in STOPPED:
            say(f"{title}: stopped; the same command continues it")
        else:
            say(f"{title}: failed (exit code {code}), so the pipeline ends here; see {shown(stage.place / 'log.txt')}")

    def close(self, status: Status) -> None:
        """result.json, the tracking run and those of reused stages, the link to the last artifact, the closing table."""
        result = result_of_all(self.config, self.ended, status, self.parent.run_id)
        if status == "finished":
            store.link(self.folder / store.ARTIFACT, self.ended[-1].place / store.ARTIFACT)
            measured.keep(self.ended[-1].config, self.folder)
        write_result(self.folder / "result.json", result)
        found = [stage for stage in self.ended if stage.status == "finished"]
        mirrors = [mirror(stage.folder, self.folder / ".reused" / stage.place.name, stage.config) for stage in found]
        for tracker in filter(None, mirrors):
            tracker.finish("finished")
        self.parent.finish(status)
        if self.ended:
            report.console().print(table_of(self.ended, f"{result.method}: {status}, {shown(self.folder)}", shown))
        if status == "finished":
            tracking = self.config["tracking"]
            commands = [f"posttrain chat run={shown(self.folder)}", *([closing_hint(tracking)] if is_mlflow(tracking) else [])]
            say("\n".join(["next:", *(f"  {command}" for command in commands)]))
        else:
            say(f"the same command continues this pipeline (output_dir={shown(self.folder)})")


def status_of(code: int) -> Status:
    """An exit code as the status of a run."""
    return "finished" if code == DONE else "stopped" if code in STOPPED else "failed"


def say(text: str) -> None:
    """A line for the terminal, at once: what follows is written by the stage's own process."""
    print(text, flush=True)
