"""One row of each format: detection, conversion, options; and rows that fit none or several."""

from __future__ import annotations

import json
from typing import Any

import pytest
from data_helpers import real

from posttrain.data.boxed import boxed
from posttrain.data.formats import Filtered, RowError, detect, formats, get, options_of
from posttrain.data.formats.questions import final_answer
from posttrain.data.rows import Row
from posttrain.data.settings import SourceSpec
from posttrain.data.sources import read_rows
from posttrain.errors import ConfigError, DataError
from posttrain.rewards import answers
from posttrain.types import Example

TOOL_SYSTEM = 'SYSTEM: You have functions. Use them if required -\n{"name":"add", "parameters": {}}\n\n{"name": "sub"}'
TOOL_CHAT = (
    'USER: 1+2?\n\n\nASSISTANT: <functioncall> {"name": "add", "arguments": \'{"a": 1, "b": "it\'s"}\'} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {"r": 3}\n\n\nASSISTANT: 3 <|endoftext|>'
)

# format, row, texts of the assistant turns, answer
ROWS: list[tuple[str, dict[str, Any], list[str], str | None]] = [
    ("messages", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, ["Hello"], None),
    ("messages", {"id": 1, "messages": [{"role": "user", "content": "f?"}, {"role": "assistant", "content": "code"}]}, ["code"], None),
    (
        "messages",
        {"prompt": "Hi", "prompt_id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
        ["Yo"],
        None,
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Hi", "weight": None}, {"from": "gpt", "value": "Hello", "weight": None}],
            "source": "x",
        },
        ["Hello"],
        None,
    ),
    (
        "capybara",
        {"source": "s", "conversation": [{"input": "Hi", "output": "Hello"}, {"input": "?", "output": "!"}]},
        ["Hello", "!"],
        None,
    ),
    ("glaive", {"system": TOOL_SYSTEM, "chat": TOOL_CHAT}, ["", "3"], None),
    ("alpaca", {"instruction": "Add", "input": "1 2", "output": "3"}, ["3"], None),
    (
        "magicoder_oss",
        {
            "lang": "python",
            "raw_index": 1,
            "index": 2,
            "seed": "def f",
            "openai_fingerprint": "fp",
            "problem": "Write f",
            "solution": "def f(): ...",
        },
        ["def f(): ..."],
        None,
    ),
    ("magicoder_evol", {"instruction": "Write f", "response": "def f(): ..."}, ["def f(): ..."], None),
    ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, ["Hello"], None),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
        ["Hello"],
        None,
    ),
    (
        "mbpp",
        {
            "task_id": 1,
            "text": "Add two",
            "code": "def add(a,b): return a+b",
            "test_list": ["assert add(1,2)==3"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        ["```python\ndef add(a,b): return a+b\n```"],
        None,
    ),
    (
        "mbpp",
        {"source_file": "b.ipynb", "task_id": 1, "prompt": "Add two", "code": "x", "test_imports": [], "test_list": ["assert add(1,2)==3"]},
        ["```python\nx\n```"],
        None,
    ),
    ("question_answer", {"question": "2+3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}, ["2+3=<<2+3=5>>5\n#### 5"], "5"),
    (
        "math",
        {"problem": "1+1", "level": "Level 1", "type": "Algebra", "solution": "$\\boxed{\\frac{1}{2}}$"},
        ["$\\boxed{\\frac{1}{2}}$"],
        "\\frac{1}{2}",
    ),
    (
        "humaneval",
        {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n", "test": "t", "entry_point": "f"},
        ["```python\ndef f(x):\n    return x\n```"],
        None,
    ),
    (
        "vnhsge",
        {
            "ID": "MET_Bio_IE_2019_1",
            "Image_Question": "",
            "Question": "1+1?\nA. 1\nB. 2",
            "Choice": "B",
            "Image_Answer": "",
            "Explanation": "because",
        },
        ["because\n\nFinal Answer: B"],
        "B",
    ),
    ("vnhsge", {"ID": "MET_Phy_1", "IQ": "", "Q": "1+1?", "C": "b", "E": ""}, ["Final Answer: B"], "B"),
    (
        "vnhsge_literature",
        {"C\u00e2u h\u1ecfi": "q", "G\u1ee3i \u00fd tr\u1ea3 l\u1eddi": "hint", "\u0110\u00e1p \u00e1n": "a"},
        ["a"],
        None,
    ),
    ("vnhsge_literature", {"C\u00e2u h\u1ecfi": "q", "G\u1ecdi \u00fd tr\u1ea3 l\u1eddi": "hint"}, ["hint"], None),
    (
        "mts_dialog",
        {"ID": "0", "section_header": "GENHX", "section_text": "Two weeks.", "dialogue": "Doctor: What?\nPatient: That."},
        ["Two weeks."],
        None,
    ),
    (
        "conala",
        {"question_id": 1, "intent": "sort a list", "rewritten_intent": "sort list `x`", "snippet": "sorted(x)"},
        ["sorted(x)"],
        None,
    ),
    (
        "conala",
        {"question_id": 1, "parent_answer_post_id": 2, "prob": 0.9, "snippet": "sorted(x)", "intent": "sort", "id": "1_2_0"},
        ["sorted(x)"],
        None,
    ),
    (
        "deepmath",
        {
            "question": "1+1",
            "final_answer": "2",
            "difficulty": 5.0,
            "topic": "x",
            "r1_solution_1": "<think>hm</think>\\boxed{2}",
            "r1_solution_2": "b",
            "r1_solution_3": "c",
        },
        ["\\boxed{2}"],
        "2",
    ),
]


@pytest.mark.parametrize(("name", "row", "turns", "answer"), ROWS)
def test_every_format_is_detected_and_converted(name: str, row: dict[str, Any], turns: list[str], answer: str | None):
    # Absent columns are null after sources were joined: they must not count.
    form = detect([Row(row | {"never": None, "text": row.get("text")}, "x", 1)], "x")
    assert form.name == name
    example = form.convert(row)
    assert isinstance(example, Example)
    assert [m["content"] for m in example.messages if m["role"] == "assistant"] == turns
    assert example.answer == answer
    assert example.messages[0]["role"] in ("user", "system")


STACK = {
    "blob_id": "ab", "content_id": "cd", "path": "/a.py", "repo_name": "o/r", "language": "Python", "extension": "py", "src_encoding": "UTF-8",
    "license_type": "permissive", "detected_licenses": ["MIT"], "is_vendor": False, "is_generated": False, "length_bytes": 12, "content": "x = 1",
}  # fmt: skip


def test_documents():
    assert detect([Row({"text": "abc"}, "x", 1)], "x").convert({"text": "abc"}) == Example(text="abc")
    form = detect([Row(STACK, "x", 1)], "x")
    assert (form.name, form.kind) == ("stack_v2", "text")
    example = form.convert(STACK)
    assert isinstance(example, Example)
    assert example.text == "x = 1"


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({}, {"languages": ["rust"]}, "language"),
        ({}, {"languages": ["python"]}, None),
        ({}, {"licenses": ["Apache-2.0"]}, "license"),
        ({}, {"licenses": ["mit"]}, None),
        ({"license_type": "no_license"}, {"license_types": ["permissive"]}, "license type"),
        ({"is_vendor": True}, {}, "vendor"),
        ({"is_vendor": True}, {"vendor": True}, None),
        ({"is_generated": True}, {}, "generated"),
    ],
)
def test_stack_filters(row: dict[str, Any], options: dict[str, Any], reason: str | None):
    got = get("stack_v2").convert(STACK | row, **options)
    assert got == Filtered(reason) if reason else isinstance(got, Example)


def test_stack_without_contents_says_where_they_are():
    with pytest.raises(RowError, match="Software Heritage"):
        get("stack_v2").convert(STACK | {"content": None})


def test_glaive_calls_and_answers():
    example = get("glaive").convert({"system": TOOL_SYSTEM, "chat": TOOL_CHAT})
    assert isinstance(example, Example)
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1, "b": "it's"}}
    assert example.messages[3]["content"] == '{"r": 3}'
    assert [tool["function"]["name"] for tool in example.tools] == ["add", "sub"]
    assert example.messages[0]["content"] == "You have functions. Use them if required"
    plain = get("glaive").convert({"system": "SYSTEM: Be kind.", "chat": "USER: hi\nASSISTANT: hello"})
    assert isinstance(plain, Example)
    assert (plain.tools, len(plain.messages)) == ((), 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("{name}", "not readable"),
        ('"x"', "without a name"),
        ("[1]", "without a name"),
        ('{"name": 1}', "without a name"),
        ('{"name": "f", "arguments": "{"}', "arguments of f are not JSON"),
        ('{"name": "f", "arguments": ' + "9" * 5000 + "}", "not readable"),
    ],
)
def test_a_glaive_call_that_is_none_is_a_bad_row(call: str, words: str):
    with pytest.raises(RowError, match=words):
        get("glaive").convert({"system": "", "chat": f"USER: hi\nASSISTANT: <functioncall> {call}"})


