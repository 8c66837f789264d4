"""What a chat template leaves out of a conversation's context is said, and published templates leave out nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from data_helpers import TOOLS, byte_level

from posttrain.data.formats import RowError
from posttrain.data.templates import encode_example
from posttrain.types import Example

TRL = Path(trl.__file__).parent / "chat_templates"
ADD = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": 'The "sum"\nof both', "parameters": ADD}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
WITH_TOOL = Example(
    messages=(
        {"role": "user", "content": "1+2"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '"3"'},
        {"role": "assistant", "content": "3"},
    ),
    tools=(TOOL,),
)


@pytest.mark.parametrize(
    ("written", "lost"),
    [
        ("{{ tools | tojson }}", None),
        (
            "{% for t in tools %}{{ t.function.name }}: {{ t.function.description }} ({{ t.function.parameters | tojson }}){% endfor %}",
            None,
        ),
        ("", "the tool add; set"),
        (
            "{{ tools[0].function.name }}: {{ tools[0].function.description }}",
            "the parameter a of the tool add, the parameter b of the tool add;",
        ),
        ("{{ tools[0].function.name }}: {{ tools[0].function.parameters | tojson }}", "the description of the tool add;"),
    ],
)
def test_a_call_in_the_conversation_is_not_the_tool_itself(written: str, lost: str | None):
    tokenizer = byte_level(TOOLS.replace("{{ tools | tojson }}", written))
    if lost is None:
        assert len(encode_example(tokenizer, WITH_TOOL)) == 1
        return
    with pytest.raises(RowError, match=f"leaves out {lost}"):
        encode_example(tokenizer, WITH_TOOL)


def test_what_a_tool_answers_must_show_as_it_is_or_as_json():
    for written, shown in (("{{ m.content | tojson }}", True), ("", False)):
        template = TOOLS.replace("{{ m.content }}", f"{{% if m.role == 'tool' %}}{written}{{% else %}}{{{{ m.content }}}}{{% endif %}}")
        if shown:
            assert len(encode_example(byte_level(template), WITH_TOOL)) == 1
            continue
        with pytest.raises(RowError, match=r"leaves out message 3 \(tool\)"):
            encode_example(byte_level(template), WITH_TOOL)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "llama3_1", "llama3_2", "gptoss", "glm4moe", "gemma4_v5", "nemotron_3_nano", "qwen3_6", "lfm2_2_5"]
)
def test_published_templates_show_tools_and_what_they_answer(name: str):
    assert encode_example(byte_level((TRL / f"{name}.jinja").read_text()), WITH_TOOL)
