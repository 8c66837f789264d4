"""Runs a pipeline: each stage in a process and a folder of its own, made where it is not there yet."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import yaml
from filelock import FileLock, Timeout

from posttrain.errors import ConfigError, Problem
from posttrain.runs import report
from posttrain.runs.files import prepare_folder, shown, write_atomic
from posttrain.runs.pipeline import store
from posttrain.runs.pipeline.identity import stage_hash
from posttrain.runs.pipeline.inputs import entered
from posttrain.runs.pipeline.mirror import mirror
from posttrain.runs.pipeline.outcome import Ended, result_of_all, table_of
from posttrain.runs.pipeline.parent import Parent
from posttrain.runs.pipeline.shares import part_of, spent_by, unit_of
from posttrain.runs.progress import duration
from posttrain.runs.records import Status, write_result
from posttrain.runs.resume import CONFIG, differences, set_aside
from posttrain.runs.signals import HANDLED
from posttrain.runs.suites import measure_later
from posttrain.runs.tracking.base import Tracker
from posttrain.runs.tracking.mlflow import closing_hint
from posttrain.runs.tracking.sweep import is_mlflow

DONE, FAILED = 0, 1
STOPPED = tuple(128 + number for number in HANDLED)


class Stopped(KeyboardInterrupt):
    """A stop signal came while no stage was running."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def run_pipeline(config: dict[str, Any], folder: Path, *, allow_targets: Collection[str] = ()) -> int:
    """Makes or finds every stage, in order; returns 0, or the exit code of the stage that ended it.

    Raises:
        ConfigError: another process runs it, the folder holds something else, or a stage's part of the budget is nothing.
    """
    prepare_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(Problem("output_dir", f"another process is training in {folder}", "wait for it or choose another")) from None
    with lock, stops():
        open_pipeline(config, folder)
        return Pipeline(config, folder, allow_targets).run()


