"""What a component does to an answer costs that answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from reward_helpers import built, sample

from posttrain.errors import ConfigError
from posttrain.rewards.base import Reward
from posttrain.types import Sample

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = """
import ctypes, os, signal, subprocess, sys, threading, time

def loop():
    while True: pass

def stubborn():
    while True:
        try: time.sleep(60)
        except BaseException: pass

def deaf():
    signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 0); time.sleep(60)

def child():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # orphan-{tag}"]); loop()

def fd():
    for number in range(3, 64):
        try: os.close(number)
        except OSError: pass

ACTS = {{
    "raise": lambda: 1 / 0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "text": lambda: "many",
    "none": lambda: None,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "abort": lambda: os.abort(),
    "loop": loop, "stubborn": stubborn, "deaf": deaf, "child": child, "fd": fd,
    "bignum": lambda: 10 ** 10 ** 9,
    "memory": lambda: len(bytearray(8 << 30)),
    "slow memory": lambda: [bytearray(1 << 26) for _ in range(10**6)],
    "recursion": lambda: (lambda f: f(f))(lambda f: f(f)),
    "print": lambda: print("x" * 100000) or 0.25,
}}

def reward(prompt, completion, answer, meta):
    act = ACTS.get(completion)
    return 0.5 if act is None else act()
"""


class Broken(Reward):
    """Fails as its answers say; in this process."""

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        texts = [item.completion for item in samples]
        if "raise" in texts:
            raise ValueError("cannot read this")
        if "interrupt" in texts:
            raise KeyboardInterrupt
        if "few" in texts:
            return [1.0] * (len(texts) - 1)
        return [{"nan": float("nan"), "none": None}.get(text, 1.0) for text in texts]  # type: ignore[misc]


def test_a_bad_answer_costs_itself(reward_set: Any, caplog: pytest.LogCaptureFixture) -> None:
    rewards = reward_set(broken=Broken(), length=built("length", target=1))
    answers = [sample(text) for text in ["ok"] * 20 + ["raise", "ok", "few", "nan", "none"] + ["ok"] * 20]
    measured = rewards.measure(answers)
    assert measured.raw[0].isnan().nonzero().flatten().tolist() == [20, 22, 23, 24]
    assert measured.raw[0].nansum() == 41
    assert not measured.raw[1].isnan().any()
    failures = measured.failures["broken"]
    assert dict(failures.kinds) == {"ValueError": 1, "wrong count": 1, "not finite": 1, "TypeError": 1}
    assert (failures.count, set(measured.failures), set(measured.seconds)) == (4, {"broken"}, {"broken", "length"})
    assert "ValueError: cannot read this" in failures.examples
    rewards.measure(answers)
    assert len(caplog.records) == 4  # once for each kind
    assert rewards.measure([]).raw.shape == (2, 0)


def test_a_value_that_float32_cannot_hold_costs_its_answer(reward_set: Any, user_file: Any) -> None:
    file = user_file("def reward(completion, **_): return float(completion)\n")
    texts = ["1e308", "-1e39", "3e38", "1", "inf"]
    measured = reward_set(mine=built("function", path=f"{file}:reward"), here=Float()).measure([sample(text) for text in texts])
    assert measured.raw.isnan().tolist() == [[True, True, False, False, True]] * 2
    for name in ("mine", "here"):
        assert dict(measured.failures[name].kinds) == {"too large": 2, "not finite": 1}
        assert "too large: returned 1e+308" in measured.failures[name].examples


class Float(Reward):
    """The number that an answer is; in this process."""

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        return [float(item.completion) for item in samples]


def test_an_interrupt_passes(reward_set: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        reward_set(broken=Broken()).measure([sample("interrupt")])


def test_hostile_functions(reward_set: Any, user_file: Any) -> None:
    tag = f"{os.getpid()}-{time.time_ns()}"
    file = user_file(HOSTILE.replace("{tag}", tag).replace("{{", "{").replace("}}", "}"))
    rewards = reward_set(mine=built("function", path=f"{file}:reward", timeout=1.0, memory_gb=0.5, workers=2))
    rewards.start()
    acts = ["raise", "nan", "inf", "text", "none", "sys.exit", "os._exit", "interrupt", "killed", "segfault", "abort", "loop", "stubborn"]
    acts += ["deaf", "child", "fd", "bignum", "memory", "slow memory", "recursion"]
    texts = [text for act in acts for text in ("fine", act, "fine", "print")]
    began = time.monotonic()
    measured = rewards.measure([sample(text) for text in texts])
    assert time.monotonic() - began < 60
    expected = {"fine": 0.5, "print": 0.25}
    for text, value in zip(texts, measured.raw[0].tolist(), strict=True):
        assert value == expected.get(text) if text in expected else value != value, text  # noqa: PLR0124
    assert measured.failures["mine"].count == len(acts)
    rewards.close()
    left = [process for process in psutil.process_iter(["cmdline"]) if f"orphan-{tag}" in " ".join(process.info["cmdline"] or [])]
    assert not left


def test_a_component_that_cannot_start(reward_set: Any, user_file: Any) -> None:
    file = user_file("import nowhere_to_be_found\ndef reward(**_): return 1.0\n")
    rewards = reward_set(mine=built("function", path=f"{file}:reward"), other=built("function", path=f"{file}:reward"))
    with pytest.raises(ConfigError, match="nowhere_to_be_found") as caught:
        rewards.start()
    assert len(caught.value.problems) == 2
    measured = rewards.measure([sample("x")] * 200)
    assert measured.failures["mine"].count == 200
    assert "does not start" in measured.failures["mine"].examples[0]


def test_workers_end_with_a_killed_parent(tmp_path: Path, user_file: Any) -> None:
    file = user_file("import time\ndef reward(completion, **_):\n    while completion == 'hang': 10 ** 10 ** 8\n    return 1.0\n")
    script = f"""
