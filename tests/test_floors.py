"""The floors of the house: a file imports only from its own folder or from a lower floor, and each floor has its libraries."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "posttrain"
FLOORS = {
    0: ("types", "errors", "discovery", "cores", "functional", "__init__"),
    1: ("data", "models"),
    2: ("rewards",),
    3: ("rollout",),
    4: ("methods",),
    5: ("evaluation", "runs", "serving"),
    6: ("__main__", "launchers"),
}
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts}
FLOORS_OF_NEIGHBOURS = (0, 5)
LOWEST_FLOOR = {"lightning": 4, "hydra": 5, "omegaconf": 5, "mlflow": 5}
# A method reads batches and models, but never knows where data comes from or who generates it.
CLOSED_TO_METHODS = tuple(
    f"posttrain.{name}" for name in ("data.sources", "data.readers", "data.formats", "data.arithmetic", "data.prepare", "rollout")
)
BATCH_LAYOUT = "posttrain.data.tree"  # what data hands to models and generators: its floor shares it
TEST_ONLY = {"trl", "accelerate", "pytest", "hypothesis"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """Dotted name of a source file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def part_of(module: str) -> str:
    """The folder or file on a floor a module belongs to: `models` of `posttrain.models.loading`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(file: Path) -> list[str]:
    """What a file imports and must not, as `file:line: import`."""
    module = module_of(file)
    found = [(line, name) for line, name in imports(file) if not allowed(module, name)]
    return [f"{file.relative_to(ROOT)}:{line}: {name}" for line, name in found]


def allowed(module: str, name: str) -> bool:
    """Whether `module` may import `name`."""
    if name.split(".", maxsplit=1)[0] == "posttrain":
        return own_code_allowed(module, name)
    return library_allowed(part_of(module), name.split(".", maxsplit=1)[0])


def library_allowed(part: str, library: str) -> bool:
    """Each floor has its libraries; pure functions have torch only."""
    if FLOOR_OF[part] == 0:
        return library == "torch" or library in sys.stdlib_module_names or part != "functional"
    return library not in TEST_ONLY and LOWEST_FLOOR.get(library, 0) <= FLOOR_OF[part]


def own_code_allowed(module: str, name: str) -> bool:
    """A lower floor, the same folder, or a neighbour on floors whose folders work together."""
    part, other = part_of(module), part_of(name)
    if part == other == "methods":
        return part_below(name) in ("", "base", "parts", part_below(module))
    if part == "methods" and name.startswith(CLOSED_TO_METHODS):
        return False
    if other not in FLOOR_OF:  # a name in the package itself, such as __version__
        return True
    if name.startswith(BATCH_LAYOUT) and FLOOR_OF[part] == 1:
        return True
    return other == part or FLOOR_OF[other] < FLOOR_OF[part] or FLOOR_OF[other] == FLOOR_OF[part] in FLOORS_OF_NEIGHBOURS


def part_below(module: str) -> str:
    """`supervised` of `posttrain.methods.supervised.SFT`."""
    return [*module.split("."), "", ""][2]


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_stay_on_their_floor(file: Path) -> None:
    assert violations(file) == []


def test_the_rules_can_fail() -> None:
    assert not allowed("posttrain.functional.x", "numpy")
    assert not allowed("posttrain.data.x", "posttrain.models.y")
    assert not allowed("posttrain.models.x", "lightning.pytorch")
    assert not allowed("posttrain.models.x", "posttrain.rollout.y")
    assert not allowed("posttrain.rewards.x", "posttrain.rollout.y")
    assert not allowed("posttrain.rollout.x", "lightning.pytorch")
    assert not allowed("posttrain.methods.x", "posttrain.methods.y")
    assert not allowed("posttrain.methods.x", "posttrain.data.sources")
    assert not allowed("posttrain.methods.x", "omegaconf")
    assert not allowed("posttrain.runs.x", "posttrain.__main__")
    assert not allowed("posttrain.runs.x", "trl")
    assert allowed("posttrain.methods.x", "posttrain.methods.base.Method")
    assert allowed("posttrain.runs.x", "posttrain.evaluation.y")
    assert allowed("posttrain.rollout.x", "posttrain.models.y")
