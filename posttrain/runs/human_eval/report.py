"""What is said of judgements: rows of tables, JSON, and one HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from posttrain.evaluation.human.summary import Duel, Standing, Summary, Value
from posttrain.runs.comparison.page import STYLE, table
from posttrain.runs.comparison.verdict import between, number, p_value
from posttrain.runs.plain_json import finite

ARMS = ("arm", "preferred", "95 % interval", "wins", "ties", "rating", "its 95 % interval", "strength", "its 95 % interval")
DUELS = ("pair", "win rate", "95 % interval", "p (Holm)", "rating difference", "its 95 % interval", "its p (Holm)")
ALPHA = 0.05
MODELS = " This holds for these very models: with one run in an arm, nothing is known about another training run."
SEEDS = (
    "Where both arms of a pair have several runs, each item is answered by one of each, and intervals and p-values allow for how much runs "
    "differ as well as items, by Student's distribution."
)
Table = tuple[str, Sequence[str], list[tuple[str, ...]]]


def percent(value: float) -> str:
    """`62 %`; `-` for what is not known."""
    return "-" if math.isnan(value) else f"{100 * value:.3g} %"


def _shares(value: Value) -> str:
    """`54.1 to 70.2 %`."""
    return "-" if math.isnan(value.low) else f"{100 * value.low:.3g} to {100 * value.high:.3g} %"


def _numbers(value: Value) -> str:
    return "-" if math.isnan(value.low) else f"{value.low:.3g} to {value.high:.3g}"


def tables(summary: Summary) -> list[Table]:
    """Title, head and rows of each table."""
    made: list[Table] = [
        ("Arms", ARMS, [_standing(one) for one in summary.standings]),
        ("Pairs", DUELS, [_duel(one) for one in summary.duels]),
    ]
    if summary.strata:
        rows = [(part.name, str(part.items), *_standing(one)) for part in summary.strata for one in part.standings]
        made.append((f"By {summary.by}", ("stratum", "items", *ARMS), rows))
    return made


def _standing(one: Standing) -> tuple[str, ...]:
    return (
        one.arm, percent(one.win_rate.value), _shares(one.win_rate), str(one.wins), str(one.ties),
        f"{one.rating.value:.3g}", _numbers(one.rating), f"{one.strength.value:+.3g}", _numbers(one.strength),
    )  # fmt: skip


def _duel(one: Duel) -> tuple[str, ...]:
    return (
        f"{one.one} over {one.other}", percent(one.win_rate.value), _shares(one.win_rate), p_value(one.holm),
        f"{one.rating.value:+.3g}", _numbers(one.rating), p_value(one.rating_holm),
    )  # fmt: skip


def verdicts(summary: Summary) -> list[str]:
    """The pairs in words, then agreement and what stands first."""
    return [*(_verdict(one) for one in summary.duels), _agreement(summary), _position(summary)]


def _verdict(one: Duel) -> str:
    said = f"{percent(one.win_rate.value)} of the judgements, 95 % interval {_shares(one.win_rate)}, p {p_value(one.holm)}"
    scope = "" if one.methods else MODELS
    if one.holm < ALPHA:
        return f"{one.one} is preferred to {one.other} ({said}).{scope}"
    return f"Inconclusive: {one.one} and {one.other} are not shown to differ ({said}).{scope}"


def _agreement(summary: Summary) -> str:
    found = summary.agreement
    if found is None:
        return "One rater: nothing is known about agreement."
    if math.isnan(found.kappa):
        return f"All {found.raters} raters prefer the same everywhere: {found.name} is not defined."
    span = "-" if math.isnan(found.low) else between(found.low, found.high)
    return (
        f"Agreement of {found.raters} raters on {found.items} items: {found.name} {number(found.kappa)} (95 % interval {span}), "
        f"{percent(found.observed)} of pairs of judgements agree."
    )


def _position(summary: Summary) -> str:
    found = summary.position
    if math.isnan(found.p):
        return "Nothing was preferred, so there is nothing to say about the order of answers."
    word = "There is a bias for or against" if found.p < ALPHA else "No bias is shown for or against"
    return (
        f"{word} the answer shown first: it is preferred in {percent(found.first.value)} of {sum(found.counts)} judgements without a tie "
        f"(95 % interval {_shares(found.first)}, {percent(found.expected)} without bias, p {p_value(found.p)})."
    )


def notes(summary: Summary) -> list[str]:
    """How the numbers were made."""
    lines = [
        f"{summary.items} items, {len(summary.raters)} raters ({', '.join(summary.raters)}). A tie counts for all arms alike.",
        "Intervals of shares are Wilson's at the number of trials that the items' variance is worth; of ratings Student's, over items. "
        "p-values flip signs of items, adjusted by Holm for all pairs; intervals are not adjusted.",
        *([SEEDS] if any(one.methods for one in summary.duels) else []),
        "Strength is the Bradley-Terry log-odds against the average arm, with ties (Davidson) and an effect of the place shown; half an "
        "imagined judgement of each outcome keeps it finite, and its interval allows for several raters of an item.",
    ]
    if summary.strata:
        lines.append(f"Strata are by {summary.by}.")
    return lines


def as_json(summary: Summary) -> dict[str, Any]:
    """Everything, numbers that are not known as null."""
    plain: dict[str, Any] = finite({"verdict": verdicts(summary), **asdict(summary), "notes": notes(summary)})
    return plain


def page(summary: Summary, remarks: Sequence[tuple[str, str, str]]) -> str:
    """The whole page. remarks: rater, item and note of each note."""
    title = f"Human evaluation: {', '.join(one.arm for one in summary.standings)}"
    first, *others = verdicts(summary)
    parts = [f'<p class="verdict">{escape(first)}</p>', *(f"<p>{escape(line)}</p>" for line in others)]
    for name, head, rows in tables(summary):
        parts += [f"<h2>{escape(name)}</h2>", _bars(summary) if name == "Arms" else "", table(head, rows)]
    if remarks:
        parts += ["<h2>Remarks of raters</h2>", table(("rater", "item", "remark"), remarks)]
    parts.append('<div class="notes"><h2>Notes</h2>' + "".join(f"<p>{escape(note)}</p>" for note in notes(summary)) + "</div>")
    head_tag = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head_tag}</head><body><h1>{escape(title)}</h1>\n' + "\n".join(parts) + "</body></html>\n"
    )


def _bars(summary: Summary) -> str:
    """Win rates with their intervals, as a picture."""
    left, width, high = 220, 480, 34
    rows = []
    for place, one in enumerate(summary.standings):
        middle = 18 + high * place
        low, top, at = (left + width * value for value in (one.win_rate.low, one.win_rate.high, one.win_rate.value))
        name = one.arm if len(one.arm) <= 30 else one.arm[:29] + "…"
        rows.append(
            f'<text x="{left - 12}" y="{middle + 5}" text-anchor="end" font-size="14">{escape(name)}</text>'
            f'<line x1="{low:.1f}" x2="{top:.1f}" y1="{middle}" y2="{middle}" stroke="#111" stroke-width="2"/>'
            f'<circle cx="{at:.1f}" cy="{middle}" r="5" fill="#0072B2" stroke="#111"/>'
        )
    bottom = 12 + high * len(summary.standings)
    chance = left + width / len(summary.standings)
    ticks = "".join(
        f'<text x="{left + width * k / 4:.0f}" y="{bottom + 22}" text-anchor="middle" font-size="12">{25 * k} %</text>'
        f'<line x1="{left + width * k / 4:.0f}" x2="{left + width * k / 4:.0f}" y1="{bottom}" y2="{bottom + 6}" stroke="#111"/>'
        for k in range(5)
    )
    return (
        f'<figure role="img" aria-label="Share of preferences with 95 % intervals"><svg viewBox="0 0 740 {bottom + 30}" '
        f'width="740" font-family="system-ui, sans-serif"><line x1="{chance:.1f}" x2="{chance:.1f}" y1="2" y2="{bottom}" stroke="#888" '
        f'stroke-dasharray="5 4"/><line x1="{left}" x2="{left + width}" y1="{bottom}" y2="{bottom}" stroke="#111"/>{"".join(rows)}{ticks}'
        "</svg></figure>"
    )
