"""Processes that are forked from one that has imported everything: each is what a fresh one is."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posttrain.runs.compose import compose
from posttrain.runs.forking import client
from posttrain.runs.forking.client import fork, serving, serving_runs, start
from posttrain.runs.forking.request import SERVER, Request, is_possible, socket_at

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_NO_ADVISORY_WARNINGS")  # which each command of this package sets for itself
PROBE = [sys.executable, "-m", "tests.forked_probe"]


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """No server but the one of this file; it finds the tests, and what it forks has one thread."""
    monkeypatch.delenv(SERVER, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def address():
    """Of a server that has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv(SERVER, raising=False)
        with serving(["torch", "numpy", "tests.forked_probe"]):
            yield os.environ[SERVER]


@pytest.fixture(scope="module")
def line(address):
    return socket_at(address)


def told(process):
    text = process.stdout.read().decode()
    assert process.wait(60) == 0, text
    return json.loads(text.splitlines()[-1])


def forked(line, *arguments, **environment):
    """In its `stdout` is what it prints."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "wb"):
        process = fork(line, [*PROBE, *arguments], {**os.environ, **environment}, output=(theirs, theirs))
    stdout = os.fdopen(ours, "rb")
    if process is not None:
        process.stdout = stdout
    return process


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def written(file, seconds=30):
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return file.read_text()


def test_it_is_a_process_of_its_own(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (told(forked(line, "tell", OMP_NUM_THREADS=threads, POSTTRAIN_X="y")) for threads in ("1", "2"))
    for found, threads in ((first, 1), (second, 2)):
        assert found["session"] == found["pid"] != os.getpid()
        assert found["folder"] == found["path"] == str(tmp_path)
        assert found["threads"] == threads
        assert found["environment"] == {**os.environ, **found["environment"], "POSTTRAIN_X": "y", "OMP_NUM_THREADS": str(threads)}
    for drawn in ("drawn", "numpy", "torch"):  # not both what the server would have drawn
        assert first[drawn] != second[drawn]
    assert first["parent"] == second["parent"]


def test_it_has_the_environment_folder_and_threads_of_a_fresh_one(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh = json.loads(subprocess.run([*PROBE, "tell"], env=os.environ, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    found = told(forked(line, "tell"))
    for process in (found, fresh):
        process["environment"] = {name: value for name, value in process["environment"].items() if name not in QUIET}
    for same in ("environment", "folder", "path", "argv", "threads", "cores"):
        assert found[same] == fresh[same], same


def test_it_runs_on_the_cores_of_who_asks(line, monkeypatch):
    cores = os.sched_getaffinity(0)
    one = {min(cores)}
    try:
        os.sched_setaffinity(0, one)
        assert told(forked(line, "tell"))["cores"] == sorted(one)
    finally:
        os.sched_setaffinity(0, cores)


def test_its_exit_code_and_the_signal_that_killed_it_are_told(line):
    assert forked(line, "code", "3").wait(30) == 3
    assert forked(line, "die", str(int(signal.SIGKILL))).wait(30) == -signal.SIGKILL
    assert forked(line, "die", str(int(signal.SIGTERM))).wait(30) == -signal.SIGTERM
    assert forked(line, "interrupted").wait(30) == 130


def test_it_ends_as_a_fresh_one_does(line, tmp_path):
    assert forked(line, "leave", str(tmp_path / "forked")).wait(30) == 4
    assert subprocess.run([*PROBE, "leave", str(tmp_path / "fresh")], check=False).returncode == 4
    assert (tmp_path / "forked").read_text() == (tmp_path / "fresh").read_text() == "main thread atexit "


def test_it_may_be_stopped_and_waited_for(line, tmp_path):
    process = forked(line, "wait", str(tmp_path / "told"))
    pid, server = map(int, written(tmp_path / "told").split())
    assert pid == process.pid
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert process.wait(30) == process.poll() == process.returncode == -signal.SIGTERM
    process.kill()  # of one that has ended: nothing
    assert not gone(server, 0)


def test_a_signal_that_who_asks_has_blocked_does_not_reach_it(line):
    """However soon it comes: the process lives before it has its own mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        for _ in range(8):
            process = forked(line, "code", "0")
            process.terminate()
            assert process.wait(30) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_it_sees_the_end_of_who_asked_for_it(line, tmp_path):
    process = forked(line, "wait", str(tmp_path / "told"))
    written(tmp_path / "told")
    process.stdin.close()
    assert process.wait(30) == 0
    assert (tmp_path / "told").read_text() == "the end of standard input"


def test_what_it_starts_comes_from_the_same_server(line, address):
    below = forked(line, "again", address)
    assert told(below)["parent"] == told(forked(line, "tell"))["parent"]


