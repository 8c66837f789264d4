"""MLflow for real: SQLite databases, a sender process, and an `mlflow server` that is killed and restarted."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from posttrain.errors import ConfigError
from posttrain.runs.records import MetricsFile, Result, Status, read_result, write_result
from posttrain.runs.slurm import closing
from posttrain.runs.sweep_record import JobRecord, Outcome
from posttrain.runs.tracking import DatasetRecord, RunInfo, mlflow
from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.mlflow import CLIENT_SETTINGS, MLflowTracker
from posttrain.runs.tracking.store import Store
from posttrain.runs.tracking.sweep import ask_store, finish_parent, start_parent
from posttrain.runs.tracking.sync import send_rest, sync

CONFIG = {"method": {"name": "sft"}, "optimizer": {"lr": 0.1}, "study": "demo", "data": {"sources": [{"path": "x"}]}, "note": "n" * 7000}
DATA = DatasetRecord(name="gsm8k", source="gsm8k.jsonl", digest="d" * 40, context="train", examples=7)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.getcwd()}


@pytest.fixture(autouse=True)
def client_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in CLIENT_SETTINGS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def info(folder: Path, **changes: object) -> RunInfo:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    return RunInfo(**{"output_dir": folder, "name": folder.name, "config": CONFIG, "tags": {"arm": "a"}, "datasets": [DATA]} | changes)


class Run:
    """The files of a run, and its tracker, as a training loop uses them."""

    def __init__(self, folder: Path, uri: str, **settings: object):
        self.info = info(folder)
        self.folder = folder
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.throughput = MetricsFile(folder / "throughput.jsonl", timed=True)
        self.tracker = MLflowTracker(uri=uri, **{"system_seconds": None} | settings)
        self.slowest = 0.0

    def start(self, step: int = 0, **changes: object) -> "Run":
        self.metrics.truncate_after(step)
        self.throughput.truncate_after(step)
        self.tracker.start(info(self.folder, start_step=step, **changes))
        return self

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            began = time.perf_counter()
            row = {"loss": 1 / step, "tokens": 10 * step}
            self.metrics.append(step, row)
            self.throughput.append(step, {"tokens_per_second": 5.0})
            self.tracker.log(step, row)
            self.slowest = max(self.slowest, time.perf_counter() - began)

    def result(self) -> None:
        fields = {"examples": 1, "tokens": 1, "flops": 1.0, "train_seconds": 1.0, "tokens_per_second": 1.0, "peak_memory_bytes": 1}
        write_result(self.folder / "result.json", Result(status="finished", method="sft", steps=1, metrics={}, **fields))


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time limit"
        time.sleep(0.1)


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key))


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, last + 1)]


def test_a_whole_run_is_recorded(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", database, system_seconds=0.1).start()
    assert run.tracker._sender is not None
    run.tracker._sender.terminate()  # as a cluster does to every process of a job, here to one that is still importing
    run.metrics.append(0, {"val/loss": 3.0, "eval/exact_match/accuracy": float("nan")})
    run.steps(1, 30)
    run.tracker.table("samples", [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": None}])
    (tmp_path / "run" / "loss.png").write_bytes(b"png")
    run.tracker.figure(tmp_path / "run" / "loss.png")
    run.tracker.artifact(tmp_path / "run" / "absent.json")
    run.result()
    run.tracker.finish("finished")

    client, run_id = MlflowClient(database), str(run.tracker.run_id)
    record = client.get_run(run_id)
    assert record.info.status == "FINISHED"
    assert history(database, run_id) == expected(30)
    assert {"train/tokens_per_second", "val/loss", "eval/exact_match/accuracy"} <= record.data.metrics.keys()
    assert any(key.startswith("system/") for key in record.data.metrics)
    assert record.data.params["optimizer.lr"] == "0.1"
    assert record.data.params["data.sources.0.path"] == "x"
    assert len(record.data.params["note"]) == 6000
    tags = {"posttrain.method": "sft", "posttrain.study": "demo", "posttrain.arm": "a"}
    assert tags.items() <= record.data.tags.items()
    [dataset] = record.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("gsm8k", "d" * 36, "train")
    assert {item.path for item in client.list_artifacts(run_id)} == {"config.yaml", "samples.json", "plots", "result.json"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)  # load_table asks MLflow's global store
    assert client.load_table(record.info.experiment_id, "samples.json", [run_id])["prompt"].tolist() == ["1+1", "2+2"]
    assert read_result(tmp_path / "run" / "result.json").mlflow_run_id == run_id
    state = Journal(tmp_path / "run").state()
    assert state is not None
    assert len(state.rejected) == 1
    assert "absent.json" in state.rejected[0]
    assert not Path("mlruns").exists()
    assert not Path("mlflow.db").exists()


@pytest.fixture
def no_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave their record on disk; `sync` sends it, without the seconds a process takes to import MLflow."""
    monkeypatch.setattr(mlflow, "launch_sender", lambda journal, session: subprocess.Popen(["true"]))


