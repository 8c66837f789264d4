"""Weights & Biases."""

from __future__ import annotations

import logging
import shlex
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from posttrain.errors import MissingExtra
from posttrain.runs.files import write_atomic
from posttrain.runs.records import Status
from posttrain.runs.tracking.base import RunInfo
from posttrain.runs.tracking.naming import metric_name

if TYPE_CHECKING:
    import wandb

EXIT_CODES = {"finished": 0, "stopped": 130, "failed": 1}
log = logging.getLogger(__name__)


class WandbTracker:
    """Records a run in W&B; a resumed run continues under its id.

    mode: offline writes to OUTPUT_DIR/wandb, to be sent with ``wandb sync``; also what online turns into, with a warning, if W&B is away.
    finish_seconds: at the end of a run, wait at most that long for the upload.
    """

    def __init__(
        self,
        *,
        project: str = "posttrain",
        entity: str | None = None,
        mode: Literal["online", "offline"] = "online",
        finish_seconds: float = 60.0,
    ):
        self.project = project
        self.entity = entity
        self.mode = mode
        self.finish_seconds = finish_seconds
        self._output_dir = Path()
        self._run: wandb.Run | None = None

    @property
    def run(self) -> wandb.Run:
        """The open run. Raises RuntimeError before `start`."""
        if self._run is None:
            raise RuntimeError("the tracker was not started")
        return self._run

    @property
    def run_id(self) -> str | None:
        """W&B's id."""
        return self._run.id if self._run else None

    def start(self, run: RunInfo) -> None:
        """Open the run; offline if W&B does not answer."""
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("tracking=wandb", "wandb") from error
        self._output_dir = run.output_dir
        id_path = run.output_dir / "tracking" / "wandb_id"
        id_path.parent.mkdir(exist_ok=True)
        if not (run.continued and id_path.exists()):
            write_atomic(id_path, uuid.uuid4().hex[:16])
        try:
            self._run = self._open(run, id_path.read_text(), self.mode)
        except wandb.errors.CommError as error:
            log.warning("tracking: W&B does not answer (%s); recording offline, send it later with: %s", error, self.hint())
            self._run = self._open(run, id_path.read_text(), "offline")

    def _open(self, run: RunInfo, run_id: str, mode: Literal["online", "offline"]) -> wandb.Run:
        import wandb

        datasets = {f"{record.context}/{record.name}": vars(record) for record in run.datasets}
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=run_id,
            name=run.name,
            dir=str(run.output_dir),
            config=dict(run.config) | {"_datasets": datasets},
            tags=[f"{key}:{value}"[:64] for key, value in run.tags.items() if value is not None],
            mode=mode,
            resume="allow",
            settings=wandb.Settings(init_timeout=20, console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Values of one step; steps which W&B has from before a resume are left out."""
        if step >= self.run.starting_step:
            self.run.log({metric_name(key): float(value) for key, value in metrics.items()}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows as a W&B table."""
        import wandb

        columns = list(dict.fromkeys(key for row in rows for key in row))
        self.run.log({name: wandb.Table(columns=columns, data=[[str(row.get(key, "")) for key in columns] for row in rows])})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder as a W&B artifact."""
        import wandb

        artifact = wandb.Artifact(f"{self.run.id}-{path.stem}", type=folder or "run")
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def figure(self, path: Path) -> None:
        """The plot as an image."""
        import wandb

        self.run.log({f"plots/{path.stem}": wandb.Image(str(path))})

    def finish(self, status: Status) -> None:
        """Upload the rest, for at most `finish_seconds`. Does nothing for a run that failed before it was started here."""
        if self._run is None:
            return
        closing = threading.Thread(target=self.run.finish, args=(EXIT_CODES[status],), daemon=True)
        closing.start()
        closing.join(self.finish_seconds)
        if closing.is_alive():
            log.warning("tracking: W&B does not answer, not everything was sent. Send it later with: %s", self.hint())

    def hint(self) -> str:
        """The run's page, or the command that sends an offline run."""
        if self._run is not None and self._run.url:
            return self._run.url
        return f"wandb sync {shlex.quote(str(self._output_dir / 'wandb'))}/*run-*"
