"""The source of tests: which names they need of the program, and a `check` function whose assertions are counted one by one."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOTE, FAULT = "_sandbox_note", "_sandbox_fault"
BUILTINS = frozenset(vars(builtins))
# Called around the function under test; never meant to come from the program.
AROUND = frozenset((
    "abs", "all", "any", "bool", "bytes", "dict", "enumerate", "float", "frozenset", "int", "isinstance", "issubclass", "iter",
    "len", "list", "map", "range", "repr", "reversed", "round", "set", "sorted", "str", "tuple", "type", "zip",
))  # fmt: skip
# Of the standard library, what tests call without importing it, since the reference solution does.
HELPERS = {
    **dict.fromkeys(("isclose", "sqrt", "floor", "ceil", "gcd", "factorial", "comb", "isnan", "inf", "pi"), "math"),
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"),
    **dict.fromkeys(("permutations", "combinations", "product", "chain", "islice"), "itertools"),
    **dict.fromkeys(("date", "datetime", "timedelta"), "datetime"),
    **{"Decimal": "decimal", "Fraction": "fractions", "deepcopy": "copy", "reduce": "functools"},
}

MODULES = sys.stdlib_module_names | {"numpy", "pandas", "scipy", "sympy", "torch"}
ALIASES = {"np": "numpy", "pd": "pandas"}


@dataclass(frozen=True)
class Needed:
    """program: names that the program must give. library: imports that the tests use without saying so."""

    program: frozenset[str]
    library: str


def needed(tests: Sequence[ast.Module], setup: ast.Module) -> Needed:
    """What the setup defines, what Python has built in and the library's own stay the tests' own, whatever the program calls by their
    names: it could otherwise say what is equal. But where no other function is tested, a name of these that every test calls is the
    function under test (MBPP's `sum`).
    """
    trees = [*tests, setup]
    read = set().union(*map(read_names, trees)) - defined(setup)
    modules = set().union(*map(attribute_bases, trees)) & (MODULES | ALIASES.keys()) & read
    called = set().union(*map(called_names, tests)) & read - BUILTINS - HELPERS.keys()
    shadowed = set() if called else _called_by_all(tests) & (BUILTINS | HELPERS.keys()) - AROUND
    helpers = read & HELPERS.keys() - shadowed
    lines = [f"import {ALIASES.get(name, name)} as {name}" for name in sorted(modules)]
    lines += [f"from {HELPERS[name]} import {name}" for name in sorted(helpers)]
    return Needed(frozenset(read - BUILTINS - modules - helpers | shadowed), "\n".join(lines))


def _called_by_all(tests: Sequence[ast.Module]) -> set[str]:
    return set.intersection(*map(called_names, tests)) if tests else set()


def attribute_bases(tree: ast.AST) -> set[str]:
    """Every name whose attributes are read: `math` of `math.isclose`."""
    return {node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}


def tested_names(tests: Iterable[str]) -> set[str]:
    """Names that may be the function under test; empty for tests that are no Python."""
    try:
        return set().union(*(called_names(ast.parse(test)) for test in tests)) - AROUND
    except (SyntaxError, ValueError):
        return set()


def read_names(tree: ast.AST) -> set[str]:
    """Every name that is read."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def classes_used(tree: ast.AST) -> set[str]:
    """Names of what must be a class where it is used: what is caught, and what a class extends."""
    used = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is not None]
    used += [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    return set().union(*map(read_names, used))


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
