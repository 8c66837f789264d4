"""The verdict in words."""

from __future__ import annotations

import math

from posttrain.runs.comparison.analyse import ALPHA, MOST_SEEDS, POWER, Analysis, Pair, turned


def number(value: float) -> str:
    """Four significant digits; `-` for what is not known."""
    return "-" if math.isnan(value) else f"{value + 0.0:.4g}"  # no negative zero


def p_value(value: float) -> str:
    """`0.012`, `<0.0001`."""
    return "-" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"


def between(low: float, high: float) -> str:
    """An interval in words, to three digits of its width."""
    width = high - low
    if not (math.isfinite(width) and width > 0):
        return f"{number(low)} to {number(high)}"
    places = min(12, max(0, 2 - math.floor(math.log10(width))))
    return " to ".join(f"{round(end, places) + 0.0:.{places}f}" for end in (low, high))


def verdicts(analysis: Analysis) -> list[str]:
    """The headline first; with more than two arms then a line for each pair with the reference, the best first."""
    if len(analysis.arms) == 1:
        (arm,) = analysis.arms
        return [f"{arm.name}: {number(arm.mean)} (95 % interval {between(arm.low, arm.high)}). There is no other arm to compare it with."]
    pairs = [pair for place in analysis.order if (pair := analysis.against(place)) is not None]
    lines = [of_pair(analysis, pair) for pair in pairs]
    return lines if len(pairs) == 1 else [headline(analysis, pairs), *lines]


def headline(analysis: Analysis, pairs: list[Pair]) -> str:
    """What holds for the reference against all others."""
    name = analysis.arms[analysis.reference].name
    better = [pair for pair in pairs if kind(pair) == "different" and gains(analysis, turned(pair))]
    worse = [pair for pair in pairs if kind(pair) == "different" and gains(analysis, pair)]
    if len(better) == len(pairs):
        return f"{name} is better than every other arm."
    if not better and not worse:
        return f"No arm is shown to differ from {name}."
    parts = [f"is better than {len(better)} of {len(pairs)} other arms"] if better else []
    return f"{name} {' and '.join([*parts, *([f'is worse than {len(worse)}'] if worse else [])])}."


def kind(pair: Pair) -> str:
    """different, equivalent, inconclusive, or unknown where nothing could be tested."""
    different, alike = pair.adjusted
    if math.isnan(different):
        return "unknown"
    return "different" if different < ALPHA else "equivalent" if alike < ALPHA else "inconclusive"


def gains(analysis: Analysis, pair: Pair) -> bool:
    """Whether the first of the pair has the better mean."""
    return (pair.difference < 0) == analysis.lower and pair.difference != 0


def of_pair(analysis: Analysis, pair: Pair) -> str:
    """One pair, the better arm first."""
    best = pair if gains(analysis, pair) else turned(pair)
    one, other = analysis.arms[best.one].name, analysis.arms[best.other].name
    words = {"different": _different, "equivalent": _equivalent, "inconclusive": _inconclusive, "unknown": _unknown}
    return words[kind(pair)](analysis, best, one, other) + _scope(pair)


def _different(analysis: Analysis, pair: Pair, one: str, other: str) -> str:
    low, high = (pair.low, pair.high) if pair.difference > 0 else (-pair.high, -pair.low)
    text = f"{one} is better than {other} by {number(abs(pair.difference))} (95 % interval {between(low, high)}, p {p_value(pair.holm)})"
    if high < analysis.smallest:
        return f"{text}, less than the smallest difference that matters ({number(analysis.smallest)})."
    if low < analysis.smallest:
        return f"{text}; it may be less than what matters ({number(analysis.smallest)})."
    return f"{text}."


def _equivalent(analysis: Analysis, pair: Pair, one: str, other: str) -> str:
    return (
        f"{one} and {other} are equivalent within {number(analysis.smallest)}: they differ by {number(pair.difference)} "
        f"(90 % interval {between(pair.close_low, pair.close_high)}, p {p_value(pair.equivalence_holm)})."
    )


def _inconclusive(analysis: Analysis, pair: Pair, one: str, other: str) -> str:
    text = (
        f"Inconclusive: {one} and {other} differ by {number(pair.difference)} "
        f"(95 % interval {between(pair.low, pair.high)}, p {p_value(pair.holm)})"
    )
    return f"{text}; {_wanted(analysis, pair)}."


def _wanted(analysis: Analysis, pair: Pair) -> str:
    """What would have shown the smallest difference that matters."""
    count = len(analysis.pairs)
    matters = f"a difference of {number(analysis.smallest)} with {POWER:.0%} probability{f', as one of {count} pairs' * (count > 1)}"
    if pair.scope != "methods":
        return "several seeds an arm are needed"
    if pair.seeds_needed is None:
        more = "" if analysis.examples is None else f" on {analysis.examples} examples"
        return f"not even {MOST_SEEDS} seeds an arm{more} would have shown {matters}"
    present = f"the present ones had {pair.power:.0%}" if pair.power < POWER else "as many as there are, or fewer"
    return f"about {pair.seeds_needed} seeds an arm would have shown {matters} ({present})"


def _unknown(analysis: Analysis, pair: Pair, one: str, other: str) -> str:
    return (
        f"No verdict: {one} and {other} differ by {number(pair.difference)}, and there is nothing to test by, for want of seeds, of scores "
        "of single examples, or of any spread: run more seeds, or posttrain eval on both."
    )


def _scope(pair: Pair) -> str:
    if pair.scope != "models":
        return ""
    return " This holds for these very models: with one seed in an arm, nothing is known about another training run."
