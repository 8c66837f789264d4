"""Runs at the same time on one machine: who gets which devices, how they begin, end and stop, and what the terminal shows."""

import signal
import subprocess
import sys
import time

import pytest

from posttrain.cores import CORES
from posttrain.errors import ConfigError
from posttrain.runs.parallel import places
from posttrain.runs.parallel.launch import Parallel, Task
from posttrain.runs.parallel.launch import run_tasks as run_placed
from posttrain.runs.parallel.places import Need, Places

CPU = Need(0, 1)


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores and GPUs."""

    def made(cores, gpus=0, visible=None):
        monkeypatch.setattr(places, "usable_cores", lambda _: cores)
        monkeypatch.setattr(places, "gpu_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return made


@pytest.mark.parametrize(
    ("cores", "needs", "n_jobs", "most", "threads"),
    [
        (8, [CPU] * 20, None, 8, 1),
        (8, [CPU] * 2, None, 2, 4),
        (8, [CPU] * 20, 3, 3, 2),
        (8, [Need(0, 4)] * 3, None, 2, 4),
        (2, [Need(0, 4)] * 3, None, 1, 2),
        (1, [CPU] * 3, 2, 2, 1),
        (64, [Need(0, 2)] * 2, None, 2, 32),
    ],
)
def test_cores_are_given_out_in_equal_parts(machine, cores, needs, n_jobs, most, threads):
    machine(cores)
    found = Places(needs, n_jobs)
    assert [found.take(number, need) for number, need in enumerate(needs)].count(True) == most
    own = found.environment(0, {"HOME": "/h"})
    assert own == {"HOME": "/h", "OMP_NUM_THREADS": str(threads), CORES: str(threads)}


def test_fewer_threads_that_the_user_asked_for_stay(machine):
    machine(8)
    found = Places([CPU, CPU], None)
    found.take(0, CPU)
    assert [found.environment(0, {"OMP_NUM_THREADS": given})["OMP_NUM_THREADS"] for given in ("2", "16", "x")] == ["2", "4", "4"]


def test_gpus_are_given_out_and_come_back(machine):
    machine(64, gpus=4, visible="3, 5,7,9")
    two, one = Need(2, 2), Need(1, 1)
    found = Places([two, one, two, one], None)
    assert [found.take(0, two), found.take(1, one), found.take(2, two)] == [True, True, False]
    assert [found.environment(number, {})["CUDA_VISIBLE_DEVICES"] for number in (0, 1)] == ["3,5", "7"]
    found.leave(0)
    assert found.take(2, two)
    assert found.environment(2, {})["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert found.cores == 16, "at most four runs share the 64 cores"


def test_a_pipeline_needs_what_its_widest_stage_does():
    hardware = [{"accelerator": "cuda", "devices": 1}, {"accelerator": "cuda", "devices": 4}]
    config = {"stages": [{"config": {"hardware": one}} for one in hardware], "hardware": hardware[0]}
    assert Need.of(config) == Need(4, 4)
    assert Need.of({"stages": [], "hardware": {"accelerator": "cpu", "devices": 2}}) == Need(0, 2)


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "two"])
def test_a_number_of_runs_that_is_none_is_refused(given):
    with pytest.raises(ConfigError, match="n_jobs"):
        Parallel.of({"n_jobs": given})


def task(name, code, *arguments):
    return Task(name, [sys.executable, "-c", code, *map(str, arguments)], CPU)


def run_tasks(tasks, n_jobs=None):
    return run_placed(tasks, Places([task.need for task in tasks], n_jobs))


MEETS = "import sys,time,pathlib\nme,other=map(pathlib.Path,sys.argv[1:])\nme.touch()\nend=time.time()+20\n" \
        "while not other.exists():\n    assert time.time()<end\n    time.sleep(0.05)\nprint('met')"  # fmt: skip


def test_runs_are_there_at_the_same_time_and_their_lines_bear_their_names(tmp_path, machine, capfd):
    machine(2)
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_tasks([task("first", MEETS, a, b), task("second", MEETS, b, a)]) == [0, 0]
    assert sorted(capfd.readouterr().out.splitlines()) == ["first | met", "second | met"]


def test_exit_codes_come_in_order_and_a_failure_leaves_the_others_alone(machine, capfd):
    machine(2)
    tasks = [task("slow", "import time,sys; time.sleep(1); sys.exit(3)"), task("bad", "1/0"), task("dead", "import os; os.kill(os.getpid(), 9)"),
             task("good", "print('done')")]  # fmt: skip
    assert run_tasks(tasks, n_jobs=2) == [3, 1, 1, 0]
    out = capfd.readouterr().out
    assert "bad | ZeroDivisionError: division by zero" in out
    assert "good | done" in out


def test_one_at_a_time_where_that_is_asked_for(tmp_path, machine):
    machine(8)
    alone = "import sys,os,time; os.mkdir(sys.argv[1]); time.sleep(0.3); os.rmdir(sys.argv[1])"
    assert run_tasks([task(str(number), alone, tmp_path / "here") for number in range(3)], n_jobs=1) == [0, 0, 0]


def test_a_stop_of_one_run_ends_the_sweep_when_those_under_way_are_done(tmp_path, machine):
    machine(2)
    late, begun = tmp_path / "late", tmp_path / "begun"
    tasks = [
        task("stopped", "import sys; sys.exit(130)"),
        task("under way", "import sys,time,pathlib; time.sleep(1); pathlib.Path(sys.argv[1]).touch()", late),
        task("never", "import sys,pathlib; pathlib.Path(sys.argv[1]).touch()", begun),
    ]
    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks, n_jobs=2)
    assert late.exists()
    assert not begun.exists()


STOPS = """
import sys
from posttrain.runs.parallel.launch import Task, run_tasks
from posttrain.runs.parallel.places import Need, Places
child = ("import signal,sys,time,pathlib\\n"
         "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]+'.stopped').touch(), sys.exit(143)))\\n"
         "pathlib.Path(sys.argv[1]).touch()\\ntime.sleep(60)")
