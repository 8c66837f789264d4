"""Finding what registers itself: the modules of a folder are its entries, and nothing else has to name them."""

from __future__ import annotations

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Import every module of a package, by its dotted name, so that the decorators in them run."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
