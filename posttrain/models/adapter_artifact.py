"""Writing a model with adapters: the adapter alone where its base can be found again, else merged with the adapter beside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from posttrain.models.artifact_weights import State, compare, write_full
from posttrain.models.peft import adapter_config, base_model, merge
from posttrain.models.quantisation import quantisation_of

ADAPTER_FOLDER = "adapter"


def write_adapted(model: PeftModel, folder: Path, state: State | None) -> dict[str, Any]:
    """Write the weights of a model with adapters; return the record's `form`, `base` and `quantised`.

    Raises ValueError for gathered weights (`state`) where the adapters have to be merged: that needs the unsharded model.
    """
    base = base_model(model)
    about = {"base": base_source(base), "quantised": quantisation_of(base)}
    if about["base"] is not None and _plain_transformers_loads(model):
        write_adapter(model, folder, state)
        base.generation_config.save_pretrained(folder)
        return {"form": "adapter", **about}
    if state is not None:
        raise ValueError("adapters that are saved merged must be gathered into an unsharded model first")
    write_adapter(model, folder / ADAPTER_FOLDER, None)
    write_full(merge(copy.deepcopy(model)), folder, None)
    return {"form": "merged", **about}


def base_source(model: PreTrainedModel) -> str | None:
    """Hub id or folder that holds the model's base weights as they are, or None: `loading` empties the name when they were changed."""
    return model.config.name_or_path or None


def _plain_transformers_loads(model: PeftModel) -> bool:
    config = adapter_config(model)
    return not config.use_dora and not config.modules_to_save


def write_adapter(model: PeftModel, folder: Path, state: State | None) -> None:
    """Write the adapter alone, and compare what was written."""
    weights = None if state is None else dict(state)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink()  # peft's unfilled template of a model card
    compare(folder, get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False))
