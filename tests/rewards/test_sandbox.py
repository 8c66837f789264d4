"""The code sandbox: what honest programs may do, how tests are counted, what is said."""

from __future__ import annotations

import sys

import pytest

from posttrain.rewards.sandbox import Limits, Outcome, active_guards, run_check, run_tests
from posttrain.rewards.sandbox.assertions import counted

TASK = ["assert f(2) == 4", "assert f(3) == 9"]
SHORT = Limits(wall=3.0, cpu=1, memory=256)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are those of Linux")


def passes(code: str, *tests: str, setup: str = "") -> Outcome:
    return run_tests(code, tests=tests, limits=Limits(), setup=setup)


HONEST = {
    "function": ("def f(x): return x * x", TASK),
    "class": (
        "class Stack:\n def __init__(self): self.items = []\n def push(self, x): self.items.append(x); return self\n def size(self): return len(self.items)",
        ["assert Stack().push(1).push(2).size() == 2", "s = Stack()\ns.push(3)\nassert s.items == [3]"],
    ),
    "changes its argument and returns it": ("def f(a):\n  a.sort()\n  return a", ["a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]"]),
    "returns what it was given something that cannot come back": ("def f(a):\n  a.append(a)\n  return 1", ["assert f([]) == 1"]),
    "changes its argument": ("def f(a): a.sort()", ["a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]", "d = [[2, 1]]\nassert f(d) is None and d == [[2, 1]]"]),
    "raises": ("def f(x):\n if x < 0: raise ValueError('negative', x)\n return x", ["try:\n f(-1)\nexcept ValueError as error:\n assert error.args == ('negative', -1)\nelse:\n assert False"]),
    "own exception": ("class Bad(KeyError): pass\ndef f(x): raise Bad(x)", ["try:\n f('k')\n assert False\nexcept KeyError as error:\n assert str(error) == \"'k'\""]),
    "generator": ("def f(n):\n for i in range(n): yield i * i", ["assert list(f(4)) == [0, 1, 4, 9]", "assert next(f(1)) == 0", "assert sum(f(4)) == 14"]),
    "endless generator": ("import itertools\ndef f(): return itertools.count(5)", ["g = f()\nassert [next(g), next(g)] == [5, 6]"]),
    "map, zip, views": ("def f(x): return map(str, x)\ndef g(x): return dict(x).values()", ["assert list(f([1, 2])) == ['1', '2']", "assert sorted(g([(1, 3), (2, 1)])) == [1, 3]"]),
    "returned function": ("def f(a): return lambda b: a + b", ["assert f(1)(2) == 3"]),
    "Counter and namedtuple": ("from collections import Counter, namedtuple\nP = namedtuple('P', 'a b')\ndef f(x): return Counter(x)\ndef g(): return P(1, 2)", ["assert f('aab') == {'a': 2, 'b': 1}", "assert g() == (1, 2)"]),
    "helper of the library": ("import math\ndef f(x): return math.sqrt(x)", ["assert math.isclose(f(2), 1.41421356, rel_tol=1e-6)", "assert isclose(f(4), 2)"]),
    "named like a built-in": ("def sum(a, b): return a + b", ["assert sum(1, 2) == 3", "assert sum(3, 4) == 7"]),
    "keyword arguments": ("def f(a, *, b=2): return a * b", ["assert f(2) == 4", "assert f(2, b=3) == 6"]),
    "threads": ("import threading\ndef f(x):\n out = []\n t = threading.Thread(target=lambda: out.append(x * x)); t.start(); t.join()\n return out[0]", TASK),
    "asyncio": ("import asyncio\ndef f(x):\n async def g(): await asyncio.sleep(0); return x * x\n return asyncio.run(g())", TASK),
    "temporary file": ("import tempfile\ndef f(x):\n with tempfile.TemporaryFile('w+') as t:\n  t.write(str(x * x)); t.seek(0); return int(t.read())", TASK),
    "late imports": ("def f(x):\n import sqlite3, ssl, decimal, xml.dom.minidom, zoneinfo\n return sqlite3.connect(':memory:').execute('select ?*?', (x, x)).fetchone()[0]", TASK),
    "main is not run": ("def f(x): return x * x\nif __name__ == '__main__': raise SystemExit(input())", TASK),
    "prints": ("def f(x):\n print('debug' * 100000)\n return x * x", TASK),
    "dataclasses, pickle": ("import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n x: int\ndef f(x): return pickle.loads(pickle.dumps(A(x * x))).x", TASK),
    "decimals and dates": ("import decimal, datetime, fractions\ndef f(x): return decimal.Decimal(x)\ndef g(): return datetime.date(2020, 1, 2)\ndef h(): return fractions.Fraction(1, 3)", ["assert f('1.5') == 1.5", "assert g().isoformat() == '2020-01-02'", "assert h() * 3 == 1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name: str) -> None:
    outcome = passes(HONEST[name][0], *HONEST[name][1])
    assert (outcome.status, outcome.error) == ("passed", None)


VECTOR = """
class Vector:
    def __init__(self, *parts): self.parts = list(parts)
    def __add__(self, other): return Vector(*(a + b for a, b in zip(self.parts, other.parts)))
    def __matmul__(self, other): return sum(a * b for a, b in zip(self.parts, other.parts))
    def __neg__(self): return Vector(*(-a for a in self.parts))
    def __setitem__(self, key, value): self.parts[key] = value
    def __delitem__(self, key): del self.parts[key]
    def __str__(self): return f"<{self.parts}>"
    def __repr__(self): return f"Vector({self.parts})"
    def __enter__(self): return self
    def __exit__(self, *fault): self.parts.clear(); return True
    def same(self): return self
class Point(Vector): pass
def lying(x):
    class Lie:
        __sub__ = __rsub__ = __add__ = __radd__ = lambda self, other: 0
        __abs__ = lambda self: 0
        __eq__ = __lt__ = __gt__ = __le__ = __contains__ = lambda self, other: True
        __exit__ = lambda self, *fault: True
        __enter__ = lambda self: 3
    return Lie()
"""
OF_CLASSES = [
    "assert (Vector(1, 2) + Vector(3, 4)).parts == [4, 6]", "assert Vector(1, 2) @ Vector(3, 4) == 11", "assert (-Vector(1)).parts == [-1]",
    "v = Vector(1, 2)\nv[0] = 5\ndel v[1]\nassert v.parts == [5]", "assert str(Vector(1)) == f'{Vector(1)}' == '<[1]>'",
    "assert repr(Vector(1)) == 'Vector([1])'", "with Vector(1) as v:\n assert v.parts == [1]\nassert v.parts == []",
    "assert isinstance(Point(1), Vector) and isinstance(Point(1), (int, Point)) and not isinstance(Vector(1), Point)",
    "v = Vector(1)\nassert v == v.same() and v is v.same() and not isinstance(3, Vector)",
]  # fmt: skip
FORGED = [
    "assert abs(lying(2) - 4) < 1", "assert lying(2) == 4", "assert lying(2) < 4", "assert 4 in lying(2)", "assert lying(2) + 4 == 0",
    "with lying(2) as x:\n assert x == 4",
]  # fmt: skip


def test_classes_and_their_objects() -> None:
    outcome = passes(VECTOR, *OF_CLASSES)
    assert (outcome.passed, outcome.error) == (len(OF_CLASSES), None)
    assert passes(VECTOR, *FORGED).passed == 0


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("class Line(Vector): pass\nassert Line(1).parts == [1]", "catch or extend a class of the program"),
        ("try:\n Vector()\nexcept Vector:\n pass", "catch or extend a class of the program"),
        ("assert lying(1) == lying(2)", "compares two objects of the program"),
        ("assert [lying(1)] == [lying(2)]", "compares two objects of the program"),
    ],
)
def test_what_only_the_programs_own_objects_could_tell_is_not_scored(test: str, words: str) -> None:
    outcome = passes(VECTOR, test)
    assert outcome.status == "unusable"
    assert words in str(outcome.error)
    assert passes(VECTOR, "assert Vector(1) != Vector(1)").status == "passed"  # no class says otherwise


def test_some_tests_pass() -> None:
    outcome = passes("def f(x): return 4", *TASK)
    assert (outcome.passed, outcome.total, outcome.status) == (1, 2, "failed")
    assert outcome.error == "AssertionError: assert f(3) == 9"


@pytest.mark.parametrize(
    ("code", "error"),
    [("def f(x: return", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("g = 1", "NameError"), ("", "NameError"), ("f = 5", "TypeError")],
)
def test_programs_that_do_not_run(code: str, error: str) -> None:
    outcome = passes(code, *TASK)
    assert (outcome.passed, outcome.status) == (0, "failed")
    assert str(outcome.error).startswith(error)


def test_setup_belongs_to_the_tests() -> None:
    setup = "import math\ndef close(a, b): return math.isclose(a, b)"
    assert (
        passes(
            "def close(a, b): return True\nmath = None\ndef f(x): return 5",
            "assert close(f(1), 4)",
            "assert math.floor(f(1)) == 4",
            setup=setup,
        ).passed
        == 0
    )
    assert (
        passes("def f(x): return math.sqrt(x)", "assert close(f(4), 2)", setup=setup).status == "passed"
    )  # its imports are the program's too


def test_setup_may_use_the_program() -> None:
    code = "class Node:\n def __init__(self, v): self.v, self.next = v, None\ndef total(n): return n.v + (total(n.next) if n.next else 0)"
    assert passes(code, "assert total(root) == 3", setup="root = Node(1)\nroot.next = Node(2)").status == "passed"
    assert passes("def total(n): return 3", "assert total(root) == 3", setup="root = Node(1)").status == "failed"


@pytest.mark.parametrize(
    ("tests", "setup"),
    [
        (["assert f(lambda: 1) == 4"], ""),
        (["assert f("], ""),
        (["assert np.isclose(f(2), 4)"], ""),
        (["assert f(2) == 4"], "import nowhere"),
        ([], ""),
    ],
)
def test_tests_that_say_nothing(tests: list[str], setup: str) -> None:
    outcome = passes("def f(x): return 4", *tests, setup=setup)
    assert outcome.status == "unusable" if tests else outcome.status == "failed"
    assert outcome.passed == 0


def test_helpers_of_a_prompt_are_not_the_programs() -> None:
    prompt = "def poly(xs, x):\n return sum(c * x**i for i, c in enumerate(xs))\n\ndef zero(xs):\n '''A zero of poly.'''\n"
    test = "def check(candidate):\n for a in range(1, 4):\n  assert abs(poly([a, 1], candidate([a, 1]))) < 1e-9\n assert True, 'nothing'\n"
    forged = "def poly(xs, x): return 0\ndef zero(xs): return 0"
    assert run_check(forged, test, "zero", SHORT, setup=prompt).passed == 0
    honest = run_check("def zero(xs): return -xs[0] / xs[1]", test, "zero", SHORT, setup=prompt)
    assert (honest.passed, honest.total, honest.status) == (1, 1, "passed")


def test_assertions_of_a_check_count_one_by_one() -> None:
    test = "def check(candidate):\n assert candidate(2) == 4\n assert candidate(3) == 9, 'no'\n for i in range(3):\n  assert candidate(i) == i * i\n if False: assert 0 == 1\n"
    outcome = run_check("def f(x): return 4 if x == 2 else 0", test, "f", SHORT)
    assert (outcome.passed, outcome.total) == (1, 3)
    assert run_check("def f(x): return x * x", test, "f", SHORT).status == "passed"
    assert run_check("def f(x): return x * x if x != 1 else 1 / 0", test, "f", SHORT).passed == 2
    assert counted(test)[1] == 4


def test_what_is_missing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from posttrain.rewards.sandbox.client import _announce

    with caplog.at_level("INFO"):
        _announce(active_guards())
        assert [record.levelname for record in caplog.records] == ["INFO"]
        _announce(("own-process",))
    assert ["network guard" in record.message or "file guard" in record.message for record in caplog.records[2:]] == [True, True]


def test_errors_are_one_printable_line() -> None:
    error = passes("def f(x): raise ValueError('\\x1b[31m\\n\\u202e' + 'x' * 10**5)", *TASK).error
    assert error is not None
    assert error.isprintable()
    assert len(error) <= 300
