"""Make model and tokenizer agree: room for every token id, and the ids that start, pad and end text."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.loading import DEFAULT_SEED, forget_source, seeded
from posttrain.models.tokenizers import end_token_ids

log = logging.getLogger(__name__)


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, random_weights: bool, seed: int | None = None) -> None:
    """Give `model` a row for every id of `tokenizer`, and write the special ids into its config and generation config.

    Rows are added for the tokens a tokenizer has beyond a pretrained model's embedding only where they are added tokens; a
    vocabulary that is larger in itself belongs to another model: ConfigError. New rows of a pretrained model start at the
    mean of the old ones; those of a random model are drawn from `seed`. Generation stops at EOS and at the end of a turn.
    """
    missing = _ids_without_row(model, tokenizer)
    if missing and not random_weights:
        _refuse_foreign_vocabulary(model, tokenizer, missing)
    if missing:
        _grow(model, max(missing) + 1, random_weights=random_weights, seed=DEFAULT_SEED if seed is None else seed)
    write_special_ids(model, tokenizer)


def _ids_without_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    rows = _rows(model)
    return sorted(index for index in tokenizer.get_vocab().values() if index >= rows)


def _refuse_foreign_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: list[int]) -> None:
    added = set(tokenizer.get_added_vocab().values())
    foreign = [index for index in missing if index not in added]
    if foreign:
        message = f"the tokenizer has {len(foreign)} ids beyond the model's {_rows(model)} embedding rows: it belongs to another model"
        raise ConfigError(Problem("model.tokenizer", message, "set model.tokenizer=null to use the model's own"))


def _grow(model: PreTrainedModel, rows: int, *, random_weights: bool, seed: int) -> None:
    old = _rows(model)
    with seeded(seed):
        model.resize_token_embeddings(rows, pad_to_multiple_of=8 if random_weights else None, mean_resizing=False)
    forget_source(model)
    if not random_weights:
        _mean_rows(model, old)
    log.warning("The embedding grew from %d to %d rows to hold every id of the tokenizer.", old, _rows(model))


@torch.no_grad()
def _mean_rows(model: PreTrainedModel, old: int) -> None:
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = None if end is None else end.weight
        if isinstance(weight, torch.Tensor):
            weight[old:] = weight[:old].float().mean(dim=0).to(weight.dtype)


def _rows(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def write_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's ids into the configs; the end ids a model came with stay, ahead of those the tokenizer adds."""
    ends = list(dict.fromkeys([*_as_list(model.generation_config.eos_token_id), *end_token_ids(tokenizer)]))
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = ends


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
