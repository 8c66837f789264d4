"""Artifacts: what a stage hands on. A plain Hugging Face folder plus `artifact.json`, written whole or not at all.

Three forms:
* `full`: the weights of the whole model.
* `adapter`: the adapter alone, where its base can be found again by a hub id or a local folder, unchanged.
* `merged`: where the base exists nowhere else (random weights, a merged adapter, a grown embedding), and for adapters that plain
  transformers loads without error but wrong (DoRA's magnitudes, modules trained in full), the adapter is merged into full weights,
  so that the folder loads by itself; the adapter lies beside them in `adapter/`.

A policy that was trained with a critic has the critic's head in `value_head/` (see `values`); what loads the model does not look there.

An adapter trained on a quantised base says so in `artifact.json`; `loading.build_model` then rounds the base the same way before it
adds the adapter. Plain transformers adds it to the unrounded base: close, not equal.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.artifact_weights import State, write_full
from posttrain.models.integrity import FORMAT, RECORD_FILE, checksums, verify, weight_files
from posttrain.models.vocabulary import write_special_ids

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class ArtifactRecord:
    """Where an artifact comes from.

    method: the method that made it. parent: hub id or folder of the model it started from, None for random weights.
    data: digest by source. config_hash: of the resolved config (`integrity.config_hash`). metrics: final values.
    versions: of the software. tags: study, arm, stage, ... where they apply. parents: what the artifacts it was made with are
    (`lineage.parents_of`).
    """

    method: str
    parent: str | None
    data: Mapping[str, str]
    config_hash: str
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, Any] = field(default_factory=dict)


def save_artifact(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: ArtifactRecord,
    state: State | None = None,
    beside: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Write the artifact of `model` to `folder` and return the folder.

    Everything is written to a temporary folder beside it, read back and compared with the live weights, and moved into place
    only then; an artifact that was there stays until that moment. The model's configs get the tokenizer's special ids, so that
    plain generation stops at the end of a turn. `state`: gathered weights of a sharded model.
    `beside`: writes what else goes along, in a folder of its own below the one it is given, and returns what the record says of it.
    Raises CorruptArtifactError when what was read back differs, OSError when the disk is full or not writable.
    """
    write_special_ids(_transformers_model(model), tokenizer)

    def write(draft: Path) -> dict[str, Any]:
        return {**_write_weights(model, draft, state), **(beside(draft) if beside is not None else {})}

    return write_artifact(write, tokenizer, folder, record=record)


def write_artifact(
    write: Callable[[Path], Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, folder: Path, *, record: ArtifactRecord
) -> Path:
    """Fill a temporary folder beside `folder` and move it into place only when it is whole.

    write: writes and checks the weights, and returns what the record says of their form.
    """
    folder = Path(folder).absolute()
    draft = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        about = write(draft)
        tokenizer.save_pretrained(draft)
        _write_record(draft, about, record)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _move_into_place(draft, folder)
    return folder


def _transformers_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner


def load_artifact(folder: Path) -> dict[str, Any]:
    """The keys of a model config that loads this artifact, after checking its files: ``{name: hf, path: ..., weights: pretrained}``."""
    folder = Path(os.path.expanduser(folder)).absolute()
    verify(folder)
    return {"name": "hf", "path": str(folder), "weights": "pretrained", "revision": None, "tokenizer": None}


def _write_weights(model: PreTrainedModel | PeftModel, draft: Path, state: State | None) -> dict[str, Any]:
    if isinstance(model, PreTrainedModel):
        write_full(model, draft, state)
        return {"form": "full", "base": None, "quantised": None}
    from posttrain.models.adapter_artifact import write_adapted  # peft takes seconds to import

    return write_adapted(model, draft, state)


def _write_record(draft: Path, about: Mapping[str, Any], record: ArtifactRecord) -> None:
    content = {"format": FORMAT, **about, **asdict(record), "files": checksums(draft, weight_files(draft))}
    (draft / RECORD_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move_into_place(draft: Path, folder: Path) -> None:
    """Two renames: the old artifact steps aside only when the new one is complete."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)
