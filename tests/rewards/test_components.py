"""Values of the components by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from reward_helpers import built, sample

from posttrain.errors import ConfigError
from posttrain.rewards.backends.base import Backend
from posttrain.rewards.base import Reward, Unscored
from posttrain.runs import options, targets
from posttrain.runs.signatures import read_signature

FILES = options.options(options.search_path(), "reward")
TOXIC = "stupid idiot shit " + "calm " * 2


def values(name: str, *texts: str, answer: str | None = "5", **keys: Any) -> list[float]:
    """What a component says of these answers."""
    return built(name, **keys).measure([sample(text, answer) for text in texts])


@pytest.mark.parametrize("file", FILES, ids=lambda option: option.name)
def test_every_option_builds_and_writes_out_its_keys(file: Any, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(**_): return 0.0\n")
    text = file.path.read_text().replace("${rollout.max_new_tokens}", "100")
    path = f"{tmp_path / 'f.py'}:f" if file.name == "function" else str(tmp_path)
    node = yaml.safe_load(text.replace("path: ???", f"path: {path}"))
    for backend in [default["backend"] for default in node.pop("defaults", []) if "backend" in default]:
        node["backend"] = yaml.safe_load((file.path.parent / "backend" / f"{backend}.yaml").read_text())
    package = re.match(r"# @package ([\w.]+)\n", text)
    assert package is not None
    nodes = {file.name: node} if package[1] == f"reward.{file.name}" else node
    for keys in nodes.values():
        assert isinstance(targets.build(keys), Reward)
        signature = read_signature(keys["_target_"])
        assert signature is not None
        assert set(keys) - {"_target_"} == set(signature.parameters)
        for name, parameter in signature.parameters.items():  # what a file says is the default, or says more than null
            assert (
                parameter.required
                or keys[name] == parameter.default
                or parameter.default is None
                or package[1] == "reward"
                or isinstance(keys[name], list)
            ), name


@pytest.mark.parametrize("name", ["openai", "local"])
def test_backends_build(name: str) -> None:
    text = (options.config_dir() / "reward" / "backend" / f"{name}.yaml").read_text().replace("url: ???", "url: http://x/v1")
    assert isinstance(targets.build(yaml.safe_load(text)), Backend)


def test_matching() -> None:
    assert values("exact_match", "The answer is 5.0", "6", "so 5 apples", "") == [1, 0, 1, 0]
    assert values("exact_match", "5", "it is 5", extract=False) == [1, 0]
    assert values("exact_match", "5", answer="long #### 5") == [1]
    assert values("numeric", "5.004", "5.006", "none", "9" * 400, absolute=0.005) == [1, 0, 0, 0]
    assert values("numeric", "101", "102", answer="100", relative=0.01) == [1, 0]
    assert all(isinstance(value, Unscored) for value in values("numeric", "7", "1" * 400, answer="1" * 400))
    assert values("numeric", "-0.5", answer=r"-\frac{1}{2}") == [1]
    assert values("choice", "B", "The answer is (b).", "(C)", "A dog", answer="B") == [1, 1, 0, 0]
    assert values("choice", "B", answer="(B)", right=3.0) == [3]
    for name in ("exact_match", "numeric", "choice"):
        assert math.isnan(values(name, "5", answer=None)[0])
    assert values("numeric", "5", answer="Paris")[0].reason == "the expected answer is no number: Paris"


def test_format() -> None:
    good = "<think>so</think>\n<answer>5</answer>"
    bad = [
        "5",
        "<answer>5</answer><think>so</think>",
        good + "x",
        "x" + good,
        good + good,
        "<think></think><answer>5</answer>",
        "<think>so</think><answer>5",
    ]
    bad += [
        "<think>a<answer>b</think></answer>",
        "<think>a</think> then <answer>5</answer>",
        "<think>a</think></think><answer>5</answer>",
        "",
    ]
    assert values("format", good, " " + good + "\n", *bad) == [1, 1] + [0] * len(bad)
    assert values("format", "so</think><answer>5</answer>", good, opened=["think"]) == [1, 0]
    assert values("format", "a: 5", "5", "a: 5 b", tags=[], pattern=r"a: \d", right=0.5, wrong=-1.0) == [0.5, -1, -1]
    assert values("format", good, good.replace("5", "x"), pattern=r".*<answer>\d</answer>") == [1, 0]


def test_a_pattern_without_end_costs_its_answer(reward_set: Any) -> None:
    rewards = reward_set(format=built("format", tags=[], pattern="(a+)+b", timeout=0.5))
    raw = rewards.measure([sample("aab"), sample("a" * 40), sample("c")]).raw[0].tolist()
    assert (raw[0], math.isnan(raw[1]), raw[2]) == (1, True, 0)


def test_lengths() -> None:
    length = built("length", target=100, tolerance=10, over=1.0, under=0.5)
    assert [length.of(n) for n in (100, 90, 110, 120, 60, 0, 500)] == [0, 0, 0, -0.1, -0.15, -0.45, -1]
    assert values("length", "ab cd", target=1, unit="words") == [-1]
    assert values("length", "abcd", target=2, unit="characters", over=0.25) == [-0.25]
    overlong = built("overlong", max_new_tokens=20480, cache=4096)  # DAPO: expected length 16,384
    assert [overlong.of(n) for n in (10, 16384, 18432, 20480, 20481)] == [0, 0, -0.5, -1, -1]
    assert built("overlong", max_new_tokens=20480).cache == 4096
    # 6 trigrams, 3 of them different; none; too short
    assert values("repetition", "a b c a b c a b", "a b c d", "a b") == [-0.5, 0, 0]


def test_language() -> None:
    assert values("language", "hello", "\u043f\u0440\u0438\u0432\u0435\u0442", "ab\u4f60\u597d", "42 + 1", "") == [1, 0, 0.5, 1, 1]
    assert values("language", "\u3053\u3093\u6f22", scripts=["japanese"]) == [1]
    assert values("language", "xin ch\u00e0o b\u1ea1n", "xin chao ban", diacritics=0.2) == [1, 0]


HEURISTIC = [
    ("a calm and useful answer to it", {}, 1.0),
    (TOXIC, {}, 1 - 0.5 * 0.6),  # 3 of 5 words are listed; 4 of 5 are different
    ("stupid but this is fine", {}, 1.0),  # 1 of 5: below 0.3
    ("na " * 10, {}, 1 - 0.1 * (0.5 - 0.1)),
    ("stupid " * 10, {}, 1 - 0.5 - 0.1 * 0.4),
    ("short", {}, 1.0),
    ("short", {"length_weight": 0.2}, 0.8),
    ("word " * 201, {"length_weight": 0.2}, 1 - 0.2 - 0.1 * (0.5 - 1 / 201)),
    ("", {"length_weight": 0.2}, 0.8),
    ("foo bar baz qux " * 2, {"toxic_words": ["foo", "bar"], "toxic_weight": 4.0}, 0.0),  # the floor
]


@pytest.mark.parametrize(("text", "keys", "expected"), HEURISTIC)
def test_heuristic(text: str, keys: dict[str, Any], expected: float) -> None:
    assert values("heuristic", text, **keys) == [pytest.approx(expected)]


def test_trajectory() -> None:
    steps = {"meta": {"steps": [3, "7", 12]}}
    trajectory = built("trajectory")
    texts = ["1 + 2 = 3\n3 + 4 = 7\n7 + 5 = 12", "1 + 2 = 3\nhm\n\nso 12", "12", "it is 7\nno, 3\nso 11", ""]
    found = trajectory.measure([sample(text, "12", **steps) for text in texts])
    assert found == pytest.approx([1, 0.5 + 0.5 * 2 / 3, 0.5 + 0.5 / 3, 0.5 / 3, 0])
    assert trajectory.measure([sample("12", "12"), sample("3", None, **steps)]) == [1, pytest.approx(1 / 3)]
    assert math.isnan(trajectory.measure([sample("12", None)])[0])
    assert built("trajectory", step_weight=0.2, separator=";").measure([sample("3;7;12", "13", **steps)]) == [pytest.approx(0.2)]


TEACHER = [  # reply, meta, what is not 1
    ("What do you get when you take 2 from 7?", {}, {}),
    ("It is 5.", {}, {"guidance": 0.0}),
    ("The answer is 4. What do you think?", {}, {"correctness": 0.0}),
    ("Numbers are nice.", {}, {"guidance": 0.5}),
    ("Add them. That makes 5.", {"reveal": True}, {}),
    ("5", {"reveal": True}, {"guidance": 0.5}),
    ("Add them. That makes 6.", {"reveal": True}, {"correctness": 0.0}),
    ("Think about beer. How many?", {}, {"safety": 0.0}),
    ("What is your address?", {}, {"safety": 0.0}),
    ("Try to write to me@school.org", {}, {"safety": 0.0}),
    ("Which one, stupid?", {}, {"respect": 0.0}),
    ("I can't help with that. How many?", {}, {"refusal": 0.0}),
    ("I can't help with that, but I can help you find a game.", {"refuse": True}, {}),
    ("I won't.", {"refuse": True}, {"refusal": 0.5}),
    ("Sure!", {"refuse": True}, {"refusal": 0.0}),
    ("why? " * 200, {}, {"format": 2 / 3}),
]


@pytest.mark.parametrize(("reply", "meta", "lost"), TEACHER)
def test_teacher(reply: str, meta: dict[str, Any], lost: dict[str, float]) -> None:
    component = built("teacher", shortest=0)
    reply_to = sample(reply, meta=meta, prompt=({"role": "user", "content": "And this one?"},))  # of which a reply can name nothing
    found = component.judge(reply_to)
    assert {name: value for name, value in found.items() if value != 1} == lost
    weights = {name: component.weights[name] for name in found}
    expected = sum(weights[name] * value for name, value in found.items()) / sum(weights.values())
    assert component.measure([reply_to]) == [pytest.approx(expected)]


GOOD = "What do you get when you count on from 2, three times?"


@pytest.mark.parametrize("meta", [{}, {"reveal": True}, {"refuse": True}])
@pytest.mark.parametrize("answer", ["5", None])
def test_a_reply_that_says_nothing_is_no_good_teacher(answer: str | None, meta: dict[str, Any]) -> None:
    teacher = built("teacher")
    trivial = ["", "ok?", "ok? " * 40, "hint hint?", "I can't instead", "2?"]
    best = "I can't help with that, but we could look at 2 other sums." if meta.get("refuse") else f"{GOOD} The answer is 5."
    (good,) = teacher.measure([sample(best if meta else GOOD, answer, meta=meta)])
    assert good == 1
    assert max(teacher.measure([sample(text, answer, meta=meta) for text in trivial])) < 0.9


def test_a_reply_counts_by_what_it_says_of_the_request() -> None:
    found = built("teacher").judge(sample("What do you think we could try at first?"))  # of nothing that was asked
    assert (found["correctness"], found["guidance"]) == (0.5, 0.5)
    found = built("teacher").judge(sample("Where is 2?"))
    assert (found["correctness"], found["guidance"]) == (3 / 8, 3 / 8)
    assert found["format"] == pytest.approx(2 / 3)
    assert built("teacher").judge(sample(GOOD)) == dict.fromkeys(found, 1)


def test_teacher_weights() -> None:
    assert built("teacher", weights={"respect": 1.0}).measure([sample("you idiot"), sample("hello")]) == [0, 1]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("overlong", {"max_new_tokens": 10, "cache": 11}), ("language", {"scripts": ["elvish"]}), ("format", {"tags": []}), ("format", {"pattern": "("}),
        ("teacher", {"weights": {"charm": 1.0}}), ("teacher", {"weights": {}}), ("reward_model", {"path": "/nowhere"}), ("length", {"target": 0}),
        ("repetition", {"ngram": 0}), ("function", {"path": "nowhere"}), ("function", {"path": "nowhere.to:fn"}), ("function", {"path": "nowhere.py:fn"}),
        ("function", {"path": "json:nothing"}),
    ],
)  # fmt: skip
def test_mistakes_are_named(name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        built(name, **keys)


def test_a_function_is_checked_without_running_it(user_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = user_file(
        "open('ran', 'w')\ntry:\n    from json import dumps as fn\nexcept ImportError:\n    fn = None\nasync def slow(): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "pack" / "mod.py").write_text("def fn(): pass\n")
    for path in (f"{file}:fn", "mine.py:fn", "mine:fn", "pack.mod:fn"):
        built("function", path=path)
    for path in (f"{file}:slow", "mine:dumps", "pack.mod:other", "pack.none:fn"):
        with pytest.raises(ConfigError):
            built("function", path=path)
    user_file("def fn(:\n", "broken.py")
    with pytest.raises(ConfigError, match=r"broken\.py:1: is no Python"):
        built("function", path="broken.py:fn")
    assert not (tmp_path / "ran").exists()


def test_a_function_gets_what_it_needs(user_file: Any, reward_set: Any) -> None:
    text = "def fn(prompt, completion, answer, meta, scale=1):\n    return scale * (len(prompt[0]['content']) + len(completion) + int(answer) + meta['x'])\n"
    file = user_file(text)
    rewards = reward_set(mine=built("function", path=f"{file}:fn", options={"scale": 2}))
    assert rewards.measure([sample("abc", "5", meta={"x": 0.5})]).raw.tolist() == [[2 * (len("How much is 2 + 3?") + 3 + 5 + 0.5)]]
    wrong = reward_set(mine=built("function", path=f"{file}:fn", options={"scal": 2}))
    with pytest.raises(ConfigError, match="scal"):
        wrong.start()