def test_humaneval_needs_no_task_id():
    example = get("humaneval").convert({"prompt": "def f():\n", "canonical_solution": "    pass", "test": "t", "entry_point": "f"})
    assert isinstance(example, Example)
    assert (example.meta["task_id"], example.meta["test"]) == (None, "t")


def test_tools_calls_and_reasoning_of_messages():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {
        "tools": '[{"name": "add"}]',
        "messages": [
            {"role": "user", "content": "1+2", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "use add"},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "text", "text": "3"}], "weight": 0.5},
        ],
    }
    example = get("messages").convert(row)
    assert isinstance(example, Example)
    assert example.tools == ({"type": "function", "function": {"name": "add"}},)
    assert example.messages[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "use add",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }
    assert example.messages[2]["tool_call_id"] == "c1"
    assert example.messages[3] == {"role": "assistant", "content": "3", "weight": 0.5}


def test_text_parts_are_one_text_wherever_messages_are_read():
    def said(role: str, *texts: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text, "image_url": None} for text in texts]}

    asked, answered, other = said("user", "Hi ", "there"), said("assistant", "Hello"), said("assistant", "No")
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": [asked, answered]},
        "prompt_completion": {"prompt": [asked], "completion": [answered]},
        "prompt": {"prompt": [asked]},
        "preference": {"prompt": [asked], "chosen": [answered], "rejected": [other]},
        "feedback": {"prompt": [asked], "completion": [answered], "label": True},
    }
    for name, row in rows.items():
        example = get(name).convert(row)
        assert isinstance(example, Example)
        found = [*example.messages, *(message for answer in example.answers for message in answer.messages)]
        assert [message["content"] for message in found] == ["Hi there", "Hello", "No"][: len(found)], name


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("messages", {"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
        ("messages", {"messages": [{"role": "robot", "content": "Hi"}]}, "role 'robot'"),
        ("messages", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}, "without content"),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not JSON"),
        ("messages", {"messages": [{"role": "assistant", "content": "a", "weight": -1}]}, "weight"),
        ("messages", {"messages": [{"role": "assistant", "content": "a", "weight": 10**400}]}, "weight"),
        ("messages", {"messages": [{"role": "assistant", "content": "a", "weight": 1e39}]}, "weight"),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}], "tools": "9" * 5000}, "'tools' is not JSON"),
        ("conala", {"intent": "a", "snippet": "b", "prob": 10**400}, "'prob' must be a number"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 1: content: text part 1 has no text"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a list of text parts"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "a", "reasoning": ["a", "b"]}]},
            "reasoning must be a string, got list",
        ),
        ("messages", {"messages": [{"role": "assistant", "content": "a", "thinking": True}]}, "thinking must be a string, got bool"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "alien"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "f(1)"}]},
            "turn 1 is from function_call, and its value calls nothing",
        ),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "{'name': 'f'}"}]}, "a function call is not readable"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "f", "args": {"a": 1}}'}]},
            "has args, and no arguments",
        ),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "[1]"}]}, "needs a function name"),
        ("alpaca", {"instruction": "x", "output": "x", "history": [["Hi"]]}, "history 1 must be two texts"),
        ("question_answer", {"question": "x", "answer": "x", "context": {"title": "x"}}, "'context' must be a string"),
        ("question_answer", {"question": "x", "answer": "x", "options": "1, 2"}, "'options' must be a list"),
        ("question_answer", {"question": "x", "answer": "x", "options": [1, 2]}, "'options' must be a list"),
        ("alpaca", {"instruction": "", "output": "x"}, "'instruction' is empty"),
        ("alpaca", {"instruction": 3, "output": "x"}, "must be a string"),
        ("question_answer", {"question": "x", "answer": None}, "'answer' is missing"),
        ("vnhsge", {"Question": "x", "Choice": "AB"}, "letter"),
        ("prompt_completion", {"prompt": "x", "completion": []}, "both"),
        ("text", {"text": "  "}, "empty"),
    ],
)
def test_rows_that_do_not_hold_what_they_need(name: str, row: dict[str, Any], words: str):
    with pytest.raises(RowError, match=words):
        get(name).convert(row)


