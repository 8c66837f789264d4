"""Model and tokenizer agree on ids."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from posttrain.errors import ConfigError
from posttrain.models.loading import build_model
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.models.vocabulary import fit_to_tokenizer


def test_special_ids_and_generation_ends(conf) -> None:
    model, tokenizer = build_model(conf("nano"), dtype=torch.float32), byte_tokenizer()
    before = model.get_input_embeddings().weight.clone()
    fit_to_tokenizer(model, tokenizer, random_weights=True)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id) == (256, 259, None)
    assert model.generation_config.eos_token_id == [259, 257]
    assert model.generation_config.pad_token_id == 256


def test_pretrained_models_keep_their_own_ends(conf) -> None:
    model = build_model(conf("nano"), dtype=torch.float32)
    model.generation_config.eos_token_id = [1, 106]
    fit_to_tokenizer(model, byte_tokenizer(), random_weights=False)
    assert model.generation_config.eos_token_id == [1, 106, 259, 257]


def test_added_tokens_get_the_mean_row(conf, caplog) -> None:
    model, tokenizer = build_model(conf("nano"), dtype=torch.float32), byte_tokenizer()
    old = model.get_input_embeddings().weight.detach().clone()
    tokenizer.add_tokens(["<new>", "<newer>"])
    fit_to_tokenizer(model, tokenizer, random_weights=False)
    new = model.get_input_embeddings().weight
    assert new.shape[0] == 266
    assert torch.equal(new[:264], old)
    torch.testing.assert_close(new[264:], old.mean(dim=0).expand(2, -1))
    assert model.get_output_embeddings().weight is new
    assert model.config.vocab_size == 266
    assert "grew from 264 to 266" in caplog.text


def test_random_rows_are_drawn_from_the_seed(conf) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = []
    for state in (1, 2):
        model = build_model(conf("nano"), dtype=torch.float32)
        torch.manual_seed(state)
        fit_to_tokenizer(model, tokenizer, random_weights=True, seed=9)
        rows.append(model.get_input_embeddings().weight[264:].detach())
    assert rows[0].shape[0] == 8
    assert torch.equal(rows[0], rows[1])


def test_a_tokenizer_of_another_model_is_refused(conf) -> None:
    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(300)}, unk_token="w0"))
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2")
    model = build_model(conf("nano"), dtype=torch.float32)
    with pytest.raises(ConfigError, match="36 ids beyond the model's 264 embedding rows"):
        fit_to_tokenizer(model, foreign, random_weights=False)
    fit_to_tokenizer(model, foreign, random_weights=True)
    assert model.get_input_embeddings().weight.shape[0] == 304
