"""What a run reads: its tokenizer and its tokenised data. Done before any process group exists and before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.runs import source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.prepare import Prepared


def load_inputs(
    config: Mapping[str, Any], *, kind: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """The tokenizer and the prepared data of a configuration. Raises UserError for what the user can mend.

    kind: what the data are prepared as; None: as the method trains on them. Of another kind they are as long as prompt and answer may be.
    tokenizer: None for the one that the configuration names.
    """
    from posttrain.data.prepare import prepare
    from posttrain.models.tokenizers import load_tokenizer

    tokenizer = tokenizer or load_tokenizer(config["model"])
    own = source.class_constant(config["method"]["_target_"], "data_kind")
    assert isinstance(own, str)
    longest = config["max_length"] + (config["rollout"]["max_new_tokens"] if kind not in (None, own) and config["rollout"] else 0)
    prepared = prepare(config["data"], tokenizer, kind=kind or own, max_length=longest, limit=config["limit"])
    return tokenizer, prepared