def test_options():
    assert get("vnhsge").convert({"Question": "q", "Choice": "A", "Image_Question": "img.png"}) == Filtered("image")
    assert get("conala").convert({"intent": "a", "snippet": "b", "prob": 0.1}, min_prob=0.5) == Filtered("probability")
    assert get("magicoder_oss").convert({"lang": "Java", "problem": "a", "solution": "b"}, languages=["python"]) == Filtered("language")
    thought = get("deepmath").convert({"question": "q", "final_answer": "1", "r1_solution_2": "<think>t</think>a"}, solution=2)
    assert isinstance(thought, Example)
    assert thought.messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "t"}
    context = get("prompt_completion").convert(
        {
            "prompt": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
            "completion": [{"role": "assistant", "content": "c"}],
        }
    )
    assert isinstance(context, Example)
    assert [m.get("weight", 1) for m in context.messages] == [0, 1, 1]


def test_how_many_tests_a_prompt_shows():
    row = {
        "text": "Add two",
        "code": "x",
        "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
        "challenge_test_list": ["assert 1"],
    }
    mbpp = get("mbpp")
    shown = {}
    for option in (True, "first", False):
        example = mbpp.convert(row, **options_of(mbpp, {"show_tests": option}))
        assert isinstance(example, Example)
        assert example.meta["tests"] == row["test_list"]
        shown[option] = example.messages[0]["content"]
    assert shown[True] == "Add two\n\nYour code should pass these tests:\nassert add(1, 2) == 3\nassert add(2, 2) == 4"
    assert shown["first"] == "Add two\n\nYour code should pass this test:\nassert add(1, 2) == 3"
    assert shown[False] == "Add two"
    with pytest.raises(ConfigError):
        options_of(mbpp, {"show_tests": "some"})