tasks = [Task(str(n), [sys.executable, "-c", child, f"{folder}/{{n}}"], Need(0, 1)) for n in range(3)]
try:
    run_tasks(tasks, Places([task.need for task in tasks], 2))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_a_stop_signal_reaches_all_that_run_and_nothing_else_begins(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STOPS.format(folder=tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0].strip() == "stopped"
    finally:
        process.kill()
    assert {file.name for file in tmp_path.iterdir()} == {"0", "0.stopped", "1", "1.stopped"}


class StoppedAtTheDoor(Places):
    """A stop signal comes while a process begins: it is not among those that run yet."""

    def environment(self, number, base):
        signal.raise_signal(signal.SIGTERM)
        return super().environment(number, base)


def test_a_stop_signal_reaches_a_process_that_was_about_to_begin():
    sleeper = task("sleeps", "import time; time.sleep(50)")
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_placed([sleeper], StoppedAtTheDoor([sleeper.need], 1))
    assert time.monotonic() - begin < 20


@pytest.mark.slow
def test_a_stage_that_runs_share_is_made_once_by_itself_and_first(tmp_path, capfd):
    from posttrain.__main__ import main

    common = [
        "method=staged", "model=nano", "hardware=cpu", "seed=1,2", "stages.sft.seed=0", "stages.sft.max_steps=1", "stages.grpo.max_steps=1",
        "stages.grpo.rollout.max_new_tokens=4", "global_batch=4", "max_length=64", "evaluation=none", "validate.at_start=false",
        "validate.at_end=false", "tracking=none", "data.generator.train=200", "data.generator.held_out=10",
    ]  # fmt: skip
    where = [f"output_dir={tmp_path / 'sweep'}", f"stages_dir={tmp_path / 'stages'}"]
    assert main(["-m", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", *common, *where]) == 0
    lines = capfd.readouterr().out.splitlines()
    made = [line for line in lines if "sft: begins" in line]
    assert len(made) == 1
    assert made[0].startswith("seed=1/sft | ")
    began = {line.split(" | ")[0]: place for place, line in enumerate(lines) if "grpo: begins" in line}
    ended = {line.split(" | ")[0]: place for place, line in enumerate(lines) if "grpo: finished" in line}
    assert set(began) == {"seed=1", "seed=2"}
    assert max(began.values()) < min(ended.values()), "side by side"
    assert sum("sft: reused" in line for line in lines) == 2
