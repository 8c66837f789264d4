"""Configs from plain dicts: unknown names are refused with the nearest valid one."""

from __future__ import annotations

import pytest

from posttrain.errors import ConfigError
from posttrain.models.architectures import architecture_config, model_config

NANO = {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}


def test_fields_reach_the_config() -> None:
    config = architecture_config({**NANO, "rope_theta": 5.0})
    assert (config.hidden_size, config.vocab_size, config.model_type) == (32, 300, "qwen3")
    assert config.rope_parameters["rope_theta"] == 5.0


def test_every_unknown_field_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError) as caught:
        architecture_config({**NANO, "hiden_size": 3, "num_layrs": 2})
    first, second = map(str, caught.value.problems)
    assert first == "model.architecture.hiden_size: Qwen3Config has no such field (did you mean hidden_size?)"
    assert second.startswith("model.architecture.num_layrs")


def test_what_another_key_decides_is_refused() -> None:
    with pytest.raises(ConfigError, match="use precision"):
        architecture_config({**NANO, "dtype": "float16"})


@pytest.mark.parametrize(("model_type", "hint"), [("qwen33", "did you mean qwen3"), ("bert_", ""), (None, "is missing")])
def test_unknown_model_type(model_type, hint) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\.model_type") as caught:
        architecture_config({**NANO, "model_type": model_type})
    assert hint in str(caught.value)


@pytest.mark.parametrize("bad", [{"hidden_size": "wide"}, {"model_type": "llama", "hidden_size": 33}])
def test_values_the_config_class_refuses(bad) -> None:
    with pytest.raises(ConfigError, match="refuses it"):
        architecture_config({**NANO, **bad})


def test_random_weights_need_an_architecture_or_a_folder(tmp_path) -> None:
    with pytest.raises(ConfigError, match="need an architecture"):
        model_config({"weights": "random", "path": "owner/name", "architecture": None})
    architecture_config(NANO).save_pretrained(tmp_path)
    assert model_config({"weights": "random", "path": str(tmp_path), "architecture": None}).hidden_size == 32


def test_pretrained_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        model_config({"weights": "pretrained", "path": None})