def test_option_names_and_types_are_checked():
    assert options_of(get("stack_v2"), {"languages": ["Python"], "vendor": True}) == {"languages": ["Python"], "vendor": True}
    with pytest.raises(ConfigError) as caught:
        options_of(get("stack_v2"), {"language": "x", "vendor": "maybe"})
    assert "no such option" in str(caught.value)
    assert "data.format_options.vendor" in str(caught.value)


ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
ADD = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize(
    ("name", "row", "messages"),
    [
        ("messages", {"messages": [ASK, SAY], "system": "Be kind."}, [SYSTEM, ASK, SAY]),
        ("messages", {"messages": [ASK, SAY], "system": [{"type": "text", "text": "Be kind."}]}, [SYSTEM, ASK, SAY]),
        ("messages", {"messages": [SYSTEM, ASK, SAY], "system": "Be bad."}, [SYSTEM, ASK, SAY]),
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello", "system": "Be kind."}, [SYSTEM, ASK, SAY]),
        ("prompt_completion", {"prompt": [ASK], "completion": [SAY], "system_prompt": "Be kind."}, [SYSTEM, ASK, SAY]),
        ("question_answer", {"question": "Hi", "answer": "Hello", "system": "Be kind."}, [SYSTEM, ASK, SAY]),
        ("magicoder_evol", {"instruction": "Hi", "response": "Hello", "system": "Be kind."}, [SYSTEM, ASK, SAY]),
        (
            "alpaca",
            {"instruction": "And?", "output": "So.", "history": [["Hi", "Hello"]], "system": "Be kind."},
            [SYSTEM, ASK, SAY, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}],
        ),
        ("alpaca", {"instruction": "Hi", "output": "Hello", "history": ""}, [ASK, SAY]),
        (
            "sharegpt",
            {"conversations": [ASK, {**SAY, "from": None, "value": None, "reasoning_content": "So"}], "system": "Be kind."},
            [SYSTEM, ASK, {**SAY, "reasoning_content": "So"}],
        ),
        (
            "sharegpt",
            {"conversations": [{"role": "human", "content": "Hi"}, {"role": "gpt", "tool_calls": [{"name": "add", "arguments": "{}"}]}]},
            [ASK, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}],
        ),
        (
            "question_answer",
            {"question": "How many heads?", "context": "CREATE TABLE head (age INTEGER)", "answer": "SELECT COUNT(*) FROM head"},
            [
                {"role": "user", "content": "CREATE TABLE head (age INTEGER)\n\nHow many heads?"},
                {"role": "assistant", "content": "SELECT COUNT(*) FROM head"},
            ],
        ),
        (
            "question_answer",
            {"question": "1+1?", "options": ["1", "2"], "answer": "B"},
            [{"role": "user", "content": "1+1?\nA. 1\nB. 2"}, {"role": "assistant", "content": "B"}],
        ),
        (
            "question_answer",
            {"question": "1+1?", "options": {"C": "1", "D": "2"}, "answer": "D"},
            [{"role": "user", "content": "1+1?\nC. 1\nD. 2"}, {"role": "assistant", "content": "D"}],
        ),
        (
            "question_answer",
            {"question": "1+1?", "options": ["A) 1", "B) 2"], "answer": "B"},
            [{"role": "user", "content": "1+1?\nA) 1\nB) 2"}, {"role": "assistant", "content": "B"}],
        ),
    ],
)
def test_what_stands_beside_the_question_is_not_lost(name: str, row: dict[str, Any], messages: list[dict[str, Any]]):
    assert detect(rows_of(row), "x", kinds=("conversation", "text")).name == name
    example = get(name).convert(row)
    assert isinstance(example, Example)
    assert list(example.messages) == messages


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}),
        ("alpaca", {"instruction": "Hi", "output": "Hello"}),
        ("question_answer", {"question": "Hi", "answer": "Hello"}),
    ],
)
def test_tools_are_read_beside_texts_too(name: str, row: dict[str, Any]):
    example = get(name).convert({**row, "tools": ADD})
    assert isinstance(example, Example)
    assert list(example.tools) == ADD


