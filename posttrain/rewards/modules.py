"""Where the code of a user's function lies, found without importing any of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def source_of(module: str) -> Path | None:
    """The file of a module or of `file.py`, without importing anything; None if there is none."""
    if module.endswith(".py"):
        file = Path(os.path.expanduser(module))
        return file if file.is_file() else None
    searched: Sequence[str] | None = folders()
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), searched)
        if spec is None:
            return None
        searched = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def folders() -> list[str]:
    """Where modules are looked for: as always, then in the current folder."""
    here = os.getcwd()
    return [*sys.path, *([] if here in sys.path or "" in sys.path else [here])]
