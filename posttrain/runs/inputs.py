"""What a run reads: its tokenizer and its tokenised data. Done before any process group exists and before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.runs import source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.prepare import Prepared


def load_inputs(config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """The tokenizer and the prepared data of a configuration. Raises UserError for what the user can mend."""
    from posttrain.data.prepare import prepare
    from posttrain.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(config["model"])
    kind = source.class_constant(config["method"]["_target_"], "data_kind")
    assert isinstance(kind, str)
    prepared = prepare(
        config["data"], tokenizer, kind=kind, max_length=config["max_length"], seed=config["seed"], limit=config["limit"]
    )  # fmt: skip
    return tokenizer, prepared
