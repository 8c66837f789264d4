"""`posttrain list`: every option with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.runs import options


def test_list_shows_every_option_once(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("list")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    folders = options.search_path()
    for group in options.groups(folders):
        assert f"{group}=" in lines
        for option in options.options(folders, group):
            assert any(line.split()[:1] == [option.name] and line.endswith(option.description) for line in lines)


def test_list_of_one_group(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("list", "model.peft")
    assert outcome.out.startswith("model/peft=\n")
    assert "qlora" in outcome.out
    assert "nano" not in outcome.out
