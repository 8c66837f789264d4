"""Python values as JSON and back: values of exactly the built-in types and of a few types of the standard library.

A value of a subclass becomes its base's value (a Counter a dict, a namedtuple a tuple, an IntEnum an int): what it says of itself, in
`__eq__` or anywhere else, stays behind. Everything else travels as a number that names it in the process that holds it.
"""

from __future__ import annotations

import builtins
import datetime
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

SMALL = 2**53
Encoded = Any
Many = Callable[[Iterable[Any]], list[Any]]


class Unsendable(Exception):
    """A value that cannot travel."""


def encode(value: Any, hold: Callable[[Any], Encoded]) -> Encoded:
    """`value` as JSON. hold: what stands for a value that is not plain, or Unsendable; RecursionError for one that holds itself."""
    if value is None or isinstance(value, bool):
        return value
    for kind, tag, content in ENCODERS:
        if isinstance(value, kind):
            inner = content(value, lambda items: [encode(item, hold) for item in items])
            return inner if tag is None else {tag: inner}
    return {"type": value.__name__} if _built_in(value) else hold(value)


def _built_in(value: Any) -> bool:
    return isinstance(value, type) and getattr(builtins, value.__name__, None) is value


def _integer(value: int, _: Many) -> Encoded:
    plain = int.__index__(value)
    return plain if -SMALL < plain < SMALL else {"int": hex(plain)}


def _sequence(kind: Any) -> Callable[[Any, Many], Encoded]:
    return lambda value, many: many(kind.__iter__(value))


def _pairs(items: Iterable[tuple[Any, Any]], many: Many) -> Encoded:
    return [many(pair) for pair in items]


ENCODERS: tuple[tuple[Any, str | None, Callable[[Any, Many], Encoded]], ...] = (
    (int, None, _integer),
    (float, None, lambda value, _: float.__float__(value)),
    (str, None, lambda value, _: str.__str__(value)),
    (list, None, _sequence(list)),
    (tuple, "tuple", _sequence(tuple)),
    (dict, "dict", lambda value, many: _pairs(dict.items(value), many)),
    (set, "set", _sequence(set)),
    (frozenset, "frozenset", _sequence(frozenset)),
    (bytes, "bytes", lambda value, _: bytes.hex(value)),
    (bytearray, "bytearray", lambda value, _: bytearray.hex(value)),
    (complex, "complex", lambda value, _: [value.real, value.imag]),
    (deque, "deque", _sequence(deque)),
    (range, "range", lambda value, _: [hex(value.start), hex(value.stop), hex(value.step)]),
    (type({}.keys()), "keys", lambda value, many: many(value)),
    (type({}.items()), "items", _pairs),
    (type({}.values()), "values", lambda value, many: many(value)),
    (Decimal, "decimal", lambda value, _: Decimal.__str__(value)),
    (Fraction, "fraction", lambda value, _: [hex(value.numerator), hex(value.denominator)]),
    (datetime.datetime, "datetime", lambda value, _: datetime.datetime.isoformat(value)),
    (datetime.date, "date", lambda value, _: datetime.date.isoformat(value)),
    (datetime.time, "time", lambda value, _: datetime.time.isoformat(value)),
    (datetime.timedelta, "timedelta", lambda value, _: [value.days, value.seconds, value.microseconds]),
    (types.EllipsisType, "ellipsis", lambda *_: None),
    (types.NotImplementedType, "notimplemented", lambda *_: None),
)


def decode(encoded: Encoded, held: Callable[[str, Any], Any]) -> Any:
    """The value. held: what stands for `{"held": ...}`, `{"iterator": ...}` and whatever is not known here; Unsendable for nonsense."""
    try:
        return _decode(encoded, held)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, KeyError) as error:
        raise Unsendable(f"not a value: {error}") from error


def _decode(encoded: Encoded, held: Callable[[str, Any], Any]) -> Any:
    if isinstance(encoded, list):
        return [_decode(item, held) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((tag, content),) = encoded.items()
    decoder = DECODERS.get(tag)
    return held(tag, content) if decoder is None else decoder(content, lambda items: [_decode(item, held) for item in items])


def _dict(content: Any, many: Many) -> dict[Any, Any]:
    return dict(many(pair) for pair in content)


def _builtin(name: Any, _: Many) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise TypeError(f"{name} is not a type")
    return found


DECODERS: Mapping[str, Callable[[Any, Many], Any]] = {
    "int": lambda content, _: int(content, 16),
    "tuple": lambda content, many: tuple(many(content)),
    "dict": _dict,
    "set": lambda content, many: set(many(content)),
    "frozenset": lambda content, many: frozenset(many(content)),
    "bytes": lambda content, _: bytes.fromhex(content),
    "bytearray": lambda content, _: bytearray.fromhex(content),
    "complex": lambda content, _: complex(*content),
    "deque": lambda content, many: deque(many(content)),
    "range": lambda content, _: range(*(int(item, 16) for item in content)),
    "keys": lambda content, many: dict.fromkeys(many(content)).keys(),
    "items": lambda content, many: _dict(content, many).items(),
    "values": lambda content, many: dict(enumerate(many(content))).values(),
    "decimal": lambda content, _: Decimal(content),
    "fraction": lambda content, _: Fraction(*(int(item, 16) for item in content)),
    "datetime": lambda content, _: datetime.datetime.fromisoformat(content),
    "date": lambda content, _: datetime.date.fromisoformat(content),
    "time": lambda content, _: datetime.time.fromisoformat(content),
    "timedelta": lambda content, _: datetime.timedelta(*content),
    "ellipsis": lambda *_: ...,
    "notimplemented": lambda *_: NotImplemented,
    "type": _builtin,
}


def refresh(old: Any, new: Any) -> None:
    """Makes the list, dict, set, bytearray or deque `old` equal `new`, in place, and what it holds likewise where it is still there."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = [_refreshed(*pair) for pair in zip(old, new, strict=False)] + new[len(old) :]
    elif isinstance(old, dict) and isinstance(new, dict):
        fresh = {key: _refreshed(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(fresh)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray | deque) and isinstance(new, bytearray | deque):
        old.clear()
        old.extend(new)


def _refreshed(old: Any, new: Any) -> Any:
    if type(old) is not type(new) or not isinstance(old, list | dict | set | bytearray | deque):
        return new
    refresh(old, new)
    return old
