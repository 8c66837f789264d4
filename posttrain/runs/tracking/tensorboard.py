"""TensorBoard event files beside the run's own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from posttrain.errors import MissingExtra
from posttrain.runs.records import Status
from posttrain.runs.tracking.base import RunInfo
from posttrain.runs.tracking.naming import flatten, metric_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """Writes TensorBoard files. folder: where, null = OUTPUT_DIR/tensorboard; a folder given here gets a subfolder per run."""

    run_id: str | None = None

    def __init__(self, *, folder: str | None = None):
        self.folder = Path(folder).absolute() if folder else None
        self._log_dir = self.folder
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """The open writer. Raises RuntimeError before `start`."""
        if self._writer is None:
            raise RuntimeError("the tracker was not started")
        return self._writer

    def start(self, run: RunInfo) -> None:
        """Open the event file. Steps after `run.start_step`, which a resume computes again, are hidden in earlier files."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tracking=tensorboard", "tensorboard") from error
        self._log_dir = self.folder / run.name if self.folder else run.output_dir / "tensorboard"
        self._writer = SummaryWriter(str(self._log_dir), purge_step=run.start_step + 1 if run.start_step else None)
        rows = "\n".join(f"| {key} | {value} |" for key, value in flatten(run.config).items())
        self._writer.add_text("config", f"| key | value |\n|---|---|\n{rows}", run.start_step)
        for record in run.datasets:
            self._writer.add_text(f"data/{record.context}", f"{record.name}: {record.source} ({record.digest})", run.start_step)

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """One scalar per metric."""
        for key, value in metrics.items():
            self.writer.add_scalar(metric_name(key), float(value), step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows as text, one block a row."""
        blocks = ["  \n".join(f"**{key}**: {value}" for key, value in row.items()) for row in rows]
        self.writer.add_text(name, "\n\n---\n\n".join(blocks))

    def artifact(self, path: Path, folder: str = "") -> None:
        """TensorBoard holds no files: the path is recorded."""
        self.writer.add_text(f"artifacts/{folder}".rstrip("/"), str(path.absolute()))

    def figure(self, path: Path) -> None:
        """The plot as an image."""
        from matplotlib.image import imread

        self.writer.add_image(path.stem, imread(path)[..., :3], dataformats="HWC")

    def finish(self, status: Status) -> None:
        """Flush and close. Does nothing for a run that failed before it was started here."""
        if self._writer is not None:
            self._writer.add_text("status", status)
            self._writer.close()

    def hint(self) -> str:
        """The command that shows the files."""
        return f"tensorboard --logdir {shlex.quote(str(self._log_dir))}" if self._log_dir else ""