def test_further_fields_of_a_question_reach_the_reward():
    example = get("question_answer").convert({"question": "Hi", "answer": "Hello", "min_words": 5, "id": None, "meta": {"level": 2}})
    assert isinstance(example, Example)
    assert example.meta == {"min_words": 5, "level": 2}


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, "x", number) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize("label", [True, False, 0, 1, -1, 0.0, "true"])
def test_judged_conversations_are_not_learnt_as_they_are(label: object):
    judged = {"messages": [ASK, SAY], "label": label}
    assert detect(rows_of(judged), "x", kinds=("conversation", "text")).name == "feedback"
    assert detect(rows_of({**judged, "label": 7}, {**judged, "label": "topic"}), "x", kinds=("conversation", "text")).name == "messages"


def test_ambiguous_rows_list_the_candidates():
    with pytest.raises(DataError, match=r"alpaca, question_answer.*data\.format=alpaca"):
        detect(rows_of({"instruction": "a", "output": "b", "question": "c", "answer": "d"}), "x")


def test_one_clear_row_decides_for_ambiguous_ones():
    both = {"instruction": "a", "output": "b", "question": "c", "answer": "d"}
    assert detect(rows_of(both, {"instruction": "a", "output": "b", "question": None}), "x").name == "alpaca"


def test_unknown_and_mixed_rows():
    with pytest.raises(DataError, match="no known format has the fields foo, bar"):
        detect(rows_of({"foo": 1, "bar": 2, "text": None}), "x")
    with pytest.raises(DataError, match="row 1 is of format alpaca, row 2 of question_answer"):
        detect(rows_of({"instruction": "a", "output": "b"}, {"question": "a", "answer": "b"}), "x")


