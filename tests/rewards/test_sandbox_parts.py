"""Parts of the sandbox without processes: values, names, the program in an answer."""

from __future__ import annotations

import ast
import json
import time

import pytest

from posttrain.rewards.sandbox import program_of
from posttrain.rewards.sandbox.assertions import needed
from posttrain.rewards.sandbox.codec import Unsendable, decode, encode, refresh

VALUES = [
    "None", "True", "False", "0", "-1", "2**53", "-(2**200)", "10**4000", "1.5", "float('inf')", "-0.0", "''", "'a\\n\\u00e9'", "'\\ud800'",
    "b'\\x00\\xff'", "bytearray(b'x')", "2 + 3j", "[]", "[1, [2, [3]]]", "()", "(1,)", "((1, 2), [3])", "{}", "{'a': 1, 2: (3,), None: []}",
    "{(1, 2): {3}}", "set()", "{1, 2}", "frozenset({1, (2, 3)})", "range(3)", "range(0, 2**70, 7)", "{1: 2}.keys()", "{1: 2}.items()", "int",
    "...", "NotImplemented", "'\\x00'", "[True, 1, 1.0]",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_values_cross_unchanged(value: str) -> None:
    there = json.loads(json.dumps(encode(eval(value), _refuse)))
    back = decode(there, _unknown)
    assert back == eval(value)
    assert type(back) is type(eval(value))
    assert repr(back) == repr(eval(value))


def _refuse(value: object) -> object:
    raise Unsendable(repr(value))


def _unknown(tag: str, content: object) -> object:
    raise Unsendable(tag)


NONSENSE = [{}, {"tuple": 1}, {"a": 1, "b": 2}, {"set": [[1]]}, {"int": "x"}, {"dict": [[1]]}, {"type": "print"}, {"range": ["0x1", "0x2", "0x0"]}, {"decimal": "x"}, {"fraction": ["0x1", "0x0"]}, {"complex": 3}, {"who": 1}, {"bytes": "zz"}]  # fmt: skip


@pytest.mark.parametrize("nonsense", NONSENSE, ids=json.dumps)
def test_nonsense_is_refused(nonsense: object) -> None:
    with pytest.raises(Unsendable):
        decode(nonsense, _unknown)


def test_changes_are_made_in_place() -> None:
    inner = [1]
    old = [inner, {"a": inner}, 3]
    refresh(old, [[2], {"a": [5], "b": 4}])
    assert old == [[5], {"a": [5], "b": 4}]
    assert old[0] is inner


def test_names_that_the_program_may_give() -> None:
    def of(*tests: str) -> set[str]:
        return set(needed([ast.parse(test) for test in tests], ast.parse("")).program)

    assert of("assert f(len([1])) == 1") == {"f"}
    assert of("assert set(sum(1, 2)) == {1}", "assert sum(3, 4) == 7") == {"sum"}
    assert of("assert isclose(f(1), math.pi)") == {"f"}
    assert of("assert Node(1).v == 1") == {"Node"}


ANSWERS = [
    ("Here:\n```python\ndef f(): pass\n```\nDone.", "def f(): pass\n"),
    ("```py\na = 1\n```\n```python\ndef f(): pass\n```\n```python\nprint(f())\n```", "def f(): pass\n"),
    ("```\nx = 1\n```", "x = 1\n"),
    ("```bash\nls\n```\n```python\ny = 2\n```", "y = 2\n"),
    ("```python\ndef f():\n    return 1", "def f():\n    return 1"),
    ("def f(): return 2", "def f(): return 2"),
    ("~~~python\nz = 1\n~~~", "z = 1\n"),
    ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
    ("```python\n```", ""),
    ("", ""),
    ("1. code:\n   ```python\n   def f():\n       return 1\n\n  x = 2\n   ```", "def f():\n    return 1\n\nx = 2\n"),
    ("```python\nimport math\ndef g(): return math.pi\n```\n```python\ndef h(): pass\n```\n```python\ndef f(): return g()\n```",
     "import math\ndef g(): return math.pi\n\ndef f(): return g()\n"),
    ("```python\nk = 2\n```\n```python\ndef g(): return k\n```\n```python\ndef f(): return g()\n```", "k = 2\n\ndef g(): return k\n\ndef f(): return g()\n"),
    ("```python\ndef g(): return 0\n```\n```python\ndef g(): return 1\ndef f(): return g()\n```", "def g(): return 1\ndef f(): return g()\n"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "program"), ANSWERS)
def test_the_program_in_an_answer(answer: str, program: str) -> None:
    assert program_of(answer, ("f",)) == program


def test_finding_a_program_takes_linear_time() -> None:
    started = time.monotonic()
    for text in ("```python\n" * 20000, "`" * 200000, "```\n" * 50000, " " * 200000 + "```", "~~~\n```\n" * 20000):
        program_of(text, ("f",))
    assert time.monotonic() - started < 5
