"""A file of finished pieces of work, a line each, that survives a kill: what is in it is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.files import write_atomic, writing


@dataclass(frozen=True)
class Journal:
    """path: its file. settings: what decides the results; its first line. A half line at the end, of a kill, is cut off."""

    path: Path
    settings: Mapping[str, Any]

    def open(self) -> list[dict[str, Any]]:
        """The rows so far; begins the file where there is none. Raises ConfigError where it was begun with other settings."""
        if not self.path.is_file():
            write_atomic(self.path, _line({"settings": dict(self.settings)}))
            return []
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            with writing(self.path):
                os.truncate(self.path, len(whole) + 1)
        first, *rows = [json.loads(line) for line in whole.split(b"\n")]  # texts may hold other line ends
        if problems := self._differences(first.get("settings", {})):
            raise ConfigError(problems)
        return rows

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, durably."""
        text = "".join(map(_line, rows))
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _differences(self, before: Mapping[str, Any]) -> list[Problem]:
        now = json.loads(json.dumps(self.settings))
        return [
            Problem(
                key, f"what lies in {self.path.parent} was made with {before.get(key)!r}, this command has {now.get(key)!r}", "another to="
            )
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
