"""The source of tests: which names they need of the program, and a `check` function whose assertions are counted one by one."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Sequence

NOTE, FAULT = "_sandbox_note", "_sandbox_fault"
BUILTINS = frozenset(vars(builtins))
# Called around the function under test; never meant to come from the program.
AROUND = frozenset((
    "abs", "all", "any", "bool", "bytes", "dict", "enumerate", "float", "frozenset", "int", "isinstance", "issubclass", "iter",
    "len", "list", "map", "range", "repr", "reversed", "round", "set", "sorted", "str", "tuple", "type", "zip",
))  # fmt: skip


def wanted(tests: Sequence[ast.Module], setup: ast.Module) -> set[str]:
    """Names that the program must give. What the setup defines and what Python has built in stay the tests' own, whatever the program
    calls them; but where no other function is tested, a built-in name that every test calls is the function under test (MBPP's `sum`).
    """
    names = set().union(*(read_names(tree) for tree in [*tests, setup]))
    own = defined(setup)
    foreign = names - BUILTINS - own
    called = set().union(*(called_names(test) for test in tests)) - BUILTINS - own
    return foreign if called else foreign | _shadowed(tests)


def _shadowed(tests: Sequence[ast.Module]) -> set[str]:
    called = [called_names(test) & BUILTINS for test in tests]
    return set.intersection(*called) - AROUND if called else set()


def read_names(tree: ast.AST) -> set[str]:
    """Every name that is read."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def called_names(tree: ast.AST) -> set[str]:
    """Every name that is called."""
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def defined(tree: ast.Module) -> set[str]:
    """What the top level defines, imports or assigns."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".", maxsplit=1)[0] for alias in node.names}
        else:
            names |= {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
    return names


def imports_of(setup: str) -> str:
    """The import lines of a setup; empty if it is no Python."""
    try:
        tree = ast.parse(setup)
    except (SyntaxError, ValueError):
        return ""
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


class _Counted(ast.NodeTransformer):
    """Each `assert` tells whether it held, and the function goes on."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):  # `assert True, "..."` tests nothing
            return node
        number, self.count = self.count, self.count + 1
        template = f"try:\n pass\nexcept Exception as {FAULT}:\n {NOTE}({number}, {FAULT})\nelse:\n {NOTE}({number}, None)"
        guarded = ast.parse(template).body[0]
        assert isinstance(guarded, ast.Try)
        guarded.body = [node]
        return ast.copy_location(guarded, node)


def counted(source: str) -> tuple[ast.Module, int]:
    """The source with its assertions counted, and how many there are."""
    counter = _Counted()
    tree = ast.fix_missing_locations(counter.visit(ast.parse(source)))
    return tree, counter.count


def constant_only(tests: Iterable[ast.Module]) -> bool:
    """Whether no test asks anything."""
    return all(not read_names(test) for test in tests)
