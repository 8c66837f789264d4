"""The tests' side of the program under test: its functions, classes and objects as stand-ins.

A stand-in compares by identity and is true: nothing the program defines is ever asked whether a test holds. What its methods return is a
value like any other, so it may be asked for its text, its items, and for sums and the like with other objects of the program (with a
number of the test it could be told what it is compared with). Where only the program could say whether two of its objects are equal,
nothing can be said of the test.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from posttrain.rewards.sandbox.codec import Unsendable, decode, encode, refresh
from posttrain.rewards.sandbox.solution import BINARY, UNARY
from posttrain.rewards.sandbox.wire import Channel

# What ends an iteration or the process cannot be raised from outside: `map(candidate, cases)` would end early and hold.
SILENT = (StopIteration, StopAsyncIteration)
MUTABLE = (list, dict, set, bytearray)


class UnusableTest(BaseException):
    """The tests pass something that cannot travel: nothing can be said of the program."""


class SolutionError(Exception):
    """An exception of the program that has no built-in type, or one that must not cross."""


class Link:
    """Requests to the program's process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._known: dict[int, Remote] = {}

    def wait_until_ready(self) -> None:
        """Returns when the process is enclosed; nothing of the program has run by then."""
        self._channel.receive()

    def load(self, source: str) -> None:
        """Runs a part of the program; raises what it raises."""
        self.ask(do="load", source=source)

    def names(self, wanted: frozenset[str]) -> dict[str, Any]:
        """Those of the names that the program defines."""
        answers = {name: self._request(do="name", name=name) for name in sorted(wanted)}
        return {name: self._value(answer) for name, answer in answers.items() if "missing" not in answer}

    def call(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls; lists and the like that were passed are changed as the program changed them."""
        named = {name: encoded(value) for name, value in kwargs.items()}
        answer = self._request(do="call", on=number, args=[encoded(value) for value in args], kwargs=named)
        result = self._value(answer)
        changed = answer.get("args")
        if isinstance(changed, list) and len(changed) == len(args):
            for old, new in zip(args, changed, strict=True):
                if isinstance(old, MUTABLE):
                    refresh(old, self._decoded(new))
        return result

    def following(self, number: int) -> Any:
        """The next item; StopIteration at the end."""
        answer = self._request(do="next", on=number)
        if "missing" in answer:
            raise StopIteration
        return self._value(answer)

    def ask(self, **request: Any) -> Any:
        """The value that answers a request."""
        return self._value(self._request(**request))

    def _request(self, **request: Any) -> dict[str, Any]:
        self._channel.send(request)
        answer = self._channel.receive()
        if not isinstance(answer, dict):
            raise SolutionError("the program's process wrote nonsense")
        if "raised" in answer:
            raise self._exception(answer)
        return answer

    def _value(self, answer: dict[str, Any]) -> Any:
        return self._decoded(answer.get("value"))

    def _decoded(self, value: Any) -> Any:
        try:
            return decode(value, self._stand_in)
        except Unsendable as error:
            raise SolutionError(str(error)) from error

    def _stand_in(self, tag: str, number: Any) -> Remote:
        if tag != "held" or not isinstance(number, int):
            raise Unsendable(f"unknown tag {tag}")
        return self._known.setdefault(number, Remote(self, number))  # what is one object there is one here

    def _exception(self, answer: dict[str, Any]) -> Exception:
        args = [self._decoded(item) for item in answer["args"]] if isinstance(answer.get("args"), list) else []
        for name in answer["raised"] if isinstance(answer["raised"], list) else []:
            kind = getattr(builtins, str(name), None)
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, SILENT):
                try:
                    return kind(*args)
                except (TypeError, ValueError):
                    break
        return SolutionError(f"{answer.get('kind')}: {', '.join(map(str, args))}"[:500])


class Remote:
    """Something the program's process holds: callable, iterable, with attributes, items and a text, perhaps a class."""

    __slots__ = ("_remote_link", "_remote_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_remote_link", link)
        object.__setattr__(self, "_remote_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote_link.call(self._remote_number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_remote_")):
            raise AttributeError(name)
        return self._remote_link.ask(do="get", on=self._remote_number, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_link.ask(do="set", on=self._remote_number, name=name, value=encoded(value))

    def __getitem__(self, key: Any) -> Any:
        return self._remote_link.ask(do="item", on=self._remote_number, key=encoded(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._remote_link.ask(do="put", on=self._remote_number, key=encoded(key), value=encoded(value))

    def __delitem__(self, key: Any) -> None:
        self._remote_link.ask(do="drop", on=self._remote_number, key=encoded(key))

    def __enter__(self) -> Any:
        return self._remote_link.ask(do="enter", on=self._remote_number)

    def __exit__(self, fault: Any, *_: Any) -> None:
        if fault is None:  # else the program could hide that a test failed
            self._remote_link.ask(do="exit", on=self._remote_number)

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Remote and self._remote_link.ask(do="kind", on=value._remote_number, of=self._remote_number) is True

    def __len__(self) -> int:
        return self._remote_link.ask(do="len", on=self._remote_number)

    def __iter__(self) -> Any:
        return self._remote_link.ask(do="iter", on=self._remote_number)

    def __next__(self) -> Any:
        return self._remote_link.following(self._remote_number)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> Any:
        if self is other or type(other) is not Remote:
            return True if self is other else NotImplemented
        if self._remote_link.ask(do="alike", on=self._remote_number, other=other._remote_number) is not False:
            raise UnusableTest("a test compares two objects of the program, which alone could say whether they are equal")
        return False

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self._text("str")

    def __repr__(self) -> str:
        return self._text("repr")

    def _text(self, do: str) -> str:
        text = self._remote_link.ask(do=do, on=self._remote_number)
        if type(text) is not str:
            raise SolutionError(f"{do} of an object of the program is no text")
        return text


def _binary(name: str) -> Callable[[Remote, Any], Any]:
    def operate(self: Remote, other: Any) -> Any:
        if type(other) is not Remote:
            return NotImplemented
        return self._remote_link.ask(do="binary", name=name, on=self._remote_number, other=other._remote_number)

    return operate


def _unary(name: str) -> Callable[[Remote], Any]:
    return lambda self: self._remote_link.ask(do="unary", name=name, on=self._remote_number)


for _name in BINARY:
    setattr(Remote, f"__{_name.strip('_')}__", _binary(_name))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", _unary(_name))


def encoded(value: Any) -> Any:
    """A value for the program's process."""
    try:
        return encode(value, _number)
    except Unsendable as error:
        raise UnusableTest(f"a test passes {error} to the program, which cannot be sent to it") from error


def _number(value: Any) -> Any:
    if type(value) is Remote:
        return {"held": value._remote_number}
    raise Unsendable(f"a value of type {type(value).__name__}")
