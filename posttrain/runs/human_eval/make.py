"""`posttrain human-eval make`: sheets for annotators, and the key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.human.blind import Item, Key, blind, to_json
from posttrain.evaluation.human.form import page
from posttrain.evaluation.human.sheet import Sheet, as_csv
from posttrain.evaluation.human.strata import Strata, sample, strata_of
from posttrain.runs import report as terminal
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.human_eval.answers import Pool, Question, check_artifacts, generated, pool
from posttrain.runs.human_eval.arms import Arm, read_arms
from posttrain.runs.quiet import quiet_libraries

KEY, SHEETS = "key.json", "sheets"


def make(
    *,
    to: str,
    runs: list[str] | None = None,
    study: str | None = None,
    n: int = 50,
    seed: int = 0,
    raters: int = 1,
    max_new_tokens: int = 256,
    device: str | None = None,
) -> None:
    """Write TO/sheets/rK.csv and rK.html for each rater, and TO/key.json.

    Args:
        to: folder for the sheets and the key.
        runs: folders of finished runs; those with the same config but for the seed are one arm.
        study: folder of a study or of a sweep, instead of runs.
        n: prompts on a sheet.
        seed: decides which prompts, which seed's answer, and all orders.
        raters: sheets, each in an order of its own.
        max_new_tokens: most tokens of an answer that is generated; those that runs kept are as they are.
        device: what generates; null = a GPU if there is one.

    Raises:
        UserError: with everything that is wrong, before a model is loaded.
    """
    _check(n=n, raters=raters, max_new_tokens=max_new_tokens, seed=seed)
    quiet_libraries()
    arms = read_arms(runs, study)
    folder = Path(to).expanduser().absolute()
    found = pool(arms)
    if found.kept is None:
        check_artifacts(arms)
    if n > len(found.questions):
        message = f"the runs have {len(found.questions)} held-out prompts in common"
        raise ConfigError(Problem(f"n={n}", message, f"n={len(found.questions)}, or more held-out examples that are answered"))
    prepare_folder(folder / SHEETS, key="to")
    items, strata = _items(arms, found, n=n, seed=seed, max_new_tokens=max_new_tokens, device=device)
    about = {"seed": seed, "n": n, "answers": "generated" if found.kept is None else "kept"}
    key, sheets = blind(items, [arm.name for arm in arms], by=strata.by, about=about, raters=raters, seed=seed)
    _write(folder, key, sheets)
    _show(folder, key, items, [*key.raters])


def _check(**given: int) -> None:
    problems = [
        Problem(f"{name}={value}", "expected an integer >= 1" if name != "seed" else "expected an integer >= 0")
        for name, value in given.items()
        if value < (0 if name == "seed" else 1)
    ]
    if problems:
        raise ConfigError(problems)


def _items(arms: Sequence[Arm], found: Pool, *, n: int, seed: int, max_new_tokens: int, device: str | None) -> tuple[list[Item], Strata]:
    """The chosen prompts with an answer of each arm, by a run of it that is drawn anew for each prompt."""
    draws = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED]))
    strata = strata_of([question.source for question in found.questions], [question.shown for question in found.questions])
    places = sample(strata, n, draws)
    questions = [found.questions[place] for place in places]
    writers = [[arm.runs[int(draws.integers(len(arm.runs)))] for arm in arms] for _ in questions]
    answers = _answers(questions, writers, found, max_new_tokens=max_new_tokens, device=device)
    items = [
        Item(
            _clean(question.shown), _clean(question.reference), tuple(_clean(answers[run, question.key]) for run in by),
            strata.of[place], tuple(map(str, by)),
        )
        for question, by, place in zip(questions, writers, places, strict=True)
    ]  # fmt: skip
    return items, strata


def _answers(
    questions: Sequence[Question], writers: Sequence[Sequence[Path]], found: Pool, *, max_new_tokens: int, device: str | None
) -> dict[tuple[Path, str], str]:
    """What each run says to the questions it was drawn for."""
    out: dict[tuple[Path, str], str] = {}
    for run in dict.fromkeys(run for by in writers for run in by):
        mine = [question for question, by in zip(questions, writers, strict=True) if run in by]
        if found.kept is not None:
            said = [found.kept[run][question.key] for question in mine]
        else:
            said = list(generated(run, mine, max_new_tokens=max_new_tokens, device=device))
        out |= {(run, question.key): answer for question, answer in zip(mine, said, strict=True)}
    return out


def _clean(text: str) -> str:
    """Without halves of characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _write(folder: Path, key: Key, sheets: Sequence[Sheet]) -> None:
    """The key and the sheets. Raises ConfigError rather than replace the key of other sheets."""
    text = to_json(key)
    if (folder / KEY).is_file() and (folder / KEY).read_text(encoding="utf-8") != text:
        raise ConfigError(Problem(f"to={folder}", "holds the key of other sheets, which could not be read without it", "another to=DIR"))
    write_atomic(folder / KEY, text)
    for rater, sheet in zip(key.raters, sheets, strict=True):
        write_atomic(folder / SHEETS / f"{rater}.csv", as_csv(sheet))
        write_atomic(folder / SHEETS / f"{rater}.html", page(sheet, file=f"{rater}.csv"))


def _show(folder: Path, key: Key, items: Sequence[Item], raters: Sequence[str]) -> None:
    console = terminal.console()
    counts = Counter(item.stratum for item in items)
    parts = "" if key.by == "nothing" else f", by {key.by}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    console.print(f"{len(items)} prompts{parts}; {len(key.arms)} answers to each, {key.about['answers']}", markup=False)
    console.print(f"for annotators, a CSV and a form each: {folder / SHEETS} ({', '.join(raters)})", markup=False)
    console.print(f"not for annotators: {folder / KEY}", markup=False)
    sheets = ",".join(str(folder / SHEETS / f"{rater}.csv") for rater in raters)
    console.print(f"then: posttrain human-eval score sheets=[{sheets}] key={folder / KEY}", markup=False, soft_wrap=True)
