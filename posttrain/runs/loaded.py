"""A model folder opened for use: weights, tokenizer and device, for `eval`, `export` and `chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from posttrain.errors import ConfigError, Problem
from posttrain.models.artifact import load_artifact
from posttrain.models.hub import hub_errors, source_options
from posttrain.models.integrity import has_record
from posttrain.models.loading import ADAPTER_CONFIG, adapted_model, base_of_adapter, build_model
from posttrain.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel


def load(folder: Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of an artifact or of a plain Hugging Face folder, an adapter merged into its base, in evaluation mode; and its tokenizer.

    device: cpu, cuda, cuda:1 ...; None = cuda if there is one. dtype: None = the type the weights are stored in.
    Raises ConfigError when the folder cannot be read, its files are damaged, or the device is not there.
    """
    place = pick_device(device)
    config = model_keys(folder)
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(config)
    model = build_model(config, dtype=dtype or stored_dtype(folder))
    return model.to(place).eval(), tokenizer  # type: ignore[arg-type]


def load_beside(folder: Path) -> PeftModel:
    """The model of a folder with an adapter on the CPU, the adapter not merged, weights in the type that they are stored in."""
    return adapted_model(model_keys(folder), dtype=stored_dtype(folder))


def model_keys(folder: Path) -> dict[str, Any]:
    """The keys of a model config that loads `folder`; the files of an artifact are checked against their checksums."""
    if has_record(folder):
        return load_artifact(folder)
    return {"name": "hf", "path": str(folder), "weights": "pretrained", "revision": None, "tokenizer": None}


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; the first GPU, else the processor, for None. Raises ConfigError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(Problem(f"device={name}", "is no device", "cpu, cuda or cuda:0")) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(Problem(f"device={name}", f"this machine has {torch.cuda.device_count()} CUDA devices", "device=cpu"))
    return device


def stored_dtype(folder: Path) -> torch.dtype:
    """The type a folder's weights are stored in; an adapter's is that of its base. float32 where none is stated."""
    source = folder
    if (folder / ADAPTER_CONFIG).is_file():
        source = Path(base_of_adapter({}, folder)["path"])
    with hub_errors(str(source), key="run"):
        config = AutoConfig.from_pretrained(str(source), **source_options(str(source), None, key="run"))
    return config.dtype or torch.float32
