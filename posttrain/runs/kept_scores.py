"""Where the scores of single examples lie in a run's folder: of the run's own end, of its measurements on the way, and of each later
`posttrain eval`."""

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
STEPS = "steps"


def keep_scores(run: Path, scores: Mapping[str, Scores], suite: str | None = None) -> Path:
    """Write RUN/eval/examples.parquet, or RUN/eval/SUITE.examples.parquet with metrics named eval/SUITE/...; returns its path."""
    path = run / FOLDER / (OWN if suite is None else f"{suite}.{OWN}")
    return _write(path, scores if suite is None else {f"eval/{suite}/{name}": found for name, found in scores.items()})


def keep_scores_at(run: Path, scores: Mapping[str, Scores], step: int) -> Path:
    """Write RUN/eval/steps/STEP.parquet, of what was measured after that step; returns its path."""
    return _write(_at(run, step), scores)


def _at(run: Path, step: int) -> Path:
    return run / FOLDER / STEPS / f"{step}.parquet"


def _write(path: Path, scores: Mapping[str, Scores]) -> Path:
    from posttrain.evaluation.scores import write_scores

    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_scores(draft, scores)
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


def kept_scores_at(run: Path, step: int) -> dict[str, Scores]:
    """The scores of what was measured after a step; empty where none were kept. Raises as `kept_scores` does."""
    from posttrain.evaluation.scores import read_scores

    return read_scores(_at(run, step)) if _at(run, step).is_file() else {}
