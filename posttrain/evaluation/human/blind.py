"""Blinding: who wrote which answer is in the key, and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from posttrain.evaluation.human.sheet import Sheet, Shown, digest

FORMAT = "posttrain human-eval key 1"


@dataclass(frozen=True)
class Item:
    """A prompt with an answer of each arm, in the order of the arms. runs: which run of its arm wrote each."""

    prompt: str
    reference: str
    answers: tuple[str, ...]
    stratum: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class KeyRow:
    """order: the arm of each answer, as shown. row: digest of what is shown."""

    id: str
    stratum: str
    order: tuple[int, ...]
    runs: tuple[str, ...]
    row: str


@dataclass(frozen=True)
class Key:
    """arms: their names. by: what strata are made of. raters: the rows of each one's sheet. about: how the sheets were made."""

    arms: tuple[str, ...]
    by: str
    about: Mapping[str, Any]
    raters: Mapping[str, tuple[KeyRow, ...]]

    @property
    def digest(self) -> str:
        """Of all its content; sheets carry it."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return "k" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def name_of(self, rater: str) -> str:
        """What a rater's sheet says of where it belongs."""
        return f"{self.digest}-{rater}"


def blind(
    items: Sequence[Item], arms: Sequence[str], *, by: str, about: Mapping[str, Any], raters: int, seed: int
) -> tuple[Key, list[Sheet]]:
    """The key, and a sheet for each rater: the same items, each rater's in an order of their own, and so the answers of each item."""
    rows: dict[str, list[tuple[KeyRow, Shown]]] = {}
    for number in range(1, raters + 1):
        draws = np.random.default_rng(np.random.SeedSequence([seed, 0xB11D, number]))
        rows[f"r{number}"] = _rows(items, len(arms), draws)
    key = Key(tuple(arms), by, dict(about), {rater: tuple(of for of, _ in pairs) for rater, pairs in rows.items()})
    return key, [Sheet(key.name_of(rater), tuple(shown for _, shown in pairs)) for rater, pairs in rows.items()]


def _rows(items: Sequence[Item], arms: int, draws: np.random.Generator) -> list[tuple[KeyRow, Shown]]:
    made = []
    orders = balanced(len(items), arms, draws)
    for place, number in enumerate(draws.permutation(len(items)).tolist()):
        item, order = items[number], orders[place]
        shown = Shown(f"q{number + 1:03d}", item.prompt, item.reference, tuple(item.answers[arm] for arm in order))
        made.append((KeyRow(shown.id, item.stratum, order, item.runs, digest(shown)), shown))
    return made


def balanced(count: int, arms: int, draws: np.random.Generator) -> list[tuple[int, ...]]:
    """Random orders in which each arm stands at each place equally often, as far as `count` can be divided by the arms."""
    orders: list[tuple[int, ...]] = []
    while len(orders) < count:
        first = draws.permutation(arms)
        turns = [tuple(int(arm) for arm in np.roll(first, turn)) for turn in range(arms)]
        orders += turns
    orders = orders[: count - count % arms] + [orders[count - count % arms + int(k)] for k in draws.permutation(arms)[: count % arms]]
    return [orders[int(place)] for place in draws.permutation(count)]


def to_json(key: Key) -> str:
    """The key as a file."""
    return json.dumps({"format": FORMAT, **asdict(key), "digest": key.digest}, indent=1, ensure_ascii=True) + "\n"


def from_json(text: str) -> Key:
    """Reads a key. Raises ValueError that says what is wrong where it is none, or was changed since it was written."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"is no key of this version: format {found['format']!r}, expected {FORMAT!r}")
        raters = {name: tuple(_row(row) for row in rows) for name, rows in found["raters"].items()}
        key = Key(tuple(found["arms"]), found["by"], found["about"], raters)
        written = found["digest"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no key of human-eval make: {type(error).__name__} {error}") from error
    if key.digest != written:
        raise ValueError("was changed since human-eval make wrote it")
    return key


def _row(row: Mapping[str, Any]) -> KeyRow:
    return KeyRow(row["id"], row["stratum"], tuple(row["order"]), tuple(row["runs"]), row["row"])
