"""Tokenizers: the built-in byte-level one, and the rule that picks and completes a model's tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.errors import ConfigError, Problem
from posttrain.models.hub import hub_errors, is_local, local_or_id, source_options

log = logging.getLogger(__name__)

PAD, END_OF_TEXT, TURN_START, TURN_END = "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# One token each, but not special: they stay visible when special tokens are skipped, as Qwen3 has it.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
# In order of preference when a tokenizer has no padding token, or pads with its end of sequence.
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", "<|reserved_special_token_0|>", "<unk>")
# Tokens that end an assistant turn in the templates of the known families.
TURN_ENDS = (
    *(TURN_END, "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|return|>", "<|call|>", "<turn|>", "<|tool_response>"),
    *("<|user|>", "<|observation|>", END_OF_TEXT),
)
# In a template that has the second, the first ends a part of a turn: gpt-oss's thoughts, before its answer.
PART_ENDS = {"<|end|>": "<|return|>"}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer: ids 0..255 are bytes, then the special tokens; a ChatML template with generation tags.

    Any unicode text round-trips exactly. Padding, end of turn and end of text are three different tokens; there is no BOS.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_backend(),
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[END_OF_TEXT, TURN_START],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = chatml_template()
    return tokenizer


@cache
def chatml_template() -> str:
    """The ChatML-like template of the built-in tokenizer: tools, tool calls, reasoning content; every earlier turn kept as it was."""
    return Path(__file__).with_name("chatml.jinja").read_text(encoding="utf-8").strip()


def _byte_backend() -> Tokenizer:
    alphabet = _byte_characters()
    backend = Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, END_OF_TEXT, TURN_START, TURN_END)])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    return backend


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level tokenizer (GPT-2's table), in order of the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def uses_byte_tokenizer(model: Mapping[str, Any]) -> bool:
    """Whether the model's own tokenizer is out of reach by design: random weights, and no folder that could hold one."""
    return model.get("tokenizer") is None and model["weights"] == "random" and not is_local(model.get("path"))


def load_tokenizer(model: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model config: `tokenizer` if set; the byte tokenizer for random weights without a local folder; else `path`'s.

    A `chat_template` (a file, or the template itself) replaces the tokenizer's own. A padding token that is missing or
    equal to EOS is replaced, with a warning. Raises ConfigError when the source cannot be read.
    """
    tokenizer = _base_tokenizer(model)
    if model.get("chat_template"):
        tokenizer.chat_template = read_template(model["chat_template"])
    ensure_padding(tokenizer)
    return tokenizer


def _base_tokenizer(model: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    if uses_byte_tokenizer(model):
        level = logging.INFO if model.get("path") is None else logging.WARNING
        log.log(
            level, "Random weights without a local model.path: the built-in byte-level tokenizer is used (model.tokenizer=... overrules)."
        )
        return byte_tokenizer()
    key = "model.tokenizer" if model.get("tokenizer") else "model.path"
    source = model.get("tokenizer") or model.get("path")
    if source is None:
        raise ConfigError(Problem("model.path", "is needed for pretrained weights", "model.path=DIR_OR_HUB_ID"))
    revision = model.get("revision") if key == "model.path" else None
    options = source_options(source, revision, key=key)
    with hub_errors(source, key=key):
        return AutoTokenizer.from_pretrained(local_or_id(source), trust_remote_code=bool(model.get("trust_remote_code")), **options)


def read_template(value: str) -> str:
    """A chat template given literally (it has jinja tags) or as a file. Raises ConfigError for a file that is none or no UTF-8."""
    if "{{" in value or "{%" in value:
        return value
    path = Path(os.path.expanduser(value))
    if not path.is_file():
        raise ConfigError(Problem("model.chat_template", f"no such file: {value}", "a path to a jinja file, or the template itself"))
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that some editors put in front
    except UnicodeDecodeError as error:
        message = f"{value} is not UTF-8 text: {error.reason} at byte {error.start + 1}"
        raise ConfigError(Problem("model.chat_template", message, "save it as UTF-8")) from error
    except OSError as error:
        raise ConfigError(Problem("model.chat_template", f"{value} cannot be read: {error.strerror or error}")) from error


def ensure_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a padding token that is not EOS: a known spare token of its vocabulary if there is one, else a new `<pad>`."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    reason = "has no padding token" if tokenizer.pad_token_id is None else "pads with its EOS, which would hide EOS from the loss"
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    spare = next((token for token in PAD_CANDIDATES if token in vocabulary and token not in taken), None)
    tokenizer.add_special_tokens({"pad_token": spare or PAD})
    log.warning("The tokenizer %s; %s (id %d) pads now.", reason, spare or f"a new token {PAD}", tokenizer.pad_token_id)


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which plain generation has to stop: EOS, and what ends a turn in the chat template."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    vocabulary = tokenizer.get_vocab()
    stops = [token for token in TURN_ENDS if token == END_OF_TEXT or token in template]
    ends = [vocabulary[token] for token in stops if token in vocabulary and PART_ENDS.get(token) not in stops]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *(end for end in ends if end != tokenizer.pad_token_id)]))
