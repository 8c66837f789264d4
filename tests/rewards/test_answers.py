"""Final answers: what is found, what is the same, and that nothing a model writes breaks or slows it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.agreement import agrees, gives, same_value
from posttrain.rewards.answers import final_answer, same_answer
from posttrain.rewards.choices import choice_letter
from posttrain.rewards.forms import brackets, in_value_form

FOUND = [
    (r"so \boxed{\frac{1}{2}} ok", r"\frac{1}{2}"),
    (r"\boxed{1} and then \boxed{2}", "2"),
    (r"\boxed{1} then \boxed{2", "1"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{a{b{c}d}e}", "a{b{c}d}e"),
    (r"\boxed 5", "5"),
    (r"\fbox{7}", "7"),
    (r"\boxed{4} #### 5", "4"),
    ("x = 3\n#### 1,234\nbye 9", "1,234"),
    ("#### 1\n#### 2", "2"),
    ("#### 12\nthe answer is 13", "12"),
    ("The answer is 42.", "42"),
    ("The answer is 3.5. I hope this helps.", "3.5"),
    ("The answer is 1. No, the answer is 2.", "2"),
    ("**Answer:** 42", "42"),
    ("The answer is **B**", "B"),
    ("Final Answer: Paris", "Paris"),
    ("we get 7 - 3 = 4", "4"),
    ("it is -3", "-3"),
    ("it is \u22123", "-3"),
    ("5-3", "3"),
    ("costs $1,234.50!", "1,234.50"),
    ("Thus 1/2", "1/2"),
    (r"it is \frac{1}{2}", r"\frac{1}{2}"),
    (r"it is \dfrac{1}{2} m", r"\dfrac{1}{2}"),
    (r"it is \frac12.", r"\frac12"),
    ("about 1e-3", "1e-3"),
    (r"so it is $3 \times 10^{8}$ m/s", r"3 \times 10^{8}"),
    ("so 5 - 3 x 10^2", "3 x 10^2"),
    ("12 * 10^3 = 12000", "12000"),
    ("<think>1</think><answer>B</answer>", "B"),
    ("<answer>x+1</answer> for 3 reasons", "x+1"),
    ("<answer>The answer is (1, 2).</answer>", "(1, 2)"),
    ("<answer>1</answer> <answer>2", "1"),
    ("The answer is 42. I double-checked that this answer is correct.", "42"),
    ("Which answer is correct? The answer is 7.", "7"),
    ("The statement in the answer is wrong", "wrong"),
    ("The answer is therefore 42.", "42"),
    ("The answer isn't 5. It is 6.", "6"),
    ("no idea", None),
    ("", None),
    ("####", None),
    ("#### Step 1: add 2 and 3\nso we get 5", "5"),
    ("#### Step 1: add\n2+3 is 5\n#### Step 2: finish\nThe answer is 5", "5"),
    ("#### 72 clips\n\nI hope this helps", "72 clips"),
    ("The answer is 42!", "42"),
    (r"\boxed{}", None),
]


@pytest.mark.parametrize(("text", "answer"), FOUND)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


SAME = [
    ("1,234", "1234"),
    ("1,234,567.5", "1234567.50"),
    (r"1{,}234", "1234"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"-\frac12", "-.5"),
    (r"\dfrac{3}{4}", "3/4"),
    ("2/4", "1/2"),
    ("1e3", "1000"),
    ("3e8", "300,000,000"),
    ("3e8", r"3\times 10^8"),
    (r"$3.0 \cdot 10^{8}$", "300000000"),
    ("-1.5 x 10^-3", "-0.0015"),
    ("3 \u00d7 10\u2078", "3*10^8"),
    (r"30\times10^{7}", "3E+8"),
    ("42.", "42"),
    ("+7", "7"),
    ("$42$", "42"),
    (r"\$42", "42"),
    (r"\(42\)", "42"),
    ("50%", "50"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    ("\u22125", "-5"),
    ("007", "7"),
    ("Paris", "paris."),
    (r"\text{Paris}", "Paris"),
    ("(1, 2)", "(1,2)"),
    (r"\left(1,\! 2\right)", "(1,2)"),
    ("(B)", "b"),
    ("**B**", "B"),
    ("x = 5", "x=5"),
]
DIFFERENT = [
    ("1,2", "12"),
    ("3e8", "3e7"),
    ("3e8", "3e^8"),
    (r"\frac{1}{2} \times 10^3", "0.0005"),
    (r"1 / 2 \times 10^3", "0.0005"),
    (r"1/2 \times 10^3", "0.0005"),
    (r"2^3 \times 10^2", "2^{3e2}"),
    (r"3 \times 10^{2.5}", "3e2"),
    (r"3 \times 10^8", "8"),
    ("1,23", "123"),
    ("50%", "0.5"),
    ("42 apples", "42"),
    ("0.333", "1/3"),
    ("x = 5", "5"),
    ("-5", "5"),
    ("5", "5,000"),
    ("1/0", "2/0"),
    ("nan", "0"),
    ("", ""),
    (".", "."),
    ("Paris", "Pari"),
    ("1e999", "5"),
    ("9" * 5000, "9" * 4999),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: str, b: str) -> None:
    assert not same_answer(a, b)
    assert not same_answer(b, a)


AGREE = [
    ("18 dollars", "18"),
    ("72 clips", "72"),
    ("1,234 dollars", "1234"),
    (r"42\text{ dollars}", "42"),
    ("$18$ dollars", "18"),
    ("approximately 42", "42"),
    ("42, since 40+2=42", "42"),
    ("42 (forty-two)", "42"),
    ("that she has 18 eggs left", "18"),
    ("-5 degrees", "-5"),
    (r"\frac{1}{2} cup", "0.5"),
    ("42", "42 dollars"),
    ("18 dollar", "18 dollars in total"),
    ("10 km/h", "10"),
    ("5 m", "5 m"),
    ("2/4", "1/2"),
    ("4/2", "4/2"),
]
DISAGREE = [
    ("5 cm", "5 m"),
    ("5 or 6", "5"),
    ("5 apples and 6 pears", "5"),
    ("not 42", "42"),
    ("at least 42", "42"),
    ("42 million", "42"),
    ("42 and a half", "42"),
    ("42x", "42"),
    ("42 x", "42"),
    ("x = 42", "42"),
    ("5!", "5"),
    ("2 pi", "2"),
    ("246/3", "82"),
    (r"\frac{246}{3}", "82"),
    ("18 clips", "18 dollars"),
]


@pytest.mark.parametrize(("found", "expected"), AGREE)
def test_a_number_among_words_agrees(found: str, expected: str) -> None:
    assert agrees(found, expected)
    assert gives(rf"\boxed{{{found}}}", expected)


@pytest.mark.parametrize(("found", "expected"), DISAGREE)
def test_a_number_that_words_or_operations_change_does_not(found: str, expected: str) -> None:
    assert not agrees(found, expected)
    assert not gives(rf"\boxed{{{found}}}", expected)


LETTERS = [
    ("B", "B"),
    ("b", "B"),
    (" C. because", "C"),
    ("(A) since", "A"),
    ("**B**", "B"),
    ("The answer is (C).", "C"),
    ("The answer is A, not B", "A"),
    ("Answer: D", "D"),
    ("the answer is option B", "B"),
    (r"so \boxed{c}", "C"),
    (r"\boxed{\text{D}}", "D"),
    ("I pick (B)", "B"),
    ("\u0110\u00e1p \u00e1n: B", "B"),
    ("\u0110\u00e1p \u00e1n \u0111\u00fang l\u00e0 C", "C"),
    ("maybe (A) or (B)", None),
    ("A dog is an animal", None),
    ("the answer is Berlin", None),
    ("<answer> (b) </answer>", "B"),
    ("The answer is a bit tricky. It is (C).", "C"),
    ("The correct answer is a chemical reaction", None),
    ("Answer: e.g. option D", None),
    ("the answer is b\nbecause", "B"),
    ("answer: (d) since", "D"),
    ("Because", None),
    ("", None),
    ("A) 3\nB) 4\n\nThe correct option is B.", "B"),
    ("A. 12 is too small.\nB. 15 fits, so B is right.", "B"),
    ("**A** is wrong. **B** is correct.", "B"),
    ("(A) is wrong, (B) is right", "B"),
    ("(A) is wrong, it is (B)", "B"),
    ("Answer: A, B, C, D", None),
    ("The answer is A or B", None),
    ("The answer is (A) and (C).", None),
    ("A is right and B is right", None),
    ("A) 3\nB) 4", None),
    ("Answer:\nB", "B"),
    ("**Answer:**\n\nB", "B"),
    ("The answer is:\n\nB", "B"),
    ("<answer>B. Paris</answer>", "B"),
    ("<answer>B) Paris</answer>", "B"),
    (r"\boxed{B. Paris}", "B"),
    (r"\boxed{B: Paris}", "B"),
    (r"\boxed{A, B}", None),
    (r"\boxed{A and B}", None),
    ("<answer>A or B</answer>", None),
    ("The answer is $B$.", "B"),
    (r"The answer is \(B\).", "B"),
    (r"The answer is \textbf{B}", "B"),
    ("The correct option is B.", "B"),
    ("I choose B.", "B"),
    ("I'd go with (D).", "D"),
    ("The correct answer is not A. The answer is B", "B"),
    ("The answer is A, which rules out B", "A"),
    ("B. Paris", "B"),
    ("A) 3 B) 4 C) 5", None),
    ("A. 3, B. 4", None),
    ("(A) 3 (B) 4\n", None),
    ("B) because C) is too small", "B"),
    ("A) because B is wrong", "A"),
    ("A. Paris, because (B) is in Germany", "A"),
    ("A. The process described in (B) needs light.", "A"),
    ("A) Hepatitis B. It is viral", "A"),
    ("A. This follows from B.", "A"),
    ("**A.** Both (B) and (C) are too small", "A"),
    ("(A) since (B) would be larger", "A"),
    ("I choose a dog", None),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_choice_letter(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@pytest.mark.parametrize("answer", ["Paris", "yes", "x+1", "(1, 2)", r"\sqrt{2}", "$x^2+1$", "3, 4"])
def test_the_expected_answer_alone_gives_it(answer: str) -> None:
    assert gives(answer, answer)
    assert gives(f" {answer}.\n", answer)
    assert gives(f"<answer>{answer}</answer>", answer)
    assert not gives(f"{answer} or not", answer)


def test_letters_are_those_of_the_question() -> None:
    assert choice_letter("The answer is E") == "E"
    assert choice_letter("The answer is E", letters="ABCD") is None


JUNK = st.text(alphabet=st.sampled_from(list("\\{}boxedfrac#$%()[].,-/ 0123456789answeri:s\n\u0663\u00b2\ufffd")), max_size=80) | st.text()


@given(JUNK, JUNK)
def test_nothing_raises_and_comparing_is_symmetric(a: str, b: str) -> None:
    found = final_answer(a)
    assert found is None or found
    assert choice_letter(a) in {None, *"ABCDE"}
    assert same_answer(a, b) == same_answer(b, a)
    assert same_value(a, b) == same_value(b, a)
    assert in_value_form(a, b) in {True, False}
    assert brackets(a) == brackets(a)


@given(st.integers(), st.integers(min_value=0, max_value=10**6))
def test_numbers_equal_themselves_however_written(whole: int, decimals: int) -> None:
    plain = f"{whole}.{decimals:06d}"
    grouped = f"{whole:,}.{decimals:06d}"
    assert same_answer(plain, grouped)
    assert same_answer(final_answer(f"Thus \\boxed{{{grouped}}}.") or "", plain)
    assert same_answer(final_answer(f"so it is {plain}") or "", plain)
    assert not same_answer(plain, f"{whole + 1}.{decimals:06d}")


@given(st.text(alphabet="ab1 {}", max_size=30).filter(lambda t: _balanced(t) and t.strip()))
def test_boxed_content_comes_back_whole(content: str) -> None:
    assert final_answer(f"x \\boxed{{{content}}} y") == content.strip()


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


@pytest.mark.parametrize(
    "piece",
    [
        "A) ",
        "A, ",
        "A is ",
        "(A) ",
        "I choose ",
        " or ",
        "#### ab\n",
        "5 ab ",
        "=",
        "!",
        "|",
        "\\cdot ",
        "10^",
        "\\boxed{",
        "}",
        "{",
        "1",
        "1,",
        " ",
        "answer is ",
        "#",
        "\\text{",
        "\\frac{",
        "(",
        "1e",
        "1/",
        "\\boxed ",
        "$",
        "**",
        "\\",
    ],
)
def test_time_is_linear(piece: str) -> None:
    """A quadratic rule would take minutes on these 300,000 characters; ten times the usual time is allowed."""
    text = piece * (300_000 // len(piece))
    start = time.perf_counter()
    final_answer(text)
    same_answer(text, text + "1")
    agrees(text, "5")
    in_value_form(text[:30_000], "5"), brackets(text)
    choice_letter(text)
    assert time.perf_counter() - start < 5.0
