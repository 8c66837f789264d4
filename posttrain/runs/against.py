"""The model that a judge compares with: where its files lie, and which one it is, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from posttrain.models.integrity import checksums, has_record, read_record, weight_files

HUB = "hf://"
DIGITS = 16


def opponent_folder(against: str) -> Path:
    """The folder of a run's artifact or of a model; hf://NAME[@REVISION]: of the hub's files in its cache.

    Raises ConfigError that says what to do where there is none.
    """
    from posttrain.models.hub import snapshot_of
    from posttrain.runs.arguments import find_artifact

    if not against.startswith(HUB):
        return find_artifact(against, key="against")
    name, _, revision = against.removeprefix(HUB).partition("@")
    return snapshot_of(name, revision or None, key="against")


def opponent(against: str, folder: Path) -> dict[str, str]:
    """What results say of it: by which name it was found, and its weights' digest, by which it is known to be the same elsewhere."""
    return {"model": against if against.startswith(HUB) else str(folder.resolve()), "weights": weights_of(folder)}


def weights_of(folder: Path) -> str:
    """A digest of a model's weights, an adapter's with its base's; an artifact's are known by its record."""
    from posttrain.models.hub import is_local
    from posttrain.models.loading import ADAPTER_CONFIG, base_of_adapter

    found: dict[str, object] = {name: digest for name, digest in _files(folder).items() if "/" not in name}
    if (folder / ADAPTER_CONFIG).is_file():
        base = base_of_adapter({}, folder)
        path = str(base["path"])
        found["base"] = weights_of(Path(path).expanduser()) if is_local(path) else [path, base.get("revision")]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _files(folder: Path) -> Mapping[str, str]:
    if has_record(folder):
        files: Mapping[str, str] = read_record(folder)["files"]
        return files
    return checksums(folder, weight_files(folder) or sorted(folder.glob("*.bin")))
