"""The form that an annotator fills in: one HTML file that needs no network and sends nothing anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from posttrain.evaluation.human.sheet import LEAST, LETTERS, MOST, Sheet, cells, header

HOME = Path(__file__).parent


def page(sheet: Sheet, *, file: str) -> str:
    """The form of a sheet; it exports `file`, the same CSV as `sheet.as_csv` makes, filled in.

    Texts are data of a script that shows them as text alone, and the page's policy lets no other script run and nothing be loaded.
    """
    script, style = ((HOME / name).read_text(encoding="utf-8") for name in ("form.js", "form.css"))
    content = {
        "sheet": sheet.name,
        "file": file,
        "letters": list(LETTERS[: sheet.answers]),
        "least": LEAST,
        "most": MOST,
        "header": header(sheet.answers),
        "rows": [cells(row, sheet.name) for row in sheet.rows],
    }
    parts = {
        "style_hash": _hash(style), "script_hash": _hash(script), "least": str(LEAST), "most": str(MOST),
        "style": style, "script": script, "data": _inert(content),
    }  # fmt: skip
    before, *pieces = (HOME / "form.html").read_text(encoding="utf-8").split("{")
    return before + "".join(_filled(piece, parts) for piece in pieces)


def _filled(piece: str, parts: dict[str, str]) -> str:
    """`name}rest` with the named part."""
    name, _, rest = piece.partition("}")
    return parts[name] + rest


def _inert(content: object) -> str:
    """JSON in ASCII without any character that HTML could take for a tag or an entity."""
    text = json.dumps(content, ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
