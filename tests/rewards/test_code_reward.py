"""Code rewarded by its tests: the scale, the kinds of tasks, answers as models write them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.rewards.code import Code
from posttrain.types import Sample

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are those of Linux")
MBPP = {
    "tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    "setup": "",
    "challenge_tests": ["assert add(2**70, 1) == 2**70 + 1"],
    "language": "python",
}
PROMPT = "def double(x: int) -> int:\n    '''Twice x.'''\n"
HUMANEVAL = {
    "prompt": PROMPT,
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    "entry_point": "double",
    "language": "python",
}


SILENT = {**HUMANEVAL, "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) is None\n"}


def sample(completion: str, meta: dict[str, Any]) -> Sample:
    return Sample(prompt=(), completion=completion, length=1, finish="stop", meta=meta)


def block(code: str) -> str:
    return f"Sure!\n```python\n{code}\n```\nThis works."


CASES = [
    (block("def add(a, b):\n    return a + b"), MBPP, 1.0),
    ("def add(a, b):\n    return a + b", MBPP, 1.0),
    (block("def add(a, b):\n    return 0"), MBPP, 0.5 * 2 / 3),
    (block("def add(a, b):\n    return 9"), MBPP, -0.5),
    (block("def plus(a, b):\n    return a + b"), MBPP, -0.5),
    ("I cannot do this.", MBPP, -0.5),
    ("", MBPP, -0.5),
    (block("import sys\nsys.exit(0)"), MBPP, -0.5),
    (block("def add(a, b):\n    while True: pass"), MBPP, -0.5),
    (block("def add(a, b): return a + b") + "\nTry it:\n" + block("print(add(1, 2))"), MBPP, 1.0),
    (block(PROMPT + "    return 2 * x"), HUMANEVAL, 1.0),
    (block("def double(x): return x + x"), HUMANEVAL, 1.0),
    ("    return x * 2\n", HUMANEVAL, 1.0),
    (block("def double(x): return 4"), HUMANEVAL, 0.25),
    ("    return None\n", HUMANEVAL, -0.5),
    *((text, SILENT, -0.5) for text in ("", "# later", block("x = 1"), "import os\n")),  # the prompt's own function returns None
    ("    # twice\n    return None\n", SILENT, 0.25),
    ("\n    return 4 if x else None\n", SILENT, 1.0),
]


def test_the_scale() -> None:
    reward = Code(cpu=1, timeout=5.0)
    assert reward.measure([sample(text, meta) for text, meta, _ in CASES]) == pytest.approx([value for *_, value in CASES])


NOTHING_TO_SAY = [
    {},
    {"tests": []},
    {**MBPP, "language": "rust"},
    {**MBPP, "tests": ["assert add(object(), 1) == 3"]},
    {**MBPP, "tests": ["not python at all"]},
    {**HUMANEVAL, "test": "def check(candidate:"},
]


@pytest.mark.parametrize("meta", NOTHING_TO_SAY, ids=str)
def test_nan_where_nothing_can_be_said(meta: dict[str, Any]) -> None:
    (value,) = Code().measure([sample(block("def add(a, b): return a + b"), meta)])
    assert math.isnan(value)


def test_challenge_tests_count_where_asked() -> None:
    answer = sample(block("def add(a, b): return (a + b) % 2**60"), MBPP)
    assert Code().measure([answer]) == pytest.approx([1.0])
    assert Code(use_challenge_tests=True).measure([answer]) == pytest.approx([0.5 * 3 / 4])


def test_other_scales_and_base_options() -> None:
    reward = Code(pass_reward=2.0, partial=1.0, fail=0.0, weight=0.5, timeout=3.0, workers=1)
    assert (reward.weight, reward.limits.wall) == (0.5, 3.0)
    values = reward.measure([sample(block(f"def add(a, b): return {code}"), MBPP) for code in ("a + b", "0", "9")])
    assert values == pytest.approx([2.0, 2 / 3, 0.0])


def test_the_config_states_the_defaults() -> None:
    text = (Path(__file__).resolve().parents[2] / "conf/reward/code.yaml").read_text()
    assert text.startswith("# @package reward.code\n# ")
    config = yaml.safe_load(text)
    assert config.pop("_target_") == "posttrain.rewards.code.Code"
    stated, default = Code(**config), Code()
    assert vars(stated) == vars(default)


@pytest.mark.parametrize("language", ["Python", "python3", "py", "Python 3", ""])
def test_pythons_names_are_known_and_a_text_is_one_test(language: str) -> None:
    meta = {"tests": "assert add(1, 2) == 3", "language": language}
    reward = Code()
    assert reward.measure([sample(block("def add(a, b):\n    return a + b"), meta)]) == [1.0]


def test_another_language_is_told_as_the_reason() -> None:
    (value,) = Code().measure([sample("x", {"tests": ["assert 1"], "language": "Rust"})])
    assert math.isnan(value)
    assert getattr(value, "reason", "") == "tests in another language than Python: Rust"
