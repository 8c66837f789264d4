"""Masks against hand-made ids, for templates with and without generation tags and for templates that rewrite earlier turns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import trl
from data_helpers import BARE, BOS, CHATML, END, EOS, OPEN_THOUGHT, START, TAGGED, THINKING, TOOLS, byte_level
from transformers import PreTrainedTokenizerFast

from posttrain.data.chat import Chat
from posttrain.data.formats import RowError
from posttrain.data.spans import Span, span_weights
from posttrain.data.templates import encode_example, render_example
from posttrain.data.tree import tree_of
from posttrain.errors import ConfigError
from posttrain.models.tokenizers import end_token_ids
from posttrain.types import Example


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": text, **more}


TWO_TURNS = Example(messages=(user("Hi"), assistant("Yo"), user("?"), assistant("No")))


def b(text: str) -> list[int]:
    return list(text.encode())


def test_every_assistant_turn_is_trained_in_one_pass_with_its_end_token():
    ids, weights = encode_example(byte_level(CHATML), TWO_TURNS)[0]
    expected = [
        (START, 0), *((i, 0) for i in b("user\nHi")), (END, 0), (10, 0), (START, 0), *((i, 0) for i in b("assistant\n")),
        *((i, 1) for i in b("Yo")), (END, 1), (10, 0), (START, 0), *((i, 0) for i in b("user\n?")), (END, 0), (10, 0),
        (START, 0), *((i, 0) for i in b("assistant\n")), *((i, 1) for i in b("No")), (END, 1),
    ]  # fmt: skip
    assert ids.tolist() == [i for i, _ in expected]
    assert weights.tolist() == [w for _, w in expected]


def test_generation_tags_give_the_same_mask_though_the_end_token_stands_outside_them():
    plain, tagged = (encode_example(byte_level(template), TWO_TURNS)[0] for template in (CHATML, TAGGED))
    assert plain[0].tolist() == tagged[0].tolist()
    assert plain[1].tolist() == tagged[1].tolist()


def test_generation_tags_narrow_what_is_trained_within_a_turn():
    template = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{% if m.role == 'assistant' %}(note){% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>",
    )
    ids, weights = encode_example(byte_level(template), Example(messages=(user("Hi"), assistant("Yo"))))[0]
    assert ids[weights > 0].tolist() == [*b("Yo"), END]


def test_a_header_inside_the_generation_tags_is_not_trained_because_generation_is_given_it():
    template = CHATML.replace(
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}",
    )
    ids, weights = encode_example(byte_level(template), TWO_TURNS)[0]
    assert ids[weights > 0].tolist() == [*b("Yo"), END, *b("No"), END]


def test_ids_are_those_of_the_tokenizer_itself_up_to_the_last_end_token():
    tokenizer = byte_level(CHATML)
    whole = tokenizer.apply_chat_template(list(TWO_TURNS.messages))["input_ids"]
    assert [*encode_example(tokenizer, TWO_TURNS)[0][0].tolist(), 10] == whole


def test_a_template_that_rewrites_earlier_turns_trains_each_turn_in_the_context_it_is_written_in():
    example = Example(messages=(user("a"), assistant("b", reasoning_content="r1"), user("c"), assistant("d", reasoning_content="r2")))
    tokenizer = byte_level(THINKING)
    sequences = encode_example(tokenizer, example)
    texts = [tokenizer.decode(ids) for ids, _ in sequences]
    trained = [tokenizer.decode(ids[weights > 0]) for ids, weights in sequences]
    first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert texts[0] == first + "<think>\nr1\n</think>\n\nb<|im_end|>"
    assert texts[1] == first + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\nr2\n</think>\n\nd<|im_end|>"
    assert trained == ["<think>\nr1\n</think>\n\nb<|im_end|>", "<think>\nr2\n</think>\n\nd<|im_end|>"]
    tree = tree_of(sequences)
    assert len(tree.ids) == sum(len(ids) for ids, _ in sequences) - len(b(first)) + 2 * (len("<|im_start|>") - 1) + (len("<|im_end|>") - 1)
    assert np.count_nonzero(tree.weights) == sum(np.count_nonzero(weights) for _, weights in sequences)


def test_a_thinking_template_with_one_turn_needs_one_sequence():
    assert len(encode_example(byte_level(THINKING), Example(messages=(user("a"), assistant("b"))))) == 1


def test_train_on_last_and_all():
    tokenizer = byte_level(CHATML)
    ids, last = encode_example(tokenizer, TWO_TURNS, train_on="last")[0]
    assert ids[last > 0].tolist() == [*b("No"), END]
    _, everything = encode_example(tokenizer, TWO_TURNS, train_on="all")[0]
    assert (everything == 1).all()


def test_a_message_of_weight_0_is_context_and_other_weights_are_kept():
    example = Example(messages=(user("Hi"), assistant("Yo", weight=0.0), user("?"), assistant("No", weight=0.5)))
    ids, weights = encode_example(byte_level(CHATML), example)[0]
    assert ids[weights > 0].tolist() == [*b("No"), END]
    assert set(weights.tolist()) == {0.0, 0.5}
    with pytest.raises(RowError, match="no assistant turn with a weight above 0"):
        encode_example(byte_level(CHATML), Example(messages=(user("Hi"), assistant("Yo", weight=0.0))))


def test_eos_closes_a_template_that_does_not_mark_the_end_of_a_turn():
    ids, weights = encode_example(byte_level(BARE), Example(messages=(user("Hi"), assistant("Yo"))))[0]
    assert ids.tolist() == [*b("user: Hi\nassistant: Yo"), EOS]
    assert ids[weights > 0].tolist() == [*b("Yo"), EOS]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_never_doubled(adds_bos: bool):
    for template in ("{{ bos_token }}" + CHATML, "{{ bos_token }}{{ bos_token }}" + CHATML):
        ids, weights = encode_example(byte_level(template, bos=adds_bos), TWO_TURNS)[0]
        assert ids.tolist().count(BOS) == 1
        assert ids[0] == BOS
        assert len(ids) == len(weights)


def test_padding_with_eos_does_not_hide_eos_from_the_loss():
    tokenizer = byte_level(CHATML, eos="<|im_end|>")
    tokenizer.pad_token = tokenizer.eos_token
    ids, weights = encode_example(tokenizer, TWO_TURNS)[0]
    assert weights[ids == END].tolist() == [0, 1, 0, 1]


def test_a_generation_prompt_that_opens_a_thought_is_continued_by_the_thought_and_the_answer():
    tokenizer = byte_level(OPEN_THOUGHT)
    for message in (assistant("<think>\nhm\n</think>\n\nYo"), assistant("Yo", reasoning_content="hm")):
        ids, weights = encode_example(tokenizer, Example(messages=(user("Hi"), message)))[0]
        assert tokenizer.decode(ids) == "<s><U>Hi<A><think>\nhm\n</think>\n\nYo<|im_end|>"
        assert tokenizer.decode(ids[weights > 0]) == "hm\n</think>\n\nYo<|im_end|>"
    two = Example(messages=(user("Hi"), assistant("Yo"), user("?"), assistant("No")))
    assert [tokenizer.decode(ids[weights > 0]) for ids, weights in encode_example(tokenizer, two)] == [
        "\n</think>\n\nYo<|im_end|>",
        "\n</think>\n\nNo<|im_end|>",
    ]


def test_reasoning_is_inlined_where_the_template_does_not_know_it():
    ids, weights = encode_example(byte_level(CHATML), Example(messages=(user("Hi"), assistant("Yo", reasoning_content="hm"))))[0]
    assert byte_level(CHATML).decode(ids[weights > 0]) == "<think>\nhm\n</think>\n\nYo<|im_end|>"


def test_template_keywords_reach_the_template():
    template = "{% if shout %}!{% endif %}" + CHATML
    ids, _ = encode_example(byte_level(template), TWO_TURNS, template_kwargs={"shout": True})[0]
    assert ids[0] == ord("!")


def test_nothing_after_the_last_assistant_turn_is_kept():
    longer = Example(messages=(*TWO_TURNS.messages, user("bye")))
    assert encode_example(byte_level(CHATML), longer)[0][0].tolist() == encode_example(byte_level(CHATML), TWO_TURNS)[0][0].tolist()


def test_a_conversation_that_the_assistant_opens():
    ids, weights = encode_example(byte_level(CHATML), Example(messages=(assistant("Yo"), user("?"), assistant("No"))))[0]
    assert ids[weights > 0].tolist() == [*b("Yo"), END, *b("No"), END]


def test_prompt_is_what_generation_starts_from():
    assert render_example(Chat(byte_level(CHATML), {}), TWO_TURNS)[-1].prompt.endswith("?<|im_end|>\n<|im_start|>assistant\n")
    assert render_example(Chat(byte_level(OPEN_THOUGHT), {}), TWO_TURNS)[-1].prompt.endswith("<A><think>\n")


def test_tools_and_calls_are_written_or_refused():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tools = ({"type": "function", "function": {"name": "add"}},)
    example = Example(
        messages=(user("1+2"), assistant("", tool_calls=[call]), {"role": "tool", "content": "3"}, assistant("3")), tools=tools
    )
    tokenizer = byte_level(TOOLS)
    ids, weights = encode_example(tokenizer, example)[0]
    assert tokenizer.decode(ids[weights > 0]) == '<call>add({"a": 1})<|im_end|>3<|im_end|>'
    with pytest.raises(RowError, match="leaves out the tool add"):
        encode_example(byte_level(CHATML), example)


def test_no_template_is_an_error_that_says_what_to_set():
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        encode_example(byte_level(None), TWO_TURNS)


def test_a_template_that_refuses_gives_its_reason():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    with pytest.raises(RowError, match="System role not supported"):
        encode_example(byte_level(template), Example(messages=({"role": "system", "content": "s"}, user("a"), assistant("b"))))


def test_span_weights_count_tokens_that_overlap_and_not_trimmed_spaces():
    offsets = np.array([[0, 2], [2, 3], [3, 3], [4, 6], [6, 7], [7, 7]])  # the third and the last were trimmed to nothing
    assert span_weights(offsets, [Span(3, 7, 1.0)]).tolist() == [0, 0, 0, 1, 1, 0]
    assert span_weights(offsets, [Span(1, 2, 2.0)]).tolist() == [2, 0, 0, 0, 0, 0]


def test_a_template_that_leaves_something_out_is_refused():
    parts = CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
    with pytest.raises(RowError, match=r"leaves out message 1 \(user\), message 3 \(user\)"):
        encode_example(byte_level(parts), TWO_TURNS)
    with pytest.raises(RowError, match="leaves out of assistant turn 2: its content"):
        encode_example(byte_level(CHATML.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}")), TWO_TURNS)
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    with pytest.raises(RowError, match="leaves out of assistant turn 2: the call of add"):
        encode_example(byte_level(CHATML), Example(messages=(user("Hi"), assistant("", tool_calls=[call]))))


def test_what_closes_the_whole_conversation_does_not_make_it_a_rewriting_template():
    template = CHATML.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add")
    sequences = encode_example(byte_level(template), TWO_TURNS)
    assert len(sequences) == 1
    ids, weights = sequences[0]
    assert ids[weights > 0].tolist() == [*b("Yo"), END, *b("No"), END, 10, EOS]


def test_arguments_are_text_for_a_template_that_joins_them():
    template = TOOLS.replace("c.function.arguments | tojson", "'' + c.function.arguments")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tokenizer = byte_level(template)
    ids, weights = encode_example(tokenizer, Example(messages=(user("1+2"), assistant("", tool_calls=[call]))))[0]
    assert tokenizer.decode(ids[weights > 0]) == '<call>add({"a": 1})<|im_end|>'


@pytest.mark.parametrize(("printed", "wanted"), [
    ("c.function.arguments", '{"a": "b"}'),  # would print Python's dict
    ("(c.function.arguments if c.function.arguments is string else c.function.arguments | tojson)", '{"a": "b"}'),
    ("(c.function.arguments | tojson if c.id | length == 9 else raise_exception('ids of nine characters'))", '{"a": "b"}'),
])  # fmt: skip
def test_arguments_are_written_as_json_once(printed: str, wanted: str):
    template = TOOLS.replace("c.function.arguments | tojson", printed)
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": "b"}}}
    tokenizer = byte_level(template)
    ids, weights = encode_example(tokenizer, Example(messages=(user("1+2"), assistant("", tool_calls=[call]))))[0]
    assert tokenizer.decode(ids[weights > 0]) == f"<call>add({wanted})<|im_end|>"


def test_every_turn_of_a_template_without_turn_ends_learns_eos():
    tokenizer = byte_level(BARE)
    sequences = encode_example(tokenizer, TWO_TURNS)
    assert [tokenizer.decode(ids[weights > 0]) for ids, weights in sequences] == ["Yo</s>", "No</s>"]
    assert [tokenizer.decode(ids[weights == 0]) for ids, weights in sequences] == [
        "user: Hi\nassistant: ",
        "user: Hi\nassistant: Yo\nuser: ?\nassistant: ",
    ]


def test_reasoning_behind_the_call_that_it_led_to_is_refused():
    template = TOOLS.replace("{{ m.content }}", "").replace("<|im_end|>", "{{ m.content }}<|im_end|>", 1)
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    with pytest.raises(RowError, match="leaves out of assistant turn 2: the reasoning before the call of add"):
        encode_example(byte_level(template), Example(messages=(user("1"), assistant("", reasoning_content="hm", tool_calls=[call]))))


def test_a_thought_in_the_content_is_reasoning_for_a_template_that_knows_reasoning():
    tokenizer = byte_level(THINKING)
    inline, apart = (
        Example(messages=(user("Hi"), message))
        for message in (assistant("<think>\nhm\n</think>\n\nYo"), assistant("Yo", reasoning_content="hm"))
    )
    assert encode_example(tokenizer, inline)[0][0].tolist() == encode_example(tokenizer, apart)[0][0].tolist()


def published(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one of TRL's templates, in which everything in special brackets is a special token."""
    template = (TRL / f"{name}.jinja").read_text()
    tokenizer = byte_level(template)
    found = re.findall(r"<\|[a-z_]+\|>|<\|?(?:turn|channel|tool_call|tool_response)\|?>|\[gMASK\]|<sop>", template)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(found))})
    return tokenizer


