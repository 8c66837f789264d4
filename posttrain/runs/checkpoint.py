"""Checkpoints for resuming: complete or absent, never half; the last k and the best kept."""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.runs.files import sync_path, write_atomic, writing

STATE, META = "state.ckpt", "meta.json"
NAME = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. score: the monitored value when it was written (smaller is better), None if there was none. ends: after how
    many examples the run ended with fewer than a whole step."""

    path: Path
    step: int
    score: float | None = None
    ends: tuple[int, ...] = ()

    @property
    def damage(self) -> str:
        """What is wrong with the files, in words; empty if they are all there in full."""
        wanted, sizes = _meta(self.path).get("bytes"), _sizes(self.path)
        if not wanted:
            return f"{META} cannot be read"
        return ", ".join(f"{name} has {sizes.get(name, 0)} of {size} bytes" for name, size in wanted.items() if sizes.get(name) != size)

    @property
    def corruption(self) -> str:
        """Which of the files have other contents than were written, in words; empty if none has. Reads them all.

        Archives as torch.save writes them hold a checksum of each part, and a shard is a row of such archives, one a tensor. The record has
        those of other files.
        """
        corrupt = [name for name, crc in _meta(self.path).get("crc32", {}).items() if _crc32(self.path / name) != crc]
        if self.state.is_file():
            corrupt += [self.state.name] if is_corrupt(self.state) else []
        elif not corrupt:  # what lies where in the shards is in one of those
            from posttrain.runs.shards import corrupt_files

            corrupt += corrupt_files(self.state)
        return ", ".join(f"{Path(name).name} has other contents than were written" for name in corrupt)

    @property
    def state(self) -> Path:
        """What Lightning saved: a file, or a folder of shards."""
        return self.path / STATE


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first. Folders whose writing was cut short do not count."""
    found = []
    for path in sorted(folder.glob("step-*")):
        named = NAME.search(path.name)
        if named and (path / META).is_file():
            meta = _meta(path)
            found.append(Checkpoint(path, int(named[1]), meta.get("score"), tuple(meta.get("ends", ()))))
    return found


def _meta(path: Path) -> dict[str, Any]:
    """A checkpoint's record; empty if it cannot be read, which `Checkpoint.damage` then tells."""
    try:
        read = json.loads((path / META).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if any."""
    found = checkpoints(folder)
    return found[-1] if found else None


def partial_path(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it is complete."""
    return folder / f".partial-step-{step:08d}"


def clear_partial(folder: Path) -> None:
    """Remove what a killed process left half-written. Only for the process that leads the run."""
    for path in folder.glob(".partial-step-*"):
        shutil.rmtree(path)


def complete(folder: Path, step: int, score: float | None, ends: Sequence[int] = ()) -> Checkpoint:
    """Turn a fully written partial folder into a checkpoint: durable contents, then one rename."""
    partial, final = partial_path(folder, step), folder / f"step-{step:08d}"
    with writing(final):
        for file in (path for path in partial.rglob("*") if path.is_file()):
            sync_path(file)
        done = Checkpoint(final, step, None if score is None or math.isnan(score) else score, tuple(ends))
        sizes = _sizes(partial)
        crc32 = {name: _crc32(partial / name) for name in sizes if not zipfile.is_zipfile(partial / name)}
        write_atomic(
            partial / META, json.dumps({"step": done.step, "score": done.score, "ends": done.ends, "bytes": sizes, "crc32": crc32})
        )
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync_path(folder)
    return done


def is_corrupt(file: Path | BinaryIO) -> bool:
    """Whether an archive has other contents than were written, by its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except zipfile.BadZipFile:
        return True


def _crc32(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file() and file.name != META
    }


def kept(found: list[Checkpoint], *, last: int, best: int) -> set[Path]:
    """Which checkpoints stay: the newest `last` and the `best` with the lowest scores (the newest of equals). The newest always stays."""
    newest = found[-max(last, 1) :]
    scored = sorted((c for c in found if c.score is not None), key=lambda c: (c.score, -c.step))
    return {c.path for c in [*newest, *scored[:best]]}


def prune(folder: Path, *, last: int, best: int) -> None:
    """Remove the checkpoints that `kept` does not name."""
    found = checkpoints(folder)
    staying = kept(found, last=last, best=best)
    for checkpoint in found:
        if checkpoint.path not in staying:
            shutil.rmtree(checkpoint.path)


def best_score(metrics: Mapping[str, float], monitor: str) -> float | None:
    """The monitored value among a step's metrics; accuracies and rewards are monitored as `-name` so that smaller is better."""
    sign, name = (-1.0, monitor[1:]) if monitor.startswith("-") else (1.0, monitor)
    return sign * metrics[name] if name in metrics else None
