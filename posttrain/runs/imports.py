"""Importing what is heavy."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept(module: str) -> Iterator[None]:
    """No garbage is looked for in here, nor later in what there is at the end; nothing of the kind where `module` is there already.

    Imports make hundreds of thousands of objects that all stay. Looking through them took a tenth of the time of importing, and again two
    seconds when the interpreter ends.
    """
    if module in sys.modules:
        yield
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
