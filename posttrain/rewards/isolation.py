"""Isolated components: processes that score answers one by one, each with a time limit, and are replaced when they hang or die."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from posttrain.errors import ConfigError, Problem
from posttrain.rewards import pipes
from posttrain.rewards.base import Isolated, Unscored
from posttrain.rewards.worker import READY
from posttrain.types import Sample

START_SECONDS = 120.0  # for the imports of a worker
LARGEST_BATCH = 64  # answers sent at once; their values fit into a pipe
BATCHES_A_WORKER = 4  # so that a worker with quick answers takes over from one with slow ones


class Died(Exception):
    """A worker ended, or was ended. The text says why."""


class Worker:
    """One process with a component in it. Raises Died where it does not start."""

    def __init__(self, component: bytes) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        os.set_blocking(self._out, False)
        command = [sys.executable, "-P", "-m", "posttrain.rewards.worker", str(theirs_in), str(theirs_out), str(os.getpid())]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            self._begin(component)
        except BaseException:
            self.kill()
            raise

    def _begin(self, component: bytes) -> None:
        self.send(component, START_SECONDS)
        said = self.receive(START_SECONDS)
        if said != READY:
            raise Died(str(said))

    def send(self, message: object, seconds: float) -> None:
        """Write a message; Died where it is not read within `seconds`, or the process ended."""
        try:
            pipes.write(self._out, message, seconds)
        except pipes.Slow as error:
            raise Died("took too long") from error
        except OSError as error:
            raise Died(self._why()) from error

    def receive(self, seconds: float) -> object:
        """The next message; Died where it takes longer than `seconds`, or the process ended."""
        try:
            return pipes.read(self._in, seconds)
        except pipes.Slow as error:
            raise Died("took too long") from error
        except EOFError as error:
            raise Died(self._why()) from error

    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1)
            return f"its process ended: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        return "its process closed its pipe"

    def stop(self) -> None:
        """End the process and what it started; whoever waits for it finds that it died."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process, and let go of it."""
        self.stop()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)


class Pool:
    """The workers of one component. They are started by threads that live as long as the pool: a worker ends with its thread."""

    def __init__(self, component: Isolated) -> None:
        self._timeout, self._size = component.timeout, component.workers
        self._component = pickle.dumps(component)
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="reward")
        self._places: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(self._size):
            self._places.put(None)
        self._working: set[Worker] = set()
        self._closed = False
        self._broken = ""  # why workers do not start, within one call

    def start(self) -> None:
        """Start the workers. Raises ConfigError where they do not."""
        self._broken = ""
        list(self._threads.map(self._score, [()] * self._size))
        if self._broken:
            raise ConfigError(Problem("reward", f"a component could not start: {self._broken}"))

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """A value for each answer, in order; Unscored for those that failed."""
        self._broken = ""
        size = min(LARGEST_BATCH, max(1, math.ceil(len(samples) / (BATCHES_A_WORKER * self._size))))
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        try:
            return [value for values in self._threads.map(self._score, batches) for value in values]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers, those at work too."""
        self._closed = True
        for worker in tuple(self._working):
            worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._places.empty():
            idle = self._places.get()
            if idle is not None:
                idle.kill()

    def _score(self, samples: Sequence[Sample]) -> list[float]:
        """In a thread of the pool: one batch with one worker, which is replaced as often as needed."""
        worker, values = self._places.get(), list[float]()
        try:
            worker = self._living(worker)
            while worker is not None and len(values) < len(samples):
                worker = self._go_on(worker, samples, values)
        except Died as error:
            self._broken = str(error)
            worker = None
        finally:
            self._places.put(worker)
        return values + [Unscored(f"its process does not start: {self._broken}") for _ in samples[len(values) :]]

    def _living(self, worker: Worker | None) -> Worker | None:
        """The worker, or a new one where it ended; None where there can be none. Raises Died where a new one does not start."""
        if worker is not None and not worker.ended():
            return worker
        if worker is not None:
            worker.kill()
        return None if self._closed or self._broken else Worker(self._component)

    def _go_on(self, worker: Worker, samples: Sequence[Sample], values: list[float]) -> Worker | None:
        """Score from where `values` ends until the end or a failure, which costs one answer; the worker to go on with."""
        self._working.add(worker)
        try:
            worker.send(samples[len(values) :], self._timeout)
            while len(values) < len(samples):
                values.append(self._value(worker))
        except Died as error:
            worker.kill()
            values.append(Unscored(str(error)))
            return None if len(values) == len(samples) else self._living(None)
        finally:
            self._working.discard(worker)
        return worker

    def _value(self, worker: Worker) -> float:
        value = worker.receive(self._timeout)
        assert isinstance(value, float)
        return value
