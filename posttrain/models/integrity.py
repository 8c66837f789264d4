"""What proves that a model folder is whole: its `artifact.json` with the checksum of every weight file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem

RECORD_FILE = "artifact.json"
REWARD_FILE = "reward.json"  # of artifacts that score instead of write
FORMAT = 1
CHUNK = 1 << 22
SAMPLE, SAMPLES = 1 << 16, 16  # bytes of a stretch, and how many of a file


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder and of the adapter beside it, in order."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Checksum by path relative to `folder`."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def weights_digest(folder: Path) -> str:
    """Of a model folder's weights, quickly: an artifact's checksums, else each weight file's name, size and SAMPLES stretches of it.

    A training that moves all weights gives another digest; a change of few tensors or bytes may not.
    """
    digest = hashlib.sha256()
    if has_record(folder):
        digest.update(json.dumps(read_record(folder)["files"], sort_keys=True).encode())
        return digest.hexdigest()
    whole = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")] or [*folder.glob("*.safetensors")]
    for file in sorted(file for file in [*whole, *folder.glob("adapter_model.*")] if file.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}".encode())
        with file.open("rb") as stream:
            for part in range(SAMPLES):
                stream.seek(part * max(size - SAMPLE, 0) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config, the same for the same keys and values in any order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def has_record(folder: Path) -> bool:
    """Whether the folder is an artifact of ours."""
    return (folder / RECORD_FILE).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `artifact.json`. Raises ConfigError when it is absent, broken, or of a newer format."""
    path = folder / RECORD_FILE
    if not path.is_file():
        raise ConfigError(Problem("model.path", f"{folder} is not an artifact: it has no {RECORD_FILE}"))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(Problem("model.path", f"{path} is not readable JSON: {error}")) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(Problem("model.path", f"{path} is not of format {FORMAT}", "use the version of posttrain that wrote it"))
    return record


def verify(folder: Path) -> dict[str, Any]:
    """Check every weight file of an artifact against its checksum and return the record. Raises ConfigError naming each bad file."""
    record = read_record(folder)
    problems = [problem for name, digest in record["files"].items() if (problem := _check(folder, name, digest)) is not None]
    if problems:
        raise ConfigError(problems)
    return record


def _check(folder: Path, name: str, digest: str) -> Problem | None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return Problem("model.path", f"{RECORD_FILE} names a file outside its folder: {name}")
    if not path.is_file():
        return Problem("model.path", f"{path} is missing", "the artifact is incomplete")
    if sha256_of(path) != digest:
        return Problem("model.path", f"{path} does not match its checksum", "the file is damaged or was changed: copy the artifact again")
    return None
