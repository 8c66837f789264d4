"""The built-in tokenizer and the rule that picks a model's tokenizer."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from posttrain.errors import ConfigError
from posttrain.models import hub
from posttrain.models.tokenizers import byte_tokenizer, end_token_ids, ensure_padding, load_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Ask.",
        "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": {"city": "H\u00e0 N\u1ed9i"}}},
            {"type": "function", "function": {"name": "look", "arguments": '{"city": "Hue"}'}},
        ],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < len(tokenizer)


def test_ids_are_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer("a\u00e9\x00").input_ids == [97, 0xC3, 0xA9, 0]
    assert len(tokenizer) == 264


def test_specials_are_distinct_single_tokens() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.pad_token_id == 256
    assert tokenizer.eos_token_id == 259
    assert tokenizer.bos_token_id is None
    assert tokenizer("<think>x</think><|im_end|>").input_ids == [260, ord("x"), 261, 259]
    assert tokenizer.decode([260, 120, 261, 259], skip_special_tokens=True) == "<think>x</think>"
    assert end_token_ids(tokenizer) == [259, 257]


def test_saved_and_loaded_by_plain_transformers_it_is_the_same(tmp_path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token, loaded.all_special_tokens) == (
        tokenizer.pad_token,
        tokenizer.eos_token,
        tokenizer.all_special_tokens,
    )
    text = " a\n\n b <|im_end|> \u4e2d "
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text


def test_template_renders_tools_calls_and_reasoning() -> None:
    text = byte_tokenizer().apply_chat_template(CONVERSATION, tools=[{"type": "function", "function": {"name": "look"}}], tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "look"}}\n</tools>\n'
        'To call one: <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nAsk.\n</think>\n"
        '<tool_call>\n{"name": "look", "arguments": {"city": "H\u00e0 N\u1ed9i"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look", "arguments": {"city": "Hue"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>assistant\nSunny.<|im_end|>\n"
    )


def test_template_marks_what_the_assistant_says_and_its_end() -> None:
    tokenizer = byte_tokenizer()
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    trained = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(trained).startswith("<think>\nAsk.")
    assert tokenizer.decode(trained).endswith("</tool_call><|im_end|>Sunny.<|im_end|>")


def test_template_never_rewrites_earlier_turns() -> None:
    tokenizer = byte_tokenizer()
    for turns in range(1, len(CONVERSATION)):
        start = tokenizer.apply_chat_template(CONVERSATION[:turns], tokenize=False)
        assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False).startswith(start)
    prompt = tokenizer.apply_chat_template(CONVERSATION[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False).startswith(prompt)


def test_random_weights_without_a_folder_use_it_and_say_so(conf, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(conf("gemma_270m", weights="random"))
    assert len(tokenizer) == 264
    assert "byte-level tokenizer" in caplog.text


def test_a_folder_brings_its_own_tokenizer(conf, tmp_path) -> None:
    own = byte_tokenizer()
    own.chat_template = "{{ 'own' }}"
    own.save_pretrained(tmp_path)
    assert load_tokenizer(conf("nano", path=str(tmp_path))).chat_template == "{{ 'own' }}"
    assert load_tokenizer(conf("nano", tokenizer=str(tmp_path))).chat_template == "{{ 'own' }}"


def test_a_template_file_is_utf8_and_loses_its_byte_order_mark(conf, tmp_path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_bytes(b"\xef\xbb\xbf{{ 1 }}")
    assert load_tokenizer(conf("nano", chat_template=str(file))).chat_template == "{{ 1 }}"
    file.write_bytes("{{ 'caf\u00e9' }}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*chat\.jinja is not UTF-8 text"):
        load_tokenizer(conf("nano", chat_template=str(file)))


def test_chat_template_can_be_given_as_text_or_file(conf, tmp_path) -> None:
    assert load_tokenizer(conf("nano", chat_template="{{ messages[0].content }}")).chat_template == "{{ messages[0].content }}"
    file = tmp_path / "chat.jinja"
    file.write_text("{{ 1 }}")
    assert load_tokenizer(conf("nano", chat_template=str(file))).chat_template == "{{ 1 }}"
    with pytest.raises(ConfigError, match=r"model\.chat_template: no such file"):
        load_tokenizer(conf("nano", chat_template=str(tmp_path / "absent")))


def _word_tokenizer(*words: str, **specials: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials)


def test_padding_is_never_eos(caplog) -> None:
    tokenizer = _word_tokenizer("a", "</s>", eos_token="</s>", pad_token="</s>")
    ensure_padding(tokenizer)
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id == 2
    assert "pads with its EOS" in caplog.text


def test_padding_prefers_a_spare_token_of_the_vocabulary(caplog) -> None:
    tokenizer = _word_tokenizer("a", "<|eot_id|>", "<|finetune_right_pad_id|>", eos_token="<|eot_id|>")
    ensure_padding(tokenizer)
    assert tokenizer.pad_token_id == 2
    assert len(tokenizer) == 3
    assert "has no padding token" in caplog.text


def test_padding_that_is_fine_stays(caplog) -> None:
    tokenizer = byte_tokenizer()
    ensure_padding(tokenizer)
    assert tokenizer.pad_token_id == 256
    assert not caplog.records


def test_unreachable_hub_is_a_clear_error(conf, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.weights=random") as caught:
        load_tokenizer(conf("gemma_270m"))
    assert "google/gemma-3-270m-it" in str(caught.value)
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(conf("hf", path=str(tmp_path / "absent")))
