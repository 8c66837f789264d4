"""Whether sequences fit the model's positions: read from its configuration, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from posttrain.data.prepare import Prepared

Config = Mapping[str, Any]
Length = tuple[str, int]  # the key that bounds it, tokens


def check_context(config: Config, prepared: Prepared) -> None:
    """Raises ConfigError where a prompt and the longest answer that is asked for may be longer than the model's positions, and where any
    sequence is so long that the model would rotate those beside it otherwise."""
    from posttrain.models.architectures import model_config
    from posttrain.models.loading import base_where_adapted
    from posttrain.models.positions import frequency_bound

    known = model_config(base_where_adapted(config["model"]))
    # Not every family has a bound: some count positions without one.
    most, constant = known.get_text_config().to_dict().get("max_position_embeddings"), frequency_bound(known)
    answered = list(_answered(config, prepared))
    if most is not None and (problems := [_beyond(key, tokens, most) for key, tokens in answered if tokens > most]):
        raise ConfigError(problems)
    lengths = answered if config["rollout"] is not None else [_trained(config, prepared), *answered]
    if constant is not None and (
        problems := [_unsteady(key, tokens, *constant, known.model_type) for key, tokens in lengths if tokens > constant[0]]
    ):
        raise ConfigError(problems)


def _trained(config: Config, prepared: Prepared) -> Length:
    """The longest sequence that is trained on or measured; a tree of several may be longer than any."""
    return "max_length", min(config["max_length"], max(int(some.lengths.max()) for some in _sets(prepared)))


def _answered(config: Config, prepared: Prepared) -> Iterator[Length]:
    """The longest prompt with an answer as long as it may be, where there are answers."""
    exact_match = config["evaluation"]["exact_match"]
    if config["rollout"] is not None:
        yield "rollout.max_new_tokens", max(int(some.lengths.max()) for some in _sets(prepared)) + config["rollout"]["max_new_tokens"]
    elif exact_match is not None and exact_match["max_new_tokens"] is not None and prepared.val_checkable:
        prompt = max(len(example.prompt_ids) for example in prepared.val_checkable)
        yield "evaluation.exact_match.max_new_tokens", prompt + exact_match["max_new_tokens"]


def _sets(prepared: Prepared) -> list[Any]:
    return [prepared.train, *([] if prepared.val is None else [prepared.val])]


def _beyond(key: str, tokens: int, most: int) -> Problem:
    return Problem(key, f"a prompt and its answer may have {tokens} tokens, the model has positions for {most}", "lower it, or max_length")


def _unsteady(key: str, tokens: int, most: int, kind: str, family: str) -> Problem:
    message = (
        f"sequences may have {tokens} tokens; beyond {most} this {family} ({kind}) takes its rotary frequencies from the longest sequence "
        "of a batch, and results would depend on what is computed together"
    )
    return Problem(key, message, f"max_length={most}" if key == "max_length" else "lower it, or max_length")