USER = {"role": "user", "content": "Hi"}
PAIR = (USER,), ("Hello", "No")


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}),
        ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("preference", {"instruction": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("preference", {"prompt": [USER], "chosen": [assistant("Hello")], "rejected": [assistant("No")]}),
        ("preference", {"chosen": [USER, assistant("Hello")], "rejected": [USER, assistant("No")]}),
        (
            "preference",
            {
                "prompt": "Hi",
                "prompt_id": "a1",
                "chosen": [USER, assistant("Hello")],
                "rejected": [USER, assistant("No")],
                "messages": [USER, assistant("Hello")],
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            },
        ),
        (
            "code_ultrafeedback",
            {
                "instruction": "Hi",
                "preference": "readability",
                "models": ["a", "b", "c", "d"],
                "responses": [{"model": m, "response": text} for m, text in (("a", "So"), ("b", "Hello"), ("c", "?"), ("d", "No"))],
                "annotations": [{"model": m, "rating": rating} for m, rating in (("a", "3"), ("b", "4"), ("c", "N/A"), ("d", "1"))],
            },
        ),
    ],
)
def test_preference_formats(name, row):
    form = detect(rows_of(row), "x")
    assert (form.name, form.kind) == (name, "preference")
    example = form.convert(row)
    assert example.messages == PAIR[0]
    assert tuple(answer.messages for answer in example.answers) == tuple((assistant(text),) for text in PAIR[1])
    scores = {"code_ultrafeedback": (4.0, 1.0)}.get(name, (8.0, 3.0) if "score_chosen" in row else (None, None))
    assert tuple(answer.score for answer in example.answers) == scores


def test_a_transcript_keeps_its_earlier_turns():
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye"
    example = get("hh").convert({"chosen": f"{before}\n\nAssistant: Bye!", "rejected": f"{before}\n\nAssistant: No."})
    assert [(m["role"], m["content"]) for m in example.messages] == [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]


def test_conversations_that_part_earlier_keep_all_their_turns():
    more = ({"role": "user", "content": "Why?"}, assistant("Because"))
    example = get("preference").convert({"chosen": [USER, assistant("Hello"), *more], "rejected": [USER, assistant("No")]})
    assert example.messages == (USER,)
    assert [len(answer.messages) for answer in example.answers] == [3, 1]


def test_one_conversation_that_begins_the_other_is_a_pair_of_answers():
    more = ({"role": "user", "content": "Why?"}, assistant("Because"))
    example = get("preference").convert({"chosen": [USER, assistant("Hello"), *more], "rejected": [USER, assistant("Hello")]})
    assert [len(answer.messages) for answer in example.answers] == [3, 1]


GREETING = [assistant("Hello, how can I help?"), USER]
HUMAN = "\n\nHuman: Hi"


@pytest.mark.parametrize("prompt", [{"prompt": GREETING}, {}])
def test_a_conversation_that_the_assistant_begins_holds_its_prompt(prompt: dict[str, Any]) -> None:
    example = get("preference").convert({**prompt, "chosen": [*GREETING, assistant("A")], "rejected": [*GREETING, assistant("B")]})
    assert [*example.messages] == GREETING
    assert [answer.messages for answer in example.answers] == [(assistant("A"),), (assistant("B"),)]
    judged = get("feedback").convert({**prompt, "completion": [*GREETING, assistant("A")], "label": True})
    assert ([*judged.messages], judged.answers[0].messages) == (GREETING, (assistant("A"),))


