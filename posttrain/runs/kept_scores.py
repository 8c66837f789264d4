"""Where the scores of single examples lie in a run's folder: of the run's own end, and of each later `posttrain eval`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.runs.files import sync_path, writing

if TYPE_CHECKING:
    from posttrain.evaluation.scores import Scores

FOLDER = "eval"
OWN = "examples.parquet"


def keep_scores(run: Path, scores: Mapping[str, Scores], suite: str | None = None) -> Path:
    """Write RUN/eval/examples.parquet, or RUN/eval/SUITE.examples.parquet with metrics named eval/SUITE/...; returns its path."""
    from posttrain.evaluation.scores import write_scores

    path = run / FOLDER / (OWN if suite is None else f"{suite}.{OWN}")
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            write_scores(draft, scores if suite is None else {f"eval/{suite}/{name}": found for name, found in scores.items()})
            sync_path(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync_path(path.parent)
    return path


def kept_scores(run: Path) -> dict[str, Scores]:
    """The scores of a run by metric; empty for one that kept none. Raises OSError or pyarrow.ArrowException on a broken file."""
    from posttrain.evaluation.scores import read_scores

    return {metric: scores for file in sorted((run / FOLDER).glob(f"*{OWN}")) for metric, scores in read_scores(file).items()}
