"""Writing a model's weights and proving that what lies on disk is what the model holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

State = Mapping[str, torch.Tensor]


class CorruptArtifactError(RuntimeError):
    """What lies on disk after writing is not what the model holds."""


def write_full(model: PreTrainedModel, folder: Path, state: State | None) -> None:
    """Write a model's weights, config and generation config, and compare what was written."""
    weights = model.state_dict() if state is None else state
    model.save_pretrained(folder, state_dict=dict(weights))
    compare(folder, revert_weight_conversion(model, dict(weights)))


def compare(folder: Path, expected: State) -> None:
    """Read every tensor back: each must equal the live one bit for bit, and only tied weights may be left out."""
    written: set[int] = set()
    for file in sorted(folder.glob("*.safetensors")):
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
