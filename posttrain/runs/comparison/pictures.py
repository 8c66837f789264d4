"""The pictures of a comparison, by name, each with what a reader who cannot see it is told."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from posttrain.runs.comparison.analyse import Analysis
from posttrain.runs.comparison.costs import Curve, equal
from posttrain.runs.comparison.drift import Drift
from posttrain.runs.comparison.forgetting import Change
from posttrain.runs.comparison.ink import BACK, BAND, INK, RC, SOFT, dress, labels, new_figure, style
from posttrain.runs.comparison.report import Report
from posttrain.runs.plots import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.1
GAP = 0.045  # between arms that cost the same, as a part of it
WIDE = 20.0  # times: a range of costs from which on their axis is logarithmic
Drawn = dict[str, tuple["Figure", str]]


def pictures(report: Report) -> Drawn:
    """All that there is something to draw for, in the order of the page."""
    from matplotlib import rc_context

    analysis = report.analysis
    with rc_context(RC):
        drawn: Drawn = {"quality": (means(analysis), f"Mean {analysis.metric} of each arm, with 95 % intervals; small marks are runs")}
        if analysis.pairs:
            words = f"Differences to {analysis.arms[analysis.reference].name} with 95 % intervals; grey: less than what matters"
            drawn["differences"] = differences(analysis), words
        drawn["pareto"] = front(report), front_words(report)
        for name, words in (("flops", "floating-point operations"), ("hours", "hours of training")):
            title = f"{analysis.metric} over {words}, a line a run, its end marked; ticks across: a stage ended"
            drawn[f"quality_over_{name}"] = over_cost(analysis, report.curves, name, words), title
        if any(report.drifts):
            drawn["reward_over_kl"] = over_kl(report.drifts), KL_WORDS
        for metric, name in files_of([change.metric for change in report.changes]).items():
            some = [change for change in report.changes if change.metric == metric]
            drawn[f"change_{name}"] = before_after(analysis, some), f"{metric}: hollow before training, filled after"
    return drawn


def files_of(metrics: Sequence[str]) -> dict[str, str]:
    """A part of a file's name for each metric, no two alike, also where small and capital letters are the same."""
    found: dict[str, str] = {}
    for metric in dict.fromkeys(metrics):
        plain = re.sub("[^a-z0-9]+", "_", metric.lower())
        numbered = (f"{plain}_{number}" for number in count(2))
        found[metric] = next(name for name in (plain, *islice(numbered, len(found) + 1)) if name not in found.values())
    return found


KL_WORDS = (
    "Reward of answers in training, and what was measured on held-out prompts, over the divergence from the reference. Where the lower "
    "line has turned down while the upper one still rises, the reward is over-optimised; rings mark the best held-out value"
)


def means(analysis: Analysis) -> Figure:
    """A row an arm, the best at the top."""
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(analysis.arms))
    axes = figure.add_subplot()
    for row, place in enumerate(analysis.order[::-1]):
        arm, (colour, mark, _) = analysis.arms[place], style(place)
        axes.plot(arm.values, [row - 0.25] * len(arm.values), mark, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
        _bar(axes, (arm.mean, arm.low, arm.high), row, place)
    _rows(axes, analysis)
    dress(axes, f"{analysis.metric} ({'lower' if analysis.lower else 'higher'} is better)")
    return figure


def differences(analysis: Analysis) -> Figure:
    """Each arm less the reference."""
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(analysis.arms))
    axes = figure.add_subplot()
    axes.axvspan(-analysis.smallest, analysis.smallest, color=BAND, zorder=0)
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, place in enumerate(analysis.order[::-1]):
        if (pair := analysis.against(place)) is not None:
            _bar(axes, (pair.difference, pair.low, pair.high), row, place)
    _rows(axes, analysis)
    reference = labels([arm.name for arm in analysis.arms])[analysis.reference]
    dress(axes, f"difference to {reference}")
    return figure