TRL = Path(trl.__file__).parent / "chat_templates"
SPECIALS = ["<end_of_turn>", "<start_of_turn>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|END_OF_TURN_TOKEN|>"]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_vl", "qwen3_instruct_2507", "llama3", "gemma", "gemma3", "lfm2", "cohere"])
def test_published_templates_train_what_their_hand_tagged_versions_mark(name: str):
    """Oracle: TRL's versions of these templates with {% generation %} tags, through transformers' own mask."""
    plain, tagged = (byte_level((TRL / f"{name}{ending}.jinja").read_text()) for ending in ("", "_training"))
    for tokenizer in (plain, tagged):
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    out = tagged.apply_chat_template(list(TWO_TURNS.messages), return_assistant_tokens_mask=True)
    expected = tagged.decode([i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m])
    ids, weights = encode_example(plain, TWO_TURNS)[0]
    assert plain.decode(ids[weights > 0]) == expected.replace("\n", "").replace("<|im_start|>assistant", "")
    assert ids.tolist() == out["input_ids"][: len(ids)]


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_6", "deepseek_r1_distill", "gptoss", "glm4moe", "lfm2_2_5", "nemotron_3_nano", "qwen3_8", "gemma4_v5"]
)
def test_published_thinking_templates_train_every_thought_and_answer(name: str):
    tokenizer = byte_level((TRL / f"{name}.jinja").read_text())
    example = Example(messages=(user("a"), assistant("Yo", reasoning_content="R1"), user("c"), assistant("No", reasoning_content="R2")))
    trained = "".join(tokenizer.decode(ids[weights > 0]) for ids, weights in encode_example(tokenizer, example))
    assert [trained.count(piece) for piece in ("R1", "Yo", "R2", "No")] == [1, 1, 1, 1]
    context = "".join(tokenizer.decode(ids[weights == 0]) for ids, weights in encode_example(tokenizer, example))
    assert "R2" not in context
    assert "No" not in context


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": "b"}}}
AGENTIC = Example(
    messages=(
        user("Q1"),
        assistant("", reasoning_content="R1", tool_calls=[CALL]),
        {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "TT"},
        assistant("A1", reasoning_content="R2"),
        user("Q2"),
        assistant("A2", reasoning_content="R3"),
    ),
    tools=({"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}},),
)
OSS, GEMMA = "<|channel|>analysis<|message|>", "<|channel>thought\n"


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        (
            "gptoss",
            [
                f'{OSS}R1<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{{"a": "b"}}<|call|>',
                f"{OSS}R2<|end|><|start|>assistant<|channel|>final<|message|>A1<|return|>",
                f"{OSS}R3<|end|><|start|>assistant<|channel|>final<|message|>A2<|return|>",
            ],
        ),
        (
            "glm4moe",
            [
                "\n<think>R1</think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>b</arg_value>\n</tool_call><|observation|>",
                "\n<think>R2</think>\nA1<|user|>",
                "\n<think>R3</think>\nA2</s>",
            ],
        ),
        (
            "gemma4_v5",
            [
                f'{GEMMA}R1\n<channel|><|tool_call>call:add{{a:<|"|>b<|"|>}}<tool_call|><|tool_response>',
                f"{GEMMA}R2\n<channel|>A1<turn|>",
                f"{GEMMA}R3\n<channel|>A2<turn|>",
            ],
        ),
        (
            "gemma4",  # writes the thoughts of calls alone
            [
                f'{GEMMA}R1\n<channel|><|tool_call>call:add{{a:<|"|>b<|"|>}}<tool_call|><|tool_response>',
                "<think>\nR2\n</think>\n\nA1<turn|>",
                "<think>\nR3\n</think>\n\nA2<turn|>",
            ],
        ),
    ],
)
def test_published_templates_train_every_turn_of_an_agent_as_its_family_writes_it(name: str, trained: list[str]):
    tokenizer = published(name)
    sequences = encode_example(tokenizer, AGENTIC)
    assert [tokenizer.decode(ids[weights > 0]) for ids, weights in sequences] == trained
    stops = end_token_ids(tokenizer)
    for ids, weights in sequences:  # generation goes on until the turn's last token, and no further
        written = ids[weights > 0].tolist()
        assert [place for place, token in enumerate(written) if token in stops] == [len(written) - 1]


def test_what_a_turn_is_written_after_keeps_the_reasoning_that_a_later_answer_makes_the_template_forget():
    tokenizer = published("gptoss")
    contexts = [tokenizer.decode(ids[weights == 0]) for ids, weights in encode_example(tokenizer, AGENTIC)]
    assert ["R1" in context for context in contexts] == [False, True, False]
    assert contexts[1].endswith('"TT"<|end|><|start|>assistant')


def test_a_call_before_turns_that_are_not_trained_ends_as_every_call_does():
    tokenizer = published("glm4moe")
    call, result = assistant("", tool_calls=[CALL]), {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "TT"}
    ((ids, weights),) = encode_example(
        tokenizer, Example(messages=(user("Q"), call, result, assistant("A", weight=0.0)), tools=AGENTIC.tools)
    )
    assert tokenizer.decode(ids[weights > 0]).endswith("</tool_call><|observation|>")


def test_a_turn_that_the_next_header_ends_learns_the_header():
    tokenizer = published("glm4moe")
    (ids, weights), *others = encode_example(tokenizer, TWO_TURNS)
    assert not others
    assert tokenizer.decode(ids[weights > 0]) == "\n<think></think>\nYo<|user|>\n<think></think>\nNo</s>"
