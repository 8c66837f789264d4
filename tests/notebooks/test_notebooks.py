"""Every notebook runs from its first cell to its last, on fewer steps than a reader would take."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FEWER = {
    r"max_steps=\d+": "max_steps=3",
    "limit=800": "limit=60",
    "exact_match.examples=100": "exact_match.examples=8",
    "global_batch=16": "global_batch=4",
    "group_size=8": "group_size=4",
    "max_new_tokens=48": "max_new_tokens=12",
    '"tracking=none"': '"tracking=none", "validate.max_examples=16"',
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_runs(path: Path, tmp_path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        for written, here in FEWER.items():
            cell.source = re.sub(written, here, cell.source)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_is_kept_without_outputs(path: Path) -> None:
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)