@pytest.mark.usefixtures("no_sender")
@pytest.mark.parametrize(("status", "recorded"), [("failed", "FAILED"), ("stopped", "KILLED")])
def test_how_a_run_ended(tmp_path: Path, database: str, status: Status, recorded: str) -> None:
    run = Run(tmp_path / "run", database).start()
    run.metrics.append(1, {"loss": 1.0})
    run.tracker.finish(status)
    [report] = sync(tmp_path)
    assert (report.metrics, report.events) == (1, 2)
    assert MlflowClient(database).get_run(report.run_id).info.status == recorded
    [again] = sync(tmp_path)
    assert (again.run_id, again.metrics, again.events) == (report.run_id, 0, 0)


KILLED = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, "tests/runs")
    from test_tracking_mlflow import Run, wait_until
    run = Run(Path(sys.argv[1]), sys.argv[2]).start()
    run.steps(1, 20)
    wait_until(lambda: run.tracker.run_id)
    time.sleep(2.5)
    run.steps(21, 40)
    os.kill(os.getpid(), signal.SIGKILL)
    """
)


def test_sigkill_and_resume_give_one_run_without_gaps_or_doubles(tmp_path: Path, database: str) -> None:
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), database], env=ENVIRONMENT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    state = Journal(folder).state()
    assert state is not None
    run_id = str(state.run_id)
    wait_until(lambda: MlflowClient(database).get_run(run_id).info.status == "FAILED")
    assert history(database, run_id) == expected(40), "what the dead run had written was sent"

    resumed = Run(folder, database).start(step=25)
    wait_until(lambda: MlflowClient(database).get_run(run_id).info.status == "RUNNING")
    resumed.steps(26, 60)
    resumed.tracker.finish("finished")
    assert resumed.tracker.run_id == run_id
    assert history(database, run_id) == expected(60)
    assert MlflowClient(database).get_run(run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("no_sender")
def test_resume_never_begins_a_new_record(tmp_path: Path, database: str) -> None:
    ids = []
    for continued in (True, True, False):
        run = Run(tmp_path / "run", database).start(continued=continued)
        run.steps(1, 3)
        run.tracker.finish("finished")
        ids.append(sync(tmp_path)[0].run_id)
    assert ids[0] == ids[1] != ids[2]
    assert history(database, ids[0]) == history(database, ids[2]) == expected(3)


def unsent_record(folder: Path, uri: str, steps: int) -> Store:
    Run(folder, uri).start().steps(1, steps)
    return Store(Journal(folder))


@pytest.mark.usefixtures("no_sender")
def test_a_lost_reply_does_not_double_anything(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = unsent_record(tmp_path / "run", database, 10)
    (tmp_path / "run" / "throughput.jsonl").unlink()  # without its times every attempt has new ones, which MLflow takes for new values
    real = MlflowClient.log_batch
    lost = []

    def commit_then_lose(client: MlflowClient, run_id: str, *args: object, **batch: object) -> None:
        real(client, run_id, *args, **batch)
        if batch.get("metrics") and not lost:
            lost.append(run_id)
            raise MlflowException("connection reset")

    monkeypatch.setattr(MlflowClient, "log_batch", commit_then_lose)
    with pytest.raises(MlflowException, match="connection reset"):
        store.send()
    store.disconnect("away")
    store.send()
    assert lost
    assert history(database, store.run_id) == expected(10)


@pytest.mark.usefixtures("no_sender")
def test_a_run_created_but_never_written_down_is_found_again(tmp_path: Path, database: str) -> None:
    first = unsent_record(tmp_path / "run", database, 3)
    first.send()
    Journal(tmp_path / "run").state_path.unlink()
    second = Store(Journal(tmp_path / "run"))
    second.send()
    assert second.run_id == first.run_id
    assert history(database, first.run_id) == expected(3)


@pytest.mark.usefixtures("no_sender")
def test_another_store_gets_everything(tmp_path: Path, database: str) -> None:
    unsent_record(tmp_path / "run", database, 5).send()
    other = f"sqlite:///{tmp_path}/other.db"
    run = Run(tmp_path / "run", other).start(step=5)
    run.steps(6, 8)
    [report] = sync(tmp_path)
    assert history(other, report.run_id) == expected(8)
    assert MlflowClient(other).get_run(report.run_id).data.params["optimizer.lr"] == "0.1"


@pytest.mark.usefixtures("no_sender")
def test_resumed_from_another_folder_a_run_stays_in_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate((tmp_path / "first", tmp_path / "second")):
        folder.mkdir()
        monkeypatch.chdir(folder)
        tracker = MLflowTracker(system_seconds=None)
        tracker.start(info(tmp_path / "run", start_step=number))
        assert tracker.uri == f"sqlite:///{tmp_path}/first/outputs/mlflow.db"
    assert tracker.hint() == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/first/outputs/mlflow.db"


@pytest.mark.usefixtures("no_sender")
def test_a_run_deleted_in_mlflow_is_written_anew(tmp_path: Path, database: str) -> None:
    first = unsent_record(tmp_path / "run", database, 3)
    first.send()
    MlflowClient(database).delete_run(first.run_id)
    [report] = sync(tmp_path)
    assert report.run_id != first.run_id
    assert history(database, report.run_id) == expected(3)


@pytest.mark.usefixtures("no_sender")
def test_sweep_has_one_parent(tmp_path: Path, database: str) -> None:
    config = {"tracking": {"_target_": "x.MLflowTracker", "uri": database, "experiment": "posttrain"}, "study": None}
    parent = start_parent(config, ["seed=1,2"], tmp_path / "sweep")
    assert parent
    assert start_parent(config, ["seed=1,2"], tmp_path / "sweep") == parent, "the same sweep, started again"
    Run(tmp_path / "run", database, parent_run_id=parent).start()
    [child] = sync(tmp_path)
    (tmp_path / "compare.json").write_text("{}")
    assert ask_store("add", {"uri": database, "run_id": parent, "files": [str(tmp_path / "compare.json")], "into": "compare"}) == parent
    finish_parent(config, parent, "finished")
    client = MlflowClient(database)
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent
    assert client.get_run(parent).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(parent, "compare")] == ["compare/compare.json"]
    assert start_parent({"tracking": {"_target_": "x.NoTracker"}}, [], tmp_path) is None


@pytest.mark.slow
def test_runs_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    runs = [Run(tmp_path / f"run{index}", uri).start() for index in range(3)]
    for run in runs:
        run.steps(1, 20)
    for run in runs:
        run.tracker.finish("finished")
    assert len({run.tracker.run_id for run in runs}) == 3
    for run in runs:
        assert history(uri, str(run.tracker.run_id)) == expected(20)
    assert len(MlflowClient(uri).search_experiments()) == 2, "Default and ours"


def test_a_server_that_accepts_and_never_answers_does_not_hold_up_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        run = Run(tmp_path / "run", f"http://127.0.0.1:{silent.getsockname()[1]}", finish_seconds=3).start()
        run.steps(1, 5)
        began = time.monotonic()
        run.tracker.finish("finished")
        assert 2.9 < time.monotonic() - began < 8
    assert "not everything reached http://127.0.0.1" in caplog.text
    assert run.tracker.run_id is None


def test_a_run_that_failed_before_its_start_has_no_record(tmp_path: Path, database: str) -> None:
    run = Run(tmp_path / "run", database)
    run.tracker.finish("failed")
    assert not Journal(tmp_path / "run").folder.exists()
    assert Journal(tmp_path / "run").state() is None


def test_nothing_to_sync_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no MLflow records.*needs tracking=mlflow"):
        sync(tmp_path)


class Server:
    """An `mlflow server` on the loopback, to be killed and started again on the same port and database."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *stores],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        wait_until(self.answers, 120)

    def answers(self) -> bool:
        try:
            MlflowClient(self.uri).search_experiments(max_results=1)
        except MlflowException:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_server_down_at_start_and_killed_midway(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "run", server.uri, finish_seconds=15).start()
    run.steps(1, 50)
    journal = Journal(tmp_path / "run")
    wait_until(lambda: (state := journal.state()) and state.problem)
    server.start()
    wait_until(lambda: run.tracker.run_id)
    run_id = str(run.tracker.run_id)
    wait_until(lambda: len(history(server.uri, run_id)) == 50)

    server.kill()
    run.steps(51, 100)
    run.result()
    began = time.monotonic()
    run.tracker.finish("finished")
    assert time.monotonic() - began < 20
    assert f"posttrain sync run={tmp_path / 'run'}" in caplog.text
    assert run.slowest < 1.0, "training waited for the server"
    with pytest.raises(ConfigError, match=r"does not answer.*start the server"):
        sync(tmp_path / "run")

    server.start()
    [report] = sync(tmp_path / "run")
    assert report.run_id == run_id
    assert history(server.uri, run_id) == expected(100)
    record = MlflowClient(server.uri).get_run(run_id)
    assert record.info.status == "FINISHED"
    assert {item.path for item in MlflowClient(server.uri).list_artifacts(run_id)} == {"config.yaml", "result.json"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["mlflow_run_id"] == run_id


def test_what_a_cluster_ended_too_soon_is_sent_by_who_follows(tmp_path: Path, database: str) -> None:
    """A job that said how it ended and could not send it; and one that could say nothing."""
    jobs = [JobRecord(name, tmp_path / name, tmp_path / f"{name}.yaml") for name in ("stopped", "killed")]
    for job in jobs:
        run = Run(job.folder, database).start()
        assert run.tracker._sender is not None
        run.tracker._sender.kill()
        run.steps(1, 2)
        if job.name == "stopped":
            run.tracker.finish("stopped")
            Outcome(job.file).write(143)
    send_rest(jobs[0].folder)
    closing.close(jobs[1], 1)
    assert Outcome(jobs[1].file).read() == 1
    found = {job.name: MlflowClient(database).get_run(str(state.run_id)) for job in jobs if (state := Journal(job.folder).state())}
    assert {name: record.info.status for name, record in found.items()} == {"stopped": "KILLED", "killed": "FAILED"}
    assert all(history(database, record.info.run_id) == expected(2) for record in found.values())
