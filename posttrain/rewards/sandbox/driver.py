"""The process of the tests: it runs them where no object of the program exists, and tells the trainer what became of each."""

from __future__ import annotations

import ast
import random
import socket
from collections.abc import Sequence
from typing import Any

from posttrain.rewards.sandbox.assertions import NOTE, classes_used, counted, needed, read_names
from posttrain.rewards.sandbox.remote import Link, UnusableTest
from posttrain.rewards.sandbox.wire import Channel, ConnectionLost

LONGEST_ERROR = 300


def main(trainer_fd: int, solution_fd: int, limit: int) -> None:
    """One program and its tests."""
    trainer = Channel(_socket(trainer_fd), 1 << 30)
    link = Link(Channel(_socket(solution_fd), limit))
    job = trainer.receive()
    try:
        link.wait_until_ready()
    except ConnectionLost:
        trainer.send({"end": "unusable", "error": "the sandbox did not start"})
        return
    Tests(trainer, link).run(**job)


def _socket(fd: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)


class Tests:
    """Runs tests and reports: `{"total"}`, then `{"test", "passed", "error"}` as often as needed, then `{"end", "error"}`."""

    def __init__(self, trainer: Channel, link: Link) -> None:
        self._trainer, self._link = trainer, link
        self._known: dict[int, bool] = {}

    def run(self, prelude: str, code: str, setup: str, tests: Sequence[str], entry_point: str | None) -> None:
        """tests: one piece of source each; with an entry point a single one that defines `check`."""
        random.seed("".join(tests))
        end: dict[str, Any] = {"end": "finished", "error": None}
        try:
            trees = [ast.parse(test) for test in tests]
            setup_tree = ast.parse(setup)
            namespace: dict[str, Any] = {"__name__": "tests", NOTE: self._note}
            self._prelude(prelude)
            self._prepare(code, trees, setup_tree, namespace, entry_point)
            if entry_point is None:
                self._run_each(trees, namespace)
            else:
                self._run_check(tests[0], namespace, entry_point)
        except (UnusableTest, SyntaxError) as error:
            end = {"end": "unusable", "error": said(error)}
        except ConnectionLost as error:
            end = {"end": "died", "error": said(error)}
        except Stopped as error:
            end = {"end": "stopped", "error": str(error)}
        self._trainer.send(end)

    def _prelude(self, prelude: str) -> None:
        """What belongs to the task and the program may use: it runs before anything of the program does."""
        try:
            self._link.load(prelude)
        except Exception as error:
            raise UnusableTest(f"what comes before the program: {said(error)}") from error

    def _prepare(self, code: str, trees: list[ast.Module], setup: ast.Module, namespace: dict[str, Any], entry_point: str | None) -> None:
        """Runs the program, then the setup, in their processes; the tests' namespace has what both define, the setup first."""
        names = needed(trees, setup)
        if apart := names.program & set().union(*map(classes_used, [*trees, setup])):
            raise UnusableTest(f"the tests catch or extend a class of the program, which stays in its process: {', '.join(sorted(apart))}")
        try:
            exec(names.library, namespace)
        except ImportError as error:
            raise UnusableTest(f"the tests need {said(error)}") from error
        try:
            self._link.load(code)
            namespace |= self._link.names(names.program)
        except Exception as error:
            raise Stopped(said(error)) from error
        try:
            exec(compile(setup, "<setup>", "exec"), namespace)
        except Exception as error:
            foreign = read_names(setup) & names.program
            raise Stopped(said(error)) if foreign else UnusableTest(f"the tests' setup: {said(error)}") from error
        if entry_point is not None:
            try:
                namespace |= self._link.names(frozenset({entry_point}))
            except Exception as error:
                raise Stopped(said(error)) from error

    def _run_each(self, trees: list[ast.Module], namespace: dict[str, Any]) -> None:
        self._trainer.send({"total": len(trees)})
        for number, tree in enumerate(trees):
            try:
                exec(compile(tree, "<test>", "exec"), namespace)
            except (Exception, SystemExit) as error:
                self._note(number, error, ast.unparse(tree))
            else:
                self._note(number, None)

    def _run_check(self, source: str, namespace: dict[str, Any], entry_point: str) -> None:
        tree, count = counted(source)
        self._trainer.send({"total": max(count, 1)})
        fault: BaseException | None = None
        try:
            candidate = namespace[entry_point]
            exec(compile(tree, "<test>", "exec"), namespace)
            namespace["check"](candidate)
        except (Exception, SystemExit) as error:
            fault = error
        if fault is not None:
            raise Stopped(said(fault)) from fault
        if count == 0:
            self._note(0, None)
        self._trainer.send({"total": len(self._known)})

    def _note(self, number: int, fault: BaseException | None, source: str = "") -> None:
        """A test passed or failed; one that failed once has failed."""
        passed = fault is None and self._known.get(number, True)
        if self._known.get(number) is not passed:
            self._known[number] = passed
            self._trainer.send({"test": number, "passed": passed, "error": None if fault is None else said(fault, source)})


class Stopped(Exception):
    """The remaining tests cannot pass."""


def said(error: BaseException, source: str = "") -> str:
    """An error in one line of printable characters, of bounded length."""
    try:
        text = str(error)
    except Exception:
        text = ""
    shown = f"{type(error).__name__}: {text or source}" if text or source else type(error).__name__
    return shown.encode("ascii", "backslashreplace").decode().translate(CONTROL)[:LONGEST_ERROR]


CONTROL = dict.fromkeys([*range(32), 127], " ")
