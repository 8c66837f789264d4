"""Artifacts: what a stage hands on. A plain Hugging Face folder plus `artifact.json`, written whole or not at all.

Three forms:
* `full`: the weights of the whole model.
* `adapter`: the adapter alone, where its base can be found again by a hub id or a local folder, unchanged.
* `merged`: where the base exists nowhere else (random weights, a merged adapter, a grown embedding), and for adapters that plain
  transformers loads without error but wrong (DoRA's magnitudes, modules trained in full), the adapter is merged into full weights,
  so that the folder loads by itself; the adapter lies beside them in `adapter/`.

An adapter trained on a quantised base says so in `artifact.json`; `loading.build_model` then rounds the base the same way before it
adds the adapter. Plain transformers adds it to the unrounded base: close, not equal.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from posttrain.models.integrity import FORMAT, RECORD_FILE, checksums, verify, weight_files
from posttrain.models.peft import adapter_config, base_model, merge
from posttrain.models.quantisation import quantisation_of

State = Mapping[str, torch.Tensor]
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class ArtifactRecord:
    """Where an artifact comes from.

    method: the method that made it. parent: hub id or folder of the model it started from, None for random weights.
    data: digest by source. config_hash: of the resolved config (`integrity.config_hash`). metrics: final values.
    versions: of the software. tags: study, arm, stage, ... where they apply.
    """

    method: str
    parent: str | None
    data: Mapping[str, str]
    config_hash: str
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)


class CorruptArtifactError(RuntimeError):
    """What lies on disk after writing is not what the model holds."""


def save_artifact(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: ArtifactRecord,
    state: State | None = None,
) -> Path:
    """Write the artifact of `model` to `folder` and return the folder.

    Everything is written to a temporary folder beside it, read back and compared with the live weights, and moved into place
    only then; an artifact that was there stays until that moment. `state`: gathered weights of a sharded model.
    Raises CorruptArtifactError when what was read back differs, OSError when the disk is full or not writable.
    """
    folder = Path(folder).absolute()
    draft = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        form = _write_weights(model, draft, state)
        tokenizer.save_pretrained(draft)
        _write_record(draft, form, record, model)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _move_into_place(draft, folder)
    return folder


def load_artifact(folder: Path) -> dict[str, Any]:
    """The keys of a model config that loads this artifact, after checking its files: ``{name: hf, path: ..., weights: pretrained}``."""
    folder = Path(folder).expanduser().absolute()
    verify(folder)
    return {"name": "hf", "path": str(folder), "weights": "pretrained", "revision": None, "tokenizer": None}


def base_source(model: PreTrainedModel) -> str | None:
    """Hub id or folder that holds the model's base weights as they are, or None: `loading` empties the name when they were changed."""
    return model.config.name_or_path or None


def _write_weights(model: PreTrainedModel | PeftModel, draft: Path, state: State | None) -> str:
    if not isinstance(model, PeftModel):
        _write_full(model, draft, state)
        return "full"
    if base_source(base_model(model)) is not None and _plain_transformers_loads(model):
        _write_adapter(model, draft, state)
        base_model(model).generation_config.save_pretrained(draft)
        return "adapter"
    if state is not None:
        raise ValueError("adapters whose base lies nowhere must be gathered into an unsharded model before saving")
    _write_adapter(model, draft / ADAPTER_FOLDER, None)
    _write_full(merge(copy.deepcopy(model)), draft, None)
    return "merged"


def _plain_transformers_loads(model: PeftModel) -> bool:
    config = adapter_config(model)
    return not config.use_dora and not config.modules_to_save


def _write_full(model: PreTrainedModel, draft: Path, state: State | None) -> None:
    weights = model.state_dict() if state is None else state
    model.save_pretrained(draft, state_dict=dict(weights))
    _compare(draft, revert_weight_conversion(model, dict(weights)))


def _write_adapter(model: PeftModel, draft: Path, state: State | None) -> None:
    weights = None if state is None else dict(state)
    model.save_pretrained(str(draft), save_embedding_layers=False, state_dict=weights)
    (draft / "README.md").unlink()  # peft's unfilled template of a model card
    _compare(draft, get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False))


def _compare(draft: Path, expected: State) -> None:
    """Read every tensor back: each must equal the live one bit for bit, and only tied weights may be left out."""
    written: set[int] = set()
    for file in sorted(draft.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name not in expected or not _same(tensors.get_tensor(name), expected[name]):
                    raise CorruptArtifactError(f"{file.name}: {name} read back differs from the model's")
                written.add(expected[name].data_ptr())
    lost = [name for name, tensor in expected.items() if tensor.data_ptr() not in written]
    if lost:
        raise CorruptArtifactError(f"weights that were not written: {', '.join(lost[:5])}")


def _same(stored: torch.Tensor, live: torch.Tensor) -> bool:
    live = live.detach().cpu()
    return stored.dtype == live.dtype and stored.shape == live.shape and bool(torch.equal(stored, live))


def _write_record(draft: Path, form: str, record: ArtifactRecord, model: PreTrainedModel | PeftModel) -> None:
    content = {
        "format": FORMAT,
        "form": form,
        "base": base_source(base_model(model)) if isinstance(model, PeftModel) else None,
        "quantised": quantisation_of(base_model(model)) if isinstance(model, PeftModel) else None,
        **asdict(record),
        "files": checksums(draft, weight_files(draft)),
    }
    (draft / RECORD_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move_into_place(draft: Path, folder: Path) -> None:
    """Two renames: the old artifact steps aside only when the new one is complete."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)