@pytest.mark.parametrize("name", ["HF_HOME", "OMP_WAIT_POLICY", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES"])
def test_another_environment_wants_a_process_that_imports_anew(line, name):
    assert forked(line, "tell", **{name: "3"}) is None


def test_a_missing_variable_counts_as_another_one(line, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    assert forked(line, "tell") is None


def test_a_long_environment_reaches_it(line):
    found = told(forked(line, "tell", POSTTRAIN_LONG="x" * 100_000))
    assert found["environment"]["POSTTRAIN_LONG"] == "x" * 100_000


def test_a_killed_server_ends_what_it_forked_and_is_done_without(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with serving(["tests.forked_probe"]):
        line = socket_at(os.environ[SERVER])
        process = fork(line, [*PROBE, "wait", str(tmp_path / "told")], os.environ)
        server = int(written(tmp_path / "told").split()[1])
        os.kill(server, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert gone(process.pid)
        assert fork(line, [*PROBE, "tell"], os.environ) is None
        monkeypatch.setattr(client, "FORKED", ["tests.forked_probe"])
        fresh = start([*PROBE, "code", "0"], os.environ)
        assert isinstance(fresh, subprocess.Popen)
        fresh.communicate()
    assert SERVER not in os.environ


def test_a_server_that_still_imports_is_not_waited_for():
    began = time.monotonic()
    with serving(["posttrain.runs.session"]):
        time.sleep(0.5)
    assert time.monotonic() - began < 3


def test_a_kernel_without_descriptors_of_processes_has_no_server(monkeypatch):
    def refused(pid):
        raise OSError(errno.ENOSYS, "no such call")

    assert is_possible()
    monkeypatch.setattr(os, "pidfd_open", refused)
    assert not is_possible()
    with serving(["torch"]):
        assert SERVER not in os.environ


def test_a_server_that_cannot_import_is_done_without(tmp_path, monkeypatch, capfd):
    with serving(["no_such_module"]):
        assert fork(socket_at(os.environ[SERVER]), [*PROBE, "tell"], os.environ) is None
    assert "no_such_module" in capfd.readouterr().err


def test_server_and_processes_end_with_a_killed_parent(tmp_path):
    script = (
        "import os\nfrom posttrain.runs.forking.client import *\nfrom posttrain.runs.forking.request import *\n"
        f"with serving(['tests.forked_probe']):\n    fork(socket_at(os.environ[SERVER]), {[*PROBE, 'wait', str(tmp_path / 'told')]!r},"
        " os.environ).wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    pid, server = map(int, written(tmp_path / "told").split())
    parent.kill()
    parent.wait()
    assert gone(pid)
    assert gone(server)


def test_another_file_at_the_sockets_number_is_not_taken_for_it(tmp_path):
    with (tmp_path / "x").open("w") as file:
        assert socket_at(f"{file.fileno()}:{os.fstat(file.fileno()).st_ino}") is None
    assert socket_at("") is socket_at("9999:1") is socket_at("a:b") is None


def test_a_request_comes_back_as_it_was():
    request = Request.of(["python", "-m", "m", "a b", "ü"], {"K": "v=\n"})
    assert Request.read(request.as_json()) == Request("m", ["a b", "ü"], {"K": "v=\n"}, os.getcwd(), sorted(os.sched_getaffinity(0)), [])


def test_there_is_a_server_where_several_processes_without_gpus_are_started(monkeypatch):
    asked = []
    monkeypatch.setattr(client, "serving", lambda: asked.append(1) or client.nullcontext())
    one, several = compose(["method=sft", "model=nano", "hardware=cpu"]), compose(["method=staged", "model=nano", "hardware=cpu"])
    gpu = {**one, "hardware": {**one["hardware"], "accelerator": "cuda", "devices": 1}}
    for configs, wanted in (([one], 0), ([one, one], 1), ([several], 1), ([one, gpu], 0)):
        with serving_runs(configs):
            assert len(asked) == wanted, configs
        asked.clear()


@pytest.mark.slow
def test_a_pipeline_forks_its_stages_and_comes_to_the_same(tmp_path, monkeypatch):
    """Beside one whose stages start from nothing."""
    line = ["method=staged", "model=nano", "hardware=cpu", "max_steps=2", "data.generator.held_out=8", "global_batch=2", "max_length=64",
            "tracking=none", "evaluation=none", "model.architecture.num_hidden_layers=1"]  # fmt: skip
    from posttrain.runs.job import run_job

    made = []

    def kept(*given, **keys):
        made.append(fork(*given, **keys))
        return made[-1]

    monkeypatch.setattr(client, "fork", kept)
    monkeypatch.setattr("posttrain.runs.processes.start", start)
    monkeypatch.setattr(client, "serving", serving)
    for name, processes in (("forked", 2), ("fresh", 0)):
        monkeypatch.setattr(client, "is_possible", lambda possible=bool(processes): possible)
        composed = compose([*line, f"output_dir={tmp_path / name / 'run'}", f"stages_dir={tmp_path / name / 'stages'}"])
        assert run_job(composed) == 0
        assert len(made) == processes
        assert all(made)
        made.clear()
    for stage in ("1_sft", "2_grpo"):
        for file in ("metrics.jsonl", "artifact/model.safetensors"):
            assert (tmp_path / "forked/run" / stage / file).read_bytes() == (tmp_path / "fresh/run" / stage / file).read_bytes(), file
