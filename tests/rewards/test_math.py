"""Mathematical answers: what is equal, and a thousand odd strings."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from reward_helpers import built, sample

from posttrain.rewards.mathematics import Math

SAME = [
    (r"So $\boxed{\frac{1}{2}}$.", "0.5"), ("It is 1/2", "0.5"), ("about 1,234 of them", "1234"), (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt2}{2}"),
    (r"\boxed{\text{so }\boxed{7}}", "7"), ("#### 1,000", "1000"), ("The answer is 12.", "12"), (r"\boxed{x+1}", "1+x"), (r"\boxed{\{2,1\}}", r"\{1,2\}"),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"), (r"\boxed{10^3}", "1000"), (r"\boxed{x=5}", "5"), ("first 3, then 5", "a long solution #### 5"),
    (r"\boxed{0.75}", r"We find $\boxed{\frac{3}{4}}$."), ("Paris. The answer is Paris", "paris"), (r"\boxed{12_5}", "12_{5}"), (r"\boxed{5\text{ cm}}", r"5 \mathrm{cm}"), (r"\boxed{5\text{ apples}}", "5"),
    (r"\boxed{10^{-8}}", r"\frac{1}{10^8}"), (r"\boxed{\frac{1}{20!}}", r"\frac{1}{19!\cdot20}"), ("Paris", "Paris"), ("(1, 2)", "(1, 2)"),
    (r"\sqrt{2}", r"\sqrt{2}"), (r"\boxed{3e8}", r"3\times 10^8"), (r"\boxed{3\cdot10^{8}\text{ m/s}}", "3e8"), ("<answer>1+x</answer>", "x+1"),
]  # fmt: skip
DIFFERENT = [
    (r"\boxed{(1,2)}", "(2,1)"), ("The answer is 6", "5"), (r"\boxed{-5}", "5"), ("", "5"), ("no number here", "5"), (r"\boxed{5", "4"), (r"\boxed{x^2}", "y^2"),
    ("The answer is cat", "act"), (r"\boxed{5, 6}", "5"), (r"\boxed{\frac{1}{2}}", "2"),
    (r"\boxed{12_5}", "12_3"), (r"\boxed{12}", "12_3"), (r"\boxed{0.0000004}", "0.0000001"), (r"\boxed{0.0}", "0.0000001"), (r"\boxed{0.0000001}", "10^{-8}"),
    (r"\boxed{\frac{1}{20!}}", r"\frac{1}{21!}"), (r"\boxed{5\text{ m}}", r"5\text{ cm}"), ("2+3", "5"),
]  # fmt: skip
VALUES = [
    ("#### 82", "82"), (r"\boxed{2^{10}}", "2^{10}"), (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"), (r"\boxed{2\cdot\sqrt{3}}", r"2\sqrt{3}"),
    (r"\boxed{2\pi}", r"2\pi"), (r"\boxed{\pi \cdot 2}", r"2\pi"), (r"\boxed{3\times 10^{8}}", "300000000"), (r"\boxed{50\%}", "50"),
    (r"\boxed{47+35=82}", "82"), (r"\boxed{-\frac{1}{2}}", "-0.5"), (r"\boxed{1+\sqrt{2}}", r"\sqrt{2}+1"),
    (r"\boxed{\frac{3}{2}+\frac{\sqrt{5}}{2}}", r"\frac{3+\sqrt5}{2}"), (r"\boxed{x=5}", "5"), (r"\boxed{3+2i}", "2i+3"),
    (r"\boxed{x^2+2x+1}", "(x+1)^2"), (r"\boxed{\frac{\pi}{4}}", r"\frac{1}{4}\pi"), (r"\boxed{90^\circ}", "90"),
    (r"\boxed{\{3,2\}}", r"\{2,3\}"), (r"\boxed{3,2}", r"\{2,3\}"), (r"\boxed{\{2,3\}}", "2,3"), (r"\boxed{(0,1)}", "(0,1)"), (r"\boxed{[0, 1/2)}", r"[0,\frac{1}{2})"),
    (r"\boxed{(-\infty,0)\cup(1,\infty)}", r"(-\infty, 0) \cup (1, \infty)"), (r"\boxed{\left(\frac12, 3\right)}", "(0.5,3)"),
    (r"\boxed{e^2}", "e^2"), (r"\boxed{\ln 2}", r"\ln 2"), (r"\boxed{\frac{\ln 8}{3}}", r"\ln 2"), ("The answer is 18 dollars.", "18"),
    ("#### 72 clips", "72"), ("The answer is 3 eggs", "3"), ("The answer is 624 pages.", "624"), ("The answer is 1,234 dollars", "1234"),
    ("#### 72 clips\n\nI hope this helps", "72"), (r"\boxed{42 dollars}", "42"), (r"\boxed{42\text{ dollars}}", "42"),
    ("The answer is 42!", "42"), ("The answer is approximately 42.", "42"), ("The answer is 42, since 40+2=42.", "42"),
    ("The answer is 42 (forty-two)", "42"), (r"\boxed{42}", "42 dollars"), ("The answer is that she has 18 eggs left.", "18"),
    ("The answer is -5 degrees", "-5"), ("The answer is $18$ dollars", "18"), (r"The answer is \frac{1}{2} cup", "1/2"),
    ("The answer is 5 cm", "5 cm"), ("The answer is 10 hours", "10"), ("The answer is 10 km/h", "10"),
    ("The answer is 42, because it is.", "42"), ("The answer is 50 percent", "50"), ("The answer is 5 m.", "5"),
    ("#### Step 1: add 2 and 3\nso we get 5", "5"), ("#### Step 1: add\n2+3 is 5\n#### Step 2: finish\nThe answer is 5", "5"),
]  # fmt: skip
LEFT_UNDONE = [
    ("#### 47+35", "82"), (r"\boxed{123*456}", "56088"), ("#### 24*60*60", "86400"), ("<answer>(44 + 19) * 35</answer>", "2205"),
    (r"\boxed{\binom{10}{3}}", "120"), (r"\boxed{\gcd(12,18)}", "6"), (r"\boxed{17 \mod 5}", "2"), (r"\boxed{\max(3,5)}", "5"),
    (r"\boxed{\frac{d}{dx}x^2}", "2x"), (r"\boxed{2^{10}}", "1024"), (r"\boxed{\sqrt{16}}", "4"), (r"\boxed{246/3}", "82"),
    ("246/3", "82"), (r"\boxed{\frac{246}{3}}", "82"), (r"\boxed{5!}", "120"), ("The answer is 5!", "120"), (r"\boxed{12 \cdot 3}", "36"),
    (r"\boxed{5}{}\boxed{3(4)}", "12"), (r"\boxed{\sin 30^\circ}", r"\frac12"), (r"\boxed{(0,1)}", r"\{0,1\}"),
    (r"\boxed{(2,3)}", r"\{2,3\}"), (r"\boxed{(3,2)}", r"\{2,3\}"), (r"\boxed{[0,1]}", "(0,1)"), (r"\boxed{(0,1]}", "(0,1)"),
    (r"\boxed{\{0,1\}}", "(0,1)"), (r"\boxed{\int_0^1 2x dx}", "1"), (r"\boxed{(47+35, 3)}", "(82,3)"), (r"\boxed{5!}", "5"),
    ("The answer is 5 or 6", "5"), ("The answer is not 42", "42"), ("The answer is 42 million", "42"), ("The answer is 42x", "42"),
    ("The answer is 5 cm", "5 m"), ("The answer is 5 apples and 6 pears", "5"), ("The answer is x = 5 + 1", "5"),
    ("The answer is at least 42", "42"), ("The answer is 42 and a half", "42"), (r"\boxed{7-3}", "4"),
    (r"\boxed{\frac{1}{2}+\frac{1}{3}}", r"\frac{5}{6}"), (r"\boxed{1/2+1/3}", "5/6"), (r"\boxed{\sqrt{2}\cdot\sqrt{3}}", r"\sqrt{6}"),
    (r"\boxed{\log_2 8}", "3"), (r"\boxed{|-5|}", "5"),
]  # fmt: skip
MONSTERS = [
    "{" * 3000 + "}" * 3000, "2^{2^{2^{99}}}", "10**10**10", "10^{10^{10}}", "99999999!", "9!!!!!!!", r"\frac{1}{" * 200 + "2" + "}" * 200,
    r"\sqrt{" * 300 + "2" + "}" * 300, r"\int_0^\infty e^{x^{x^x}}dx", r"\sum_{n=1}^{99999999} n!", r"\prod_{n=1}^{10^9} n^n", "(" * 2000, "x" * 50000,
    r"\begin{pmatrix}" + r"1&" * 500, r"\binom{10^9}{5\cdot10^8}", "9" * 5000, "1e999999999", r"\lim_{x\to0}\sin(1/x)^{x^{-99}}", "\\" * 3000, "$" * 999,
    r"x^{1000000}-1=(x-1)^{1000000}", r"(x+y)^{3000}", "\x00\ud800", "\u202e5", "__import__('os').system('touch /tmp/owned')", "lambda: 0", "0/0", r"\frac{1}{0}",
]  # fmt: skip
PIECES = [r"\frac", r"\boxed{", "{", "}", "^", "_", "$", r"\sqrt", r"\left(", r"\right]", "1", "22", "x", "y", "=", "+", r"\cdot", "%", "&", r"\\", ",", "!",
          r"\text{", "#", "####", "answer is", "\n", r"\pi", r"\infty", "<", r"\in", "|", "[", ")", "\u00e9", "/", "**", "0.5", "1,000", r"\begin{cases}"]  # fmt: skip


def odd_strings(count: int) -> list[str]:
    """Malformed LaTeX and worse; the same every time."""
    draw = random.Random(0)
    made = [rf"\boxed{{{monster}}}" for monster in MONSTERS] + [f"The answer is ${monster}$" for monster in MONSTERS]
    while len(made) < count:
        made.append("".join(draw.choice(PIECES) for _ in range(draw.randint(1, 40))))
    return made


def test_what_is_the_same() -> None:
    component = built("math")
    assert component.measure([sample(text, answer) for text, answer in SAME]) == [1.0] * len(SAME)
    assert component.measure([sample(text, answer) for text, answer in DIFFERENT]) == [0.0] * len(DIFFERENT)
    assert built("math", right=2.0, wrong=-1.0).measure([sample("5"), sample("4")]) == [2.0, -1.0]
    assert built("math", symbolic=False).measure([sample(r"\boxed{x+1}", "1+x")]) == [0.0]
    assert component.measure([sample("5", None)])[0].reason.startswith("no expected answer")


def test_values_count_whatever_the_words_and_expressions_left_to_carry_out_do_not() -> None:
    component = built("math")
    right = component.measure([sample(text, answer) for text, answer in VALUES])
    wrong = component.measure([sample(text, answer) for text, answer in LEFT_UNDONE])
    assert [case for case, value in zip(VALUES, right, strict=True) if value != 1.0] == []
    assert [case for case, value in zip(LEFT_UNDONE, wrong, strict=True) if value != 0.0] == []


@pytest.mark.slow
def test_a_thousand_odd_strings(reward_set: Any) -> None:
    timeout = 1.0
    strings = odd_strings(1000)
    rewards = reward_set(math=Math(timeout=timeout))
    rewards.start()
    draw = random.Random(1)
    answers = [draw.choice(["5", r"\frac{1}{2}", "x^2+1", r"\{1,2\}"]) for _ in strings]
    began = time.monotonic()
    measured = rewards.measure([sample(text, answer) for text, answer in zip(strings, answers, strict=True)])
    assert set(measured.raw[0].nan_to_num(0).tolist()) <= {0.0, 1.0}
    lost = measured.failures["math"]
    assert set(lost.kinds) <= {"took too long", "its process ended", "MemoryError"}, lost
    assert lost.count < 30  # monsters only
    assert time.monotonic() - began < 60 + lost.count * (timeout + 5)  # a new process after each takes a while on a busy machine
    for monster in (r"\boxed{10^{10^{10}}}", r"\boxed{" + "{" * 3000 + "}" * 3000 + "}", "9" * 100000):
        began = time.monotonic()
        rewards.measure([sample(monster, "x+1")])
        assert time.monotonic() - began < timeout + 5
