"""A stop signal before the first step, after the last one, and when all is done, as a cluster sends it before a job's time is up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.runs import job, session
from posttrain.runs.compose import compose
from posttrain.runs.signals import HANDLED, Stopped, StopRequest, stop_on_signals

LINE = (
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=20", "global_batch=2", "max_steps=2",
    "validate.at_start=false", "data.generator.held_out=4", "model.architecture.num_hidden_layers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == 0
    return folder


def run(folder: Path) -> int:
    return job.run_job(compose([*LINE, f"output_dir={folder}"]))


def signalled(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, which this process's cluster interrupts when it is called."""

    def call(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments, **settings)

    return call


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def losses(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("place", "number", "code"),
    [
        ("with_cached_reference", signal.SIGUSR2, 140),
        ("within_budget", signal.SIGTERM, 143),
        ("save_run_artifact", signal.SIGUSR2, 140),
        ("reports", signal.SIGINT, 130),
    ],
)
def test_outside_of_steps_a_run_stops_at_once_and_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: Any, place: str, number: int, code: int
) -> None:
    extra = {"with_cached_reference": ["method=dpo", "data=arithmetic_pairs", "method.reference=cached"]}.get(place, [])
    folder = tmp_path / "run"
    config = compose([*LINE, *extra, f"output_dir={folder}"])
    with monkeypatch.context() as patch:
        if place == "reports":
            patch.setattr(session.Session, "_report", signalled(session.Session._report, number))
        else:
            patch.setattr(session, place, signalled(getattr(session, place), number))
        assert job.run_job(config) == code
    trained = place in ("save_run_artifact", "reports")
    assert (folder / "checkpoints" / "step-00000002").is_dir() is trained
    if trained:
        assert result(folder)["status"] == "stopped"
        assert run(folder) == 0
        assert result(folder)["status"] == "finished"
        assert losses(folder) == losses(undisturbed)


def test_before_training_begins_a_signal_is_ours_and_not_the_trainers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("posttrain.runs.callbacks.preflight.same_on_all_ranks", signalled(lambda job: None, signal.SIGTERM))
    assert run(tmp_path / "run") == 143
    assert result(tmp_path / "run")["status"] == "stopped"


def test_a_run_that_is_done_has_ended_well(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(session, "write_result", signalled(session.write_result, signal.SIGTERM))
    assert run(tmp_path / "run") == 0
    assert result(tmp_path / "run")["status"] == "finished"


def test_a_second_interrupt_ends_a_step_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    from posttrain.runs.callbacks.record import StepRecorder

    twice = signalled(signalled(StepRecorder.on_train_batch_start, signal.SIGINT), signal.SIGINT)
    monkeypatch.setattr(StepRecorder, "on_train_batch_start", twice)
    assert run(tmp_path / "run") == 130
    assert result(tmp_path / "run")["status"] == "stopped"
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_what_a_signal_means_when() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with stop_on_signals() as stop, pytest.raises(Stopped) as stopped:
        stop(signal.SIGTERM, None)
    stop(signal.SIGUSR2, None)  # the cluster's comes with it
    assert stopped.value.code == 140
    late = StopRequest()
    late.begin_steps()
    late(signal.SIGUSR2, None)
    with pytest.raises(Stopped):
        late.end_steps()
    agreed = StopRequest()
    agreed.begin_steps()
    agreed.agree([signal.SIGTERM])
    agreed.end_steps()
    done = StopRequest()
    done.ignore()
    done(signal.SIGTERM, None)
    done(signal.SIGINT, None)
    assert [signal.getsignal(number) for number in HANDLED] == before
