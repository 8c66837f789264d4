"""Adapters as they lie in a folder: loaded on their base, and merged into its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem

Wrapper = (BaseTunerLayer, ModulesToSaveWrapper)


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the adapter in `folder` on it, not merged. Raises ConfigError for an adapter that does not fit the base."""
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        message = f"the adapter in {folder} is a learnt prompt ({config.peft_type.value}), which no weights can take in"
        raise ConfigError(Problem("model.path", message, "an adapter of weights, such as LoRA"))
    config.inference_mode = True
    adapted = PeftModel(base, config)
    with _size_errors(folder):
        _require_fit(folder, adapted.load_adapter(str(folder), "default", torch_device="cpu"))
    return adapted


@contextmanager
def _size_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        first = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        message = f"the adapter in {folder} was trained on a base of other sizes: {first}"
        hint = "save the base as it was adapted, with its resized embedding, and name it in base_model_name_or_path of adapter_config.json"
        raise ConfigError(Problem("model.path", message, hint)) from error


def _require_fit(folder: Path, report: Any) -> None:
    """peft leaves out what has no place in the base, and starts anew what the folder lacks; here both are errors."""
    absent = [f"lacks {name}" for name in report.missing_keys]
    unknown = [f"has {name}, for which the base has no place" for name in report.unexpected_keys]
    if absent or unknown:
        hint = "name the base it was trained on in base_model_name_or_path of adapter_config.json, or copy the adapter again"
        raise ConfigError([Problem("model.path", f"the adapter in {folder} {what}", hint) for what in [*absent[:3], *unknown[:3]]])


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters in its weights; `model` is used up."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    untie_adapted(base)
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def untie_adapted(model: PreTrainedModel) -> None:
    """Give the output head a weight of its own where it shares the embedding's and only one of the two is adapted, or each by itself.

    Merged into the shared weight, what was learned for one would change the other.
    """
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if not model.config.tie_word_embeddings or None in ends or not any(isinstance(end, Wrapper) for end in ends):
        return
    first, last = (_plain(end) for end in ends)
    if first.weight is last.weight:
        assert isinstance(last.weight, nn.Parameter)
        last.weight = nn.Parameter(last.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _plain(module: nn.Module) -> nn.Module:
    """The layer under peft's wrappers."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    while isinstance(module, BaseTunerLayer):
        module = module.base_layer  # type: ignore[assignment]
    return module