@pytest.mark.parametrize("prompt", ["Hi", HUMAN, HUMAN + "\n\nAssistant:", "Human: Hi\n\nAssistant: "])
def test_transcripts_beside_their_prompt(prompt: str) -> None:
    row = {"prompt": prompt, "chosen": HUMAN + "\n\nAssistant: A", "rejected": HUMAN.lstrip() + "\n\nAssistant: B"}
    example = detect(rows_of(row), "x").convert(row)
    assert isinstance(example, Example)
    if prompt == HUMAN:  # an open question as plain text: nothing says that a transcript is meant
        assert example.messages[0]["content"] == HUMAN
        return
    assert [*example.messages] == [USER]
    assert [answer.messages for answer in example.answers] == [(assistant("A"),), (assistant("B"),)]


def test_a_prompt_that_is_a_transcript() -> None:
    prompt = f"{HUMAN}\n\nAssistant: Hello\n\nHuman: Go on\n\nAssistant:"
    turns = [USER, assistant("Hello"), {"role": "user", "content": "Go on"}]
    assert [*get("preference").convert({"prompt": prompt, "chosen": " A", "rejected": " B"}).messages] == turns
    assert [*get("feedback").convert({"prompt": prompt, "completion": " A", "label": 0}).messages] == turns
    written = {"prompt": "Write a talk", "chosen": f"{HUMAN}\n\nAssistant: A", "rejected": f"{HUMAN}\n\nAssistant: B"}
    assert [*get("preference").convert(written).messages] == [{"role": "user", "content": "Write a talk"}]


def test_margin_counts_as_the_difference_of_the_ratings():
    example = get("preference").convert({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "margin": "1.5"})
    assert [answer.score for answer in example.answers] == [1.5, 0.0]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Ho\n\nAssistant: B"}, "different prompts"),
        ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: ", "rejected": "\n\nHuman: Hi\n\nAssistant: B"}, "chosen answer is empty"),
        ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Hi\n\nAssistant: A "}, "are the same"),
        ("hh", {"chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"}, "no turn before"),
        ("hh", {"chosen": "So\n\nHuman: Hi\n\nAssistant: A", "rejected": "So\n\nHuman: Hi\n\nAssistant: B"}, "begin with a Human turn"),
        ("preference", {"prompt": "Hi", "chosen": "A", "rejected": " "}, "rejected answer is empty"),
        ("preference", {"prompt": "Hi", "chosen": "A", "rejected": "A"}, "are the same"),
        ("preference", {"prompt": " ", "chosen": "A", "rejected": "B"}, "'prompt' is empty"),
        ("preference", {"chosen": "A", "rejected": "B"}, "has no prompt: chosen and rejected are texts"),
        ("preference", {"chosen": "Q: x A: y", "rejected": "Q: x A: z"}, "give what both texts begin with there"),
        ("preference", {"prompt": "Ho", "chosen": [USER, assistant("A")], "rejected": [USER, assistant("B")]}, "prompt is not what"),
        ("preference", {"chosen": [USER, assistant("A")], "rejected": [{**USER, "content": "Ho"}, assistant("B")]}, "different prompts"),
        ("preference", {"prompt": "Hi", "chosen": 3, "rejected": "B"}, "must be a string or a list"),
        ("preference", {"prompt": "Hi", "chosen": "A", "rejected": "B", "margin": "big"}, "must be a number"),
        ("preference", {"prompt": "Hi", "chosen": [assistant("A"), USER], "rejected": "B"}, "begin and end with an assistant turn"),
        ("code_ultrafeedback", {"instruction": "Hi", "responses": [{"response": "A"}], "annotations": []}, "1 responses but 0"),
    ],
)
def test_bad_pairs(name, row, message):
    with pytest.raises(RowError, match=message):
        get(name).convert(row)


def test_equal_ratings_are_no_pair():
    row = {"instruction": "Hi", "responses": [{"response": "A"}, {"response": "B"}], "annotations": [{"rating": "3"}, {"rating": "3"}]}
    assert isinstance(get("code_ultrafeedback").convert(row), Filtered)


