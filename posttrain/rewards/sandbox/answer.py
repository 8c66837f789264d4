"""The program in a model's answer."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection

from posttrain.rewards.sandbox.assertions import read_names

_OPENING = re.compile(r"([ \t]{0,12})(`{3,}|~{3,})[ \t]*([\w+.-]*)[^`]*", re.ASCII)
_PYTHON = ("python", "python3", "py", "")
LONGEST_READ = 20_000  # characters of a block that is looked into for names


def program_of(answer: str, names: Collection[str] = ()) -> str:
    """The code of an answer: of its fenced Python blocks the last that defines one of `names`, else the last, behind those before it that
    define what it uses and has not got; without any block the whole answer. A block that is cut off ends with the answer.
    """
    blocks = [block for language, block in fenced(answer) if language in _PYTHON]
    if not blocks:
        return answer
    defining = [place for place, block in enumerate(blocks) if any(defines(block, name) for name in names)]
    place = (defining or range(len(blocks)))[-1]
    program, (lacking, _) = blocks[place], _names(blocks[place])
    for block in reversed(blocks[:place] if lacking else ()):
        needs, has = _names(block)
        if lacking & has:
            program, lacking = block + "\n" + program, (lacking - has) | needs
    return program


def _names(code: str) -> tuple[set[str], set[str]]:
    """Names that a block reads and nowhere makes, and those that it makes at its top level; none of what is no Python."""
    if len(code) > LONGEST_READ:
        return set(), set()
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    made = {name for node in ast.walk(tree) for name in _made(node)}
    return read_names(tree) - made - set(dir(builtins)), {name for node in tree.body for name in _made_by(node)}


def _made_by(statement: ast.stmt) -> set[str]:
    """Names that a statement makes where it stands."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return {name for node in ast.walk(statement) for name in _made(node)}
    return _made(statement)


def _made(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return {node.id}
    return {node.arg} if isinstance(node, ast.arg) else set()


def fenced(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text: language in lower case, content without the fence's own indentation (CommonMark 0.31, 4.5). One
    pass over the lines."""
    found: list[tuple[str, list[str]]] = []
    fence, indent = "", 0
    for line in text.splitlines(keepends=True):
        if fence:
            closing = line.strip()
            if len(closing) >= len(fence) and closing == fence[0] * len(closing):
                fence = ""
            else:
                found[-1][1].append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
        elif (match := _OPENING.fullmatch(line.rstrip("\r\n"))) is not None:
            fence, indent = match[2], len(match[1])
            found.append((match[3].lower(), []))
    return [(language, "".join(lines)) for language, lines in found]


def defines(code: str, name: str) -> bool:
    """Whether the code has a function, class or assignment of that name at its top level."""
    return re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=", code, re.MULTILINE) is not None
