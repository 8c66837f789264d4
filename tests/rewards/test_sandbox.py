"""The code sandbox: what honest programs may do, that hostile ones neither pass nor harm, and that nothing survives."""

from __future__ import annotations

import ast
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hostile import FORGERS, HARMERS

from posttrain.rewards.sandbox import Limits, Outcome, Sandbox, active_guards, program_of, run_check, run_tests
from posttrain.rewards.sandbox.assertions import counted, needed
from posttrain.rewards.sandbox.codec import Unsendable, decode, encode, refresh

ROOT = Path(__file__).resolve().parents[2]
HUMANEVAL = ROOT.parent / "shared" / "data" / "humaneval.jsonl.gz"
TASK = ["assert f(2) == 4", "assert f(3) == 9"]
SHORT = Limits(wall=3.0, cpu=1, memory=256)
SECRET = "HOSTILE_SECRET"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are those of Linux")


def passes(code: str, *tests: str, setup: str = "") -> Outcome:
    return run_tests(code, tests=tests, limits=Limits(), setup=setup)


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


HONEST = {
    "function": ("def f(x): return x * x", TASK),
    "class": (
        "class Stack:\n def __init__(self): self.items = []\n def push(self, x): self.items.append(x); return self\n def size(self): return len(self.items)",
        ["assert Stack().push(1).push(2).size() == 2", "s = Stack()\ns.push(3)\nassert s.items == [3]"],
    ),
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


def test_names_that_the_program_may_give() -> None:
    def of(*tests: str) -> set[str]:
        return set(needed([ast.parse(test) for test in tests], ast.parse("")).program)

    assert of("assert f(len([1])) == 1") == {"f"}
    assert of("assert set(sum(1, 2)) == {1}", "assert sum(3, 4) == 7") == {"sum"}
    assert of("assert isclose(f(1), math.pi)") == {"f"}
    assert of("assert Node(1).v == 1") == {"Node"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A victim folder, a listener, a secret, and sandboxes that start with the secret in the environment."""
    victim = tmp_path_factory.mktemp("victim")
    (victim / "file").write_text("kept")
    os.environ[SECRET] = "kept"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        yield {"victim": victim, "port": listener.getsockname()[1], "pid": os.getpid(), "listener": listener}
    del os.environ[SECRET]


@pytest.fixture(scope="module")
def judge(world: dict[str, object]) -> Iterator[object]:
    """Outcomes of all hostile programs by guards left out, several programs at once."""
    boxes: list[Sandbox] = []

    def outcomes(programs: dict[str, str], *without: str) -> dict[str, Outcome]:
        box = Sandbox(4, without=without)
        boxes.append(box)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda code: run_tests(code.format(**world), tests=TASK, limits=SHORT, sandbox=box), programs.values())
            outcome = dict(zip(programs, found, strict=True))
        assert len(psutil.Process(box._process.pid).children(recursive=True)) == ("namespaces" in box.guards)
        return outcome

    yield outcomes
    for box in boxes:
        box.close()


def contained(outcomes: dict[str, Outcome]) -> None:
    wrong = {
        name: outcome for name, outcome in outcomes.items() if outcome.status not in ("failed", "timeout", "died") or outcome.passed == 2
    }
    assert wrong == {}


def unharmed(world: dict[str, object]) -> None:
    victim, listener = world["victim"], world["listener"]
    assert isinstance(victim, Path)
    assert isinstance(listener, socket.socket)
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "kept"
    assert not Path("/dev/shm/hostile").exists()
    with pytest.raises(TimeoutError):
        listener.accept()


def test_forgers_do_not_pass(judge, world) -> None:
    outcomes = judge(FORGERS)
    contained(outcomes)
    unharmed(world)
    slow = {name: outcome.seconds for name, outcome in outcomes.items() if outcome.seconds > SHORT.wall + 2}
    assert slow == {}


def test_harmers_are_contained(judge, world) -> None:
    contained(judge(HARMERS))
    unharmed(world)


def test_what_one_guard_misses_another_catches(judge, world) -> None:
    """Without the filter of system calls there are processes, sockets and kernel interfaces: namespaces and limits hold."""
    if "namespaces" not in active_guards():
        pytest.skip("this machine allows no namespaces")
    names = ("a fork bomb", "connects to a listener", "connects by system call", "deletes files", "escapes by dots", "a daemon in a session of its own", "runs a shell", "mounts", "traces other processes", "writes to other processes", "fills shared memory")  # fmt: skip
    contained(judge({name: HARMERS[name] for name in names}, "seccomp"))
    time.sleep(1)
    unharmed(world)


def test_degraded_to_limits(judge) -> None:
    """Where the machine allows no guard at all, a verdict still cannot be forged, and what a program starts ends with it."""
    everything = ("namespaces", "network-namespace", "user-id", "landlock", "seccomp")
    reading = {"looks for test files", "reads other processes", "looks for the tests in its memory"}
    contained(judge({name: code for name, code in FORGERS.items() if name not in reading}, *everything))
    daemon = "import os, time\ndef f(x):\n if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n  os._exit(0)"
    contained(judge({"a daemon": daemon}, *everything))


@pytest.mark.parametrize("without", [(), ("namespaces", "network-namespace", "user-id", "landlock", "seccomp")], ids=["guarded", "bare"])
def test_nothing_survives_the_trainer(without: tuple[str, ...]) -> None:
    script = (
        "from posttrain.rewards.sandbox import *; import threading\n"
        f"box = Sandbox(2, without={without}); print(box._process.pid, flush=True)\n"
        "code = 'import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(1000)'\n"
        "run_tests(code, tests=['assert f(1)'], limits=Limits(wall=1000), sandbox=box)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    first = psutil.Process(int(trainer.stdout.readline()))
    time.sleep(1.0)
    family = [first, *first.children(recursive=True)]
    assert len(family) >= 3
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_sandbox_that_died_starts_again() -> None:
    from posttrain.rewards.sandbox.client import _shared

    assert passes("def f(x): return x * x", *TASK).status == "passed"
    os.kill(_shared.get()._process.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert passes("def f(x): return x * x", *TASK).status == "unusable"
    assert passes("def f(x): return x * x", *TASK).status == "passed"


def test_a_trainer_that_is_not_root() -> None:
    """Guards without privileges: user namespaces, Landlock, the filter of system calls."""
    python = "/usr/bin/python3"
    if (
        os.getuid() != 0
        or not Path(python).exists()
        or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode
    ):
        pytest.skip("needs root and a Python 3.11 that other users may run")
    script = (
        "from posttrain.rewards.sandbox import *\n"
        "import os; print(os.getuid(), *active_guards())\n"
        "for code in ('def f(x): return x * x', 'import os\\ndef f(x): os.kill(-1, 9)', 'def f(x): open(\"/etc/hostname\").read()'):\n"
        f" print(run_tests(code, tests={TASK}, limits=Limits(wall=3.0)).status)"
    )
    told = subprocess.run(
        [python, "-c", script], cwd=ROOT, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=True
    )
    guards, *statuses = told.stdout.splitlines()
    assert statuses == ["passed", "failed", "failed"]
    assert guards.startswith("65534 own-process")
    assert "seccomp" in guards


def test_what_is_missing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from posttrain.rewards.sandbox.client import _announce

    with caplog.at_level("INFO"):
        _announce(active_guards())
        assert [record.levelname for record in caplog.records] == ["INFO"]
        _announce(("own-process",))
    assert ["network guard" in record.message or "file guard" in record.message for record in caplog.records[2:]] == [True, True]


def test_a_fork_of_the_trainer_has_a_sandbox_of_its_own() -> None:
    guards = active_guards()
    pid = os.fork()
    if pid == 0:
        from posttrain.rewards.sandbox import client

        passed = passes("def f(x): return x * x", *TASK).status == "passed" and active_guards() == guards
        client._shared.close()
        os._exit(0 if passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert passes("def f(x): return x * x", *TASK).status == "passed"


def test_temporary_folders_are_removed(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("posttrain-sandbox-*"))
    box = Sandbox(1, without=["namespaces"])
    assert run_tests("open('x', 'w').write('y')\ndef f(x): return x * x", tests=TASK, limits=SHORT, sandbox=box).status == "passed"
    box.close()
    assert set(Path("/tmp").glob("posttrain-sandbox-*")) <= before


def test_errors_are_one_printable_line() -> None:
    error = passes("def f(x): raise ValueError('\\x1b[31m\\n\\u202e' + 'x' * 10**5)", *TASK).error
    assert error is not None
    assert error.isprintable()
    assert len(error) <= 300


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
]


@pytest.mark.parametrize(("answer", "program"), ANSWERS)
def test_the_program_in_an_answer(answer: str, program: str) -> None:
    assert program_of(answer, ("f",)) == program


def test_finding_a_program_takes_linear_time() -> None:
    started = time.monotonic()
    for text in ("```python\n" * 20000, "`" * 200000, "```\n" * 50000, " " * 200000 + "```", "~~~\n```\n" * 20000):
        program_of(text, ("f",))
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def tasks() -> list[dict[str, str]]:
    if not HUMANEVAL.exists():
        pytest.skip(f"{HUMANEVAL} is not there")
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judged(tasks: list[dict[str, str]], solution) -> dict[str, Outcome]:
    def one(task: dict[str, str]) -> Outcome:
        return run_check(task["prompt"] + solution(task), task["test"], task["entry_point"], Limits(wall=30), setup=task["prompt"])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([task["task_id"] for task in tasks], pool.map(one, tasks), strict=True))


def test_humaneval_solutions_pass(tasks: list[dict[str, str]]) -> None:
    outcomes = judged(tasks, lambda task: task["canonical_solution"])
    assert len(outcomes) == 164
    assert {name: outcome for name, outcome in outcomes.items() if outcome.status != "passed"} == {}
    assert sum(outcome.total for outcome in outcomes.values()) > 1000


MUTANTS = {
    "returns nothing": lambda task: "    return None\n",
    "returns the first argument": lambda task: (
        f"    return None\n_f = {task['entry_point']}\ndef {task['entry_point']}(*a): return a[0] if a else None\n"
    ),
    "returns 1": lambda task: f"    return None\ndef {task['entry_point']}(*a): return 1\n",
    "raises": lambda task: "    raise AssertionError\n",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutated_humaneval_solutions_fail(tasks: list[dict[str, str]], mutant: str) -> None:
    outcomes = judged(tasks[::2] if mutant != "returns nothing" else tasks, MUTANTS[mutant])
    assert {name for name, outcome in outcomes.items() if outcome.status == "passed"} == set()
