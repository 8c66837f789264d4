"""The process of the program under test: it answers calls. It holds no tests, and what it says is only ever a value to be compared."""

from __future__ import annotations

import builtins
import operator
import random
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any

from posttrain.rewards.sandbox.codec import Unsendable, decode, encode
from posttrain.rewards.sandbox.wire import Channel

MUTABLE = ("dict", "set", "bytearray", "deque")
BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor")  # of `operator`
UNARY = ("neg", "pos", "invert", "abs")


def main(fd: int, limit: int) -> None:
    """Serves until the other side is gone."""
    channel = Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd), limit)
    random.seed(0)
    channel.send({"ready": True})
    Server().serve(channel)


class Server:
    """Holds what cannot travel: functions, classes, objects, iterators; each by a number."""

    def __init__(self) -> None:
        self._module = types.ModuleType("solution")
        self._held: list[Any] = []
        self._numbers: dict[int, int] = {}

    def serve(self, channel: Channel) -> None:
        """One answer to each request."""
        while True:
            answer = self._answer(channel.receive())
            try:
                channel.send(answer)
            except ValueError as error:
                channel.send(raised(error))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return getattr(self, "on_" + request.pop("do"))(**request)
        except BaseException as error:
            return raised(error)

    def on_load(self, source: str) -> dict[str, Any]:
        """Runs a part of the program."""
        sys.modules["solution"] = self._module
        exec(compile(source, "<solution>", "exec"), vars(self._module))
        return {"value": None}

    def on_name(self, name: str) -> dict[str, Any]:
        """A name of the program, if it has it."""
        found = vars(self._module)
        return self._value(found[name]) if name in found else {"missing": True}

    def on_call(self, on: int, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Calls what is held. Arguments are sent back where the call changed them."""
        values = [self._decoded(item) for item in args]
        result = self._held[on](*values, **{name: self._decoded(item) for name, item in kwargs.items()})
        answer = self._value(result)
        if any(isinstance(item, list) or (isinstance(item, dict) and next(iter(item)) in MUTABLE) for item in args):
            try:
                changed = [encode(item, self._hold) for item in values]
            except (Unsendable, RecursionError):
                if result is None:  # else its value is what the call is for
                    raise
                return answer
            if changed != args:
                answer["args"] = changed
        return answer

    def on_get(self, on: int, name: str) -> dict[str, Any]:
        """An attribute."""
        return self._value(getattr(self._held[on], name))

    def on_set(self, on: int, name: str, value: Any) -> dict[str, Any]:
        """Sets an attribute."""
        setattr(self._held[on], name, self._decoded(value))
        return {"value": None}

    def on_item(self, on: int, key: Any) -> dict[str, Any]:
        """An item."""
        return self._value(self._held[on][self._decoded(key)])

    def on_put(self, on: int, key: Any, value: Any) -> dict[str, Any]:
        """Sets an item."""
        self._held[on][self._decoded(key)] = self._decoded(value)
        return {"value": None}

    def on_drop(self, on: int, key: Any) -> dict[str, Any]:
        """Deletes an item."""
        del self._held[on][self._decoded(key)]
        return {"value": None}

    def on_enter(self, on: int) -> dict[str, Any]:
        """What a `with` binds."""
        return self._value(type(self._held[on]).__enter__(self._held[on]))

    def on_exit(self, on: int) -> dict[str, Any]:
        """The end of a `with` in which nothing was raised."""
        type(self._held[on]).__exit__(self._held[on], None, None, None)
        return {"value": None}

    def on_kind(self, on: int, of: int) -> dict[str, Any]:
        """Whether something is an object of a class, by the class's own line of bases."""
        return {"value": any(base is self._held[of] for base in type(self._held[on]).__mro__)}

    def on_alike(self, on: int, other: int) -> dict[str, Any]:
        """Whether two objects may be equal though they are not one: a class of theirs says what is."""
        return {"value": any(type(self._held[number]).__eq__ is not object.__eq__ for number in (on, other))}

    def on_str(self, on: int) -> dict[str, Any]:
        """Its text."""
        return self._value(str(self._held[on]))

    def on_repr(self, on: int) -> dict[str, Any]:
        """Its text for programmers."""
        return self._value(repr(self._held[on]))

    def on_binary(self, name: str, on: int, other: int) -> dict[str, Any]:
        """A sum or the like of two objects."""
        return self._value(getattr(operator, name)(self._held[on], self._held[other]))

    def on_unary(self, name: str, on: int) -> dict[str, Any]:
        """A sign or the like."""
        return self._value(getattr(operator, name)(self._held[on]))

    def on_len(self, on: int) -> dict[str, Any]:
        """A length."""
        return self._value(len(self._held[on]))

    def on_iter(self, on: int) -> dict[str, Any]:
        """An iterator."""
        return self._value(iter(self._held[on]))

    def on_next(self, on: int) -> dict[str, Any]:
        """The next item, if there is one."""
        for item in _once(self._held[on]):
            return self._value(item)
        return {"missing": True}

    def _value(self, value: Any) -> dict[str, Any]:
        return {"value": encode(value, self._hold)}

    def _hold(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._held)
            self._held.append(value)
        return {"held": number}

    def _decoded(self, item: Any) -> Any:
        return decode(item, self._found)

    def _found(self, tag: str, number: Any) -> Any:
        if tag != "held":
            raise Unsendable(f"unknown tag {tag}")
        return self._held[number]


def _once(iterator: Iterator[Any]) -> Iterator[Any]:
    """The next item of an iterator, or nothing; the iterator stays where it is."""
    try:
        yield next(iterator)
    except StopIteration:
        return


def raised(error: BaseException) -> dict[str, Any]:
    """An exception by the names of its built-in types, nearest first, and its arguments where they are plain."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        args = [encode(item, _not_held) for item in error.args]
    except (Unsendable, RecursionError):
        args = [str(error)[:500]]
    return {"raised": kinds, "kind": type(error).__name__, "args": args}


def _not_held(value: Any) -> Any:
    raise Unsendable(type(value).__name__)
