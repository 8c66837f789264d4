"""Whether prompts and their answers fit the model's positions: read from its configuration, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from posttrain.data.prepare import Prepared

Config = Mapping[str, Any]


def check_context(config: Config, prepared: Prepared) -> None:
    """Raises ConfigError where a prompt and the longest answer that is asked for may be longer than the model's positions."""
    from posttrain.models.architectures import model_config
    from posttrain.models.loading import base_where_adapted

    # Not every family has a bound: some count positions without one.
    most = model_config(base_where_adapted(config["model"])).get_text_config().to_dict().get("max_position_embeddings")
    problems = [] if most is None else list(_problems(config, prepared, most))
    if problems:
        raise ConfigError(problems)


def _problems(config: Config, prepared: Prepared, most: int) -> Iterator[Problem]:
    exact_match = config["evaluation"]["exact_match"]
    if config["rollout"] is not None:
        sets = [prepared.train, *([] if prepared.val is None else [prepared.val])]
        prompt, key, answer = max(int(some.lengths.max()) for some in sets), "rollout.max_new_tokens", config["rollout"]["max_new_tokens"]
    elif exact_match is not None and exact_match["max_new_tokens"] is not None and prepared.val_checkable:
        prompt = max(len(example.prompt_ids) for example in prepared.val_checkable)
        key, answer = "evaluation.exact_match.max_new_tokens", exact_match["max_new_tokens"]
    else:
        return
    if prompt + answer > most:
        message = f"a prompt and its answer may have {prompt + answer} tokens, the model has positions for {most}"
        yield Problem(key, message, "lower it, or max_length")
