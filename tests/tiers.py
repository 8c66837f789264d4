"""Which cases of a test `make test` runs: a few, the rest is `slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *, but: Collection[Any]) -> list[Any]:
    """The cases as parameters, those not in `but` marked slow."""
    cases = list(cases)
    assert all(case in cases for case in but), (but, cases)
    return [
        case if case in but else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases
    ]