def _bar(axes: Axes, at: tuple[float, float, float], row: int, place: int) -> None:
    value, low, high = at
    colour, mark, _ = style(place)
    if math.isfinite(low):
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([low, high], [row, row], "|", color=colour, markersize=7, markeredgewidth=1.5)
    axes.plot([value], [row], mark, color=colour, markersize=7.5, markeredgecolor=BACK, markeredgewidth=0.6)


def _rows(axes: Axes, analysis: Analysis) -> None:
    names = labels([arm.name for arm in analysis.arms])
    axes.set_yticks(range(len(names)), [names[place] for place in analysis.order[::-1]])
    axes.set_ylim(-0.6, len(names) - 0.4)


def front(report: Report) -> Figure:
    """Arms by what they cost and how good they are. Those that cost the same stand side by side, at their cost."""
    analysis, costs = report.analysis, [cost.flops for cost in report.costs]
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_subplot()
    at = _side_by_side(costs, analysis.order) if equal(costs) else costs
    best = [(at[place], analysis.arms[place].mean) for place in report.front]
    axes.step(*zip(*best, strict=True), where="post", color=SOFT, linestyle=":", linewidth=1.6)
    axes.plot(*zip(*best, strict=True), "o", color="none", markeredgecolor=SOFT, markersize=14, markeredgewidth=1.1)
    for place in report.near_front:
        axes.plot([at[place]], [analysis.arms[place].mean], "o", color="none", markeredgecolor=BAND, markersize=14, markeredgewidth=1.1)
    for place, arm in enumerate(analysis.arms):
        colour, mark, _ = style(place)
        if math.isfinite(arm.low):
            axes.plot([at[place]] * 2, [arm.low, arm.high], color=colour, linewidth=1.4, alpha=0.8)
        axes.plot([at[place]], [arm.mean], mark, color=colour, markersize=7.5, markeredgecolor=BACK, markeredgewidth=0.6)
    if equal(costs):
        _one_cost(axes, min(at) - GAP * max(costs), max(at) + GAP * max(costs), f"the same cost,\nwithin {_within(costs)}")
    else:
        _cost_axis(axes, costs, from_nothing=True)
    dress(axes, "floating-point operations, mean of an arm", analysis.metric)
    return figure


def _side_by_side(costs: Sequence[float], order: Sequence[int]) -> list[float]:
    """Where arms of equal cost are drawn: around it, the best first."""
    middle = sum(costs) / len(costs)
    return [middle + GAP * middle * (order.index(place) - (len(costs) - 1) / 2) for place in range(len(costs))]


def _one_cost(axes: Axes, low: float, high: float, words: str) -> None:
    """A band for the arms, far from nothing, and what it says."""
    axes.axvspan(low, high, color=BAND, zorder=0, linewidth=0)
    axes.set_xlim(0, 1.04 * high)
    axes.text(low - 0.03 * high, 0.5, words, transform=axes.get_xaxis_transform(), ha="right", va="center", fontsize=8, color=INK)


def _within(costs: Sequence[float]) -> str:
    return f"{100 * (max(costs) / min(costs) - 1):.2g} %"


def front_words(report: Report) -> str:
    """What the picture of the front shows."""
    costs = [cost.flops for cost in report.costs]
    others = "; a pale ring: not shown to be worse than those" if report.near_front else ""
    if not equal(costs):
        return f"Mean quality over mean operations; the dotted line joins the arms that no other one beats in both{others}"
    return (
        f"Mean quality, with 95 % intervals, over mean operations. All arms cost the same, within {_within(costs)}: in the grey band "
        f"they stand side by side only to be seen. The ring marks the best{others}"
    )