def test_unknown_format_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean alpaca"):
        get("alpacca")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a #### 1,234 \nmore", "1,234"),
        ("#### 1\n#### 2", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} end", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("nothing", None),
        ("####", None),
        ("Sure.\n\n#### Summary\nIt is so.", None),
        ("#### Step 1\nadd\n#### Result\nso \\boxed{3}", "3"),
        ("##### Notes\nnone", None),
        ("#### Work\n1+2\n#### 3", "3"),
        ("#### 3\nmore", "3"),
        ("#### \\frac{1}{2}\nmore", "\\frac{1}{2}"),
        ("so \\boxed{5} or \\boxed{6", "5"),
        ("\\boxed{6", None),
    ],
)
def test_final_answers(text: str, answer: str | None):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} and \\fbox{2}", "2"),
        ("\\boxed{\\boxed{3}} {4}", "3"),
        ("\\boxed {\\frac{1}{2}}", "\\frac{1}{2}"),
        ("$x = \\boxed 5$", "5"),
        ("\\boxed{1} or \\boxed 2", "2"),
        ("\\boxed 2 or \\boxed{1}", "1"),
        ("\\\\boxed{1", None),
    ],
)
def test_boxes_are_the_same_in_data_and_in_answers(text: str, answer: str | None):
    assert boxed(text) == final_answer(text) == answer
    assert answer is None or answers.final_answer(text) == answer


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("gsm8k_train.jsonl", "question_answer", 7473),
        ("gsm8k_test.jsonl", "question_answer", 1319),
        ("humaneval.jsonl.gz", "humaneval", 164),
        ("mts_dialog_train.csv", "mts_dialog", 1201),
        ("mts_dialog_val.csv", "mts_dialog", 100),
        ("tinyshakespeare.txt", "text", 1),
    ],
)
def test_real_files(file: str, name: str, count: int):
    rows = [row for row in read_rows(SourceSpec("s", (real(file),))) if isinstance(row, Row)]
    form = detect(rows[:64], file)
    examples = [form.convert(row.value) for row in rows]
    assert (form.name, len(examples)) == (name, count)
    if name == "question_answer":
        assert all(isinstance(e, Example) and e.answer for e in examples)


def test_every_format_states_what_it_needs():
    for form in formats().values():
        assert form.needs
        assert form.convert.__doc__


def test_a_sharegpt_turn_from_function_call_calls_its_tools():
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "sub", "arguments": '{"b": 2}'}]
    turns = [
        {"from": "human", "value": "?"},
        {"from": "function_call", "value": json.dumps(calls[0]), "weight": 0},
        {"from": "observation", "value": "1"},
        {"from": "function_call", "value": "<think>now both</think>\n" + json.dumps(calls)},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "2"},
    ]
    messages = get("sharegpt").convert({"conversations": turns}).messages
    first, second = (
        {"type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in [("add", {"a": 1}), ("sub", {"b": 2})]
    )
    assert messages[1] == {"role": "assistant", "content": "", "weight": 0.0, "tool_calls": [first]}
    assert messages[3] == {"role": "assistant", "content": "<think>now both</think>", "tool_calls": [first, second]}
    assert messages[5] == {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', ""),
        ("""{"name": "add", "arguments": '{"a": 1}'}""", ""),
        ("""<functioncall> {"name": "add", "arguments": '{"a": 1}'}""", ""),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', ""),
        ('Let me see.\n{"name": "add", "arguments": {"a": 1}}', "Let me see."),
        ('<think>a [b] {c}</think>{"name": "add", "arguments": {"a": 1}}', "<think>a [b] {c}</think>"),
    ],
)
def test_how_sharegpt_calls_are_written(value: str, said: str):
    turns = [{"from": "human", "value": "?"}, {"from": "function-call", "value": value}, {"from": "function-response", "value": "1"}]
    message = get("sharegpt").convert({"conversations": turns}).messages[1]
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert message["content"] == said
