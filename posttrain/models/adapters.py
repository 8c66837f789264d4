"""Adapters as they lie in a folder: loaded on their base, and merged into its weights."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

Wrapper = (BaseTunerLayer, ModulesToSaveWrapper)


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the adapter in `folder` on it, not merged."""
    return PeftModel.from_pretrained(base, str(folder))


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