import sys, threading
from posttrain.rewards.compose import RewardSet
from posttrain.rewards.function import Function
from posttrain.types import Sample
def sample(text): return Sample(prompt=(), completion=text, length=1, finish="stop")
rewards = RewardSet({{"mine": Function(path={f"{file}:reward"!r}, timeout=300.0)}})
rewards.measure([sample("ok")] * 8)
print("ready", flush=True)
rewards.measure([sample("hang")] * 8)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.5)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_an_interrupt_ends_the_workers(user_file: Any) -> None:
    file = user_file("import time\ndef reward(**_): time.sleep(300)\n")
    script = f"""
from posttrain.rewards.compose import RewardSet
from posttrain.rewards.function import Function
from posttrain.types import Sample
rewards = RewardSet({{"mine": Function(path={f"{file}:reward"!r}, timeout=300.0)}})
rewards.start()
print("ready", flush=True)
try:
    rewards.measure([Sample(prompt=(), completion="x", length=1, finish="stop")] * 8)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    time.sleep(1)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=20)[0] == "interrupted\n"
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_a_worker_that_stops_reading_costs_one_answer(reward_set: Any, user_file: Any) -> None:
    file = user_file("def reward(completion, **_): return 1.0\n")
    rewards = reward_set(mine=built("function", path=f"{file}:reward", timeout=2.0, workers=1))
    assert rewards.measure([sample("x")] * 8).raw.sum() == 8
    (stopped,) = (worker for worker in psutil.Process().children() if "posttrain.rewards.worker" in worker.cmdline())
    stopped.suspend()
    began = time.monotonic()
    measured = rewards.measure([sample(f"{number:05d}" * 4000) for number in range(64)])  # more than a pipe holds
    assert time.monotonic() - began < 60
    assert measured.raw.nansum() == 63
    assert dict(measured.failures["mine"].kinds) == {"took too long": 1}
    assert not stopped.is_running()


def test_large_answers_arrive_whole(reward_set: Any, user_file: Any) -> None:
    file = user_file("def reward(completion, **_): return float(len(completion))\n")
    measured = reward_set(mine=built("function", path=f"{file}:reward")).measure([sample("x" * size) for size in (10, 300_000, 5_000_000)])
    assert measured.raw.tolist() == [[10.0, 300_000.0, 5_000_000.0]]


def test_a_worker_that_died_idle_costs_nothing(reward_set: Any, user_file: Any) -> None:
    file = user_file("def reward(**_): return 1.0\n")
    rewards = reward_set(mine=built("function", path=f"{file}:reward"))
    assert rewards.measure([sample("x")] * 8).raw.sum() == 8
    for worker in psutil.Process().children():
        if "posttrain.rewards.worker" in worker.cmdline():
            worker.kill()
    time.sleep(0.2)
    assert rewards.measure([sample("x")] * 8).raw.sum() == 8