def over_cost(analysis: Analysis, curves: Sequence[Sequence[Curve]], key: str, label: str) -> Figure:
    """A line a run."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_subplot()
    for place, runs in enumerate(curves):
        colour, mark, line = style(place)
        for curve in runs:
            spent = getattr(curve, key)
            axes.plot(spent, curve.values, color=colour, linestyle=line, linewidth=1.3, alpha=0.85)
            for end in curve.ends:
                axes.plot([spent[end]], [curve.values[end]], "|", color=colour, markersize=9, markeredgewidth=1.5)
            axes.plot(spent[-1:], curve.values[-1:], mark, color=colour, markersize=7.5, markeredgecolor=BACK, markeredgewidth=0.6)
    _cost_axis(axes, [getattr(curve, key)[-1] for runs in curves for curve in runs])
    dress(axes, label, analysis.metric)
    return figure


def _cost_axis(axes: Axes, ends: Sequence[float], *, from_nothing: bool = False) -> None:
    """Logarithmic where the dearest would hide the cheap ones. from_nothing: so that a little more looks like a little."""
    if min(ends) > 0 and max(ends) > WIDE * min(ends):
        axes.set_xscale("symlog", linthresh=min(ends))
    axes.margins(x=0.06)
    if from_nothing and axes.get_xscale() == "linear":
        axes.set_xlim(left=0)


def over_kl(drifts: Sequence[Sequence[Drift]]) -> Figure:
    """The reward in training above, what is held out below, over the same axis."""
    figure = new_figure(WIDTH, 1.6 * HEIGHT)
    above, below = figure.subplots(2, 1, sharex=True)
    for place, runs in enumerate(drifts):
        colour, mark, line = style(place)
        for run in runs:
            above.plot(run.kl, run.reward, ".", color=colour, alpha=0.3, markersize=3, markeredgewidth=0)
            window = max(1.0, len(run.kl) / 12)
            kl, reward = (smooth(np.array(values), window) for values in (run.kl, run.reward))
            above.plot(kl, reward, color=colour, linestyle=line, linewidth=1.5)
            above.plot(kl[-1:], reward[-1:], mark, color=colour, markersize=7, markeredgecolor=BACK, markeredgewidth=0.6)
            _held_out(below, run, place)
    dress(above, "", "reward in training")
    names = sorted({run.metric for runs in drifts for run in runs if run.held})
    dress(below, "KL to the reference, nats a token", ", ".join(names))
    return figure


def _held_out(axes: Axes, run: Drift, place: int) -> None:
    if not run.held:
        return
    colour, mark, line = style(place)
    axes.plot(run.held_kl, run.held, color=colour, linestyle=line, linewidth=1.5)
    axes.plot(run.held_kl[-1:], run.held[-1:], mark, color=colour, markersize=7, markeredgecolor=BACK, markeredgewidth=0.6)
    best = run.held_kl[run.best], run.held[run.best]
    axes.plot(*([some] for some in best), "o", color="none", markeredgecolor=INK, markersize=10, markeredgewidth=1)


def before_after(analysis: Analysis, changes: Sequence[Change]) -> Figure:
    """A row an arm: from the starting model to the trained one, a faint line a run and a strong one of the means."""
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(changes))
    axes = figure.add_subplot()
    names = labels([arm.name for arm in analysis.arms])
    for row, change in enumerate(changes[::-1]):
        colour, mark, _ = style(change.arm)
        for number, pair in enumerate(zip(change.before, change.after, strict=True)):
            axes.plot(pair, [row - 0.16 - 0.08 * number] * 2, color=colour, linewidth=0.8, alpha=0.5)
        start, end = np.mean(change.before), np.mean(change.after)
        axes.plot([start, end], [row, row], color=colour, linewidth=1.8)
        axes.plot([start], [row], mark, color=BACK, markeredgecolor=colour, markersize=7, markeredgewidth=1.4)
        axes.plot([end], [row], mark, color=colour, markersize=7.5, markeredgecolor=BACK, markeredgewidth=0.6)
    axes.set_yticks(range(len(changes)), [names[change.arm] for change in changes[::-1]])
    axes.set_ylim(-0.7, len(changes) - 0.4)
    dress(axes, f"{changes[0].metric} ({'lower' if changes[0].lower else 'higher'} is better)")
    return figure
