"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import CHATML, byte_level
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def chatml() -> PreTrainedTokenizerFast:
    return byte_level(CHATML, eos="<|im_end|>")


@pytest.fixture
def node(tmp_path: Path):
    """A `data` node with a private cache."""

    def make(**keys: object) -> dict[str, object]:
        return {"name": "test", "cache_dir": str(tmp_path / "cache"), "workers": 1, **keys}

    return make