@contextmanager
def stops() -> Iterator[None]:
    """Inside the block stop signals raise Stopped, unless a stage runs: then they are for it."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    handled = HANDLED if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_pipeline(config: dict[str, Any], folder: Path) -> None:
    """Writes the folder's config.yaml. Raises ConfigError where a run or another pipeline lies there."""
    file = folder / CONFIG
    if config["resume"] == "never":
        set_aside(folder)
    elif file.is_file():
        there = yaml.safe_load(file.read_text(encoding="utf-8"))
        if problems := _differences(there, config):
            raise ConfigError(problems)
    write_atomic(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _differences(there: Any, config: Mapping[str, Any]) -> list[Problem]:
    hint = "choose another output_dir, or resume=never to set aside what is there"
    before = there.get("stages") if isinstance(there, dict) else None
    if not before:
        return [Problem("output_dir", "holds something else than a pipeline", hint)]
    names = [[(node["name"], node["inputs"]) for node in nodes] for nodes in (before, config["stages"])]
    if names[0] != names[1]:
        old, new = (", ".join(name for name, _ in found) for found in names)
        return [Problem("stages", f"the pipeline in output_dir has {old}, this command {new}, or other inputs", hint)]
    pairs = zip(before, config["stages"], strict=True)
    return [
        Problem(f"stage {now['name']}: {problem.where}", problem.message, problem.hint)
        for old, now in pairs
        for problem in differences(old["config"], now["config"])
    ]


class Pipeline:
    """One pipeline on its way."""

    def __init__(self, config: dict[str, Any], folder: Path, allow_targets: Collection[str]) -> None:
        self.config, self.folder, self.allow_targets = config, folder, allow_targets
        self.store = Path(config["stages_dir"])
        self.ended: list[Ended] = []
        self.parent = Parent(config, folder)
        self.mirrors: list[Tracker | None] = []

    def run(self) -> int:
        """All stages; whatever ends it, result.json and the tracking run say how."""
        code, status = FAILED, cast(Status, "failed")
        try:
            code = next((code for number in range(len(self.nodes)) if (code := self._stage(number))), DONE)
            status = _status(code)
        except KeyboardInterrupt as stop:
            code, status = (stop.code if isinstance(stop, Stopped) else 130), "stopped"
        finally:
            self._close(status)
        return code

    @property
    def nodes(self) -> Sequence[dict[str, Any]]:
        """The stages as composed."""
        nodes: list[dict[str, Any]] = self.config["stages"]
        return nodes

    def _stage(self, number: int) -> int:
        """Makes or finds one stage; returns its exit code."""
        node = self.nodes[number]
        config = self._with_budget(number)
        before = {stage.name: stage for stage in self.ended}
        key = stage_hash(config, {name: before[source].key for name, source in node["inputs"].items()})
        paths = {name: str(before[source].folder / store.ARTIFACT) for name, source in node["inputs"].items()}
        title = f"stage {number + 1}/{len(self.nodes)} {node['name']}"
        with store.holding(self.store, key, lambda: say(f"{title}: another process is making it; waiting")) as folder:
            place = self.folder / f"{number + 1:0{len(str(len(self.nodes)))}d}_{node['name']}"
            store.link(place, folder)
            wanted = {**entered(config, paths), "output_dir": str(folder), "resume": self.config["resume"]}
            wanted["tracking"] = self.parent.tracking(config, node["name"])
            code, reused = self._made(wanted, folder, title, place)
            result = store.result_of(folder)
        self.ended.append(Ended(node["name"], place, folder, key, reused, _status(code), config, result))
        self._say_end(self.ended[-1], title, code)
        return code

    def _with_budget(self, number: int) -> dict[str, Any]:
        """The stage's config with its part of the pipeline's budget."""
        config = self.nodes[number]["config"]
        unit = unit_of(self.config["budget"])
        if unit is None:
            return config
        spent = sum(spent_by(unit, stage.result or {}, stage.config) for stage in self.ended)
        return {**config, "budget": part_of(self.config["budget"], self.nodes, number, spent)}

    def _made(self, wanted: dict[str, Any], folder: Path, title: str, place: Path) -> tuple[int, bool]:
        """Makes the stage unless it is there; returns its exit code, and whether it was there."""
        from posttrain.runs.job import run_isolated

        past = store.result_of(folder)
        if past is not None and past["status"] == "finished" and wanted["resume"] != "never":
            reason = store.distrust(folder, wanted)
            if reason is None:
                say(f"{title}: reused, {shown(folder)}")
                measure_later(wanted, allow=self.allow_targets)
                self.mirrors.append(mirror(folder, self.folder / ".reused" / place.name, wanted))
                return DONE, True
            say(f"{title}: made anew, {reason}")
            store.begin_anew(folder)
        say(f"{title}: {'continues' if (folder / 'checkpoints').is_dir() else 'begins'} in {shown(place)}")
        return run_isolated(wanted, allow_targets=self.allow_targets), False

    def _say_end(self, stage: Ended, title: str, code: int) -> None:
        if stage.reused:
            return
        if code == DONE and stage.result is not None:
            say(f"{title}: finished, {stage.result['steps']} steps in {duration(float(stage.result['train_seconds']))}")
        elif code in STOPPED:
            say(f"{title}: stopped; the same command continues it")
        else:
            say(f"{title}: failed (exit code {code}), so the pipeline ends here; see {shown(stage.place / 'log.txt')}")

    def _close(self, status: Status) -> None:
        """result.json, the tracking run, the link to the last artifact, the closing table."""
        result = result_of_all(self.config, self.ended, status, self.parent.run_id)
        if status == "finished":
            store.link(self.folder / store.ARTIFACT, self.ended[-1].place / store.ARTIFACT)
        write_result(self.folder / "result.json", result)
        for tracker in filter(None, self.mirrors):
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


def _status(code: int) -> Status:
    return "finished" if code == DONE else "stopped" if code in STOPPED else "failed"


def say(text: str) -> None:
    """A line for the terminal, at once: what follows is written by the stage's own process."""
    print(text, flush=True)
