"""The pictures of a comparison as SVG: arms differ in colour, mark and line, so that grey paper and every eye tell them apart."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.runs.comparison.analyse import Analysis
from posttrain.runs.comparison.costs import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, ordered so that neighbours differ in lightness too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
MARKS = ("o", "s", "^", "D", "v", "X", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def svg(figure: Figure) -> str:
    """The figure as an element for a page: letters drawn, nothing fetched, the same bytes for the same figure."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    picture = io.StringIO()
    with rc_context({"svg.hashsalt": "posttrain", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(picture, metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :]


def arms_picture(analysis: Analysis) -> Figure:
    """Means with their intervals, a faint mark for each run, the best at the top; beside it differences to the reference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.5 * len(analysis.arms)), layout="constrained")
    means, apart = figure.subplots(1, 2, sharey=True)
    order = analysis.order[::-1]
    for row, place in enumerate(order):
        arm, colour, mark = analysis.arms[place], COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)]
        means.plot(arm.values, [row - 0.22] * len(arm.values), mark, color=colour, markersize=4, alpha=0.5, markeredgewidth=0)
        _bar(means, arm.mean, arm.low, arm.high, row, colour, mark)
        if (pair := analysis.against(place)) is not None:
            _bar(apart, pair.difference, pair.low, pair.high, row, colour, mark)
    reference = analysis.arms[analysis.reference].name
    means.set_yticks(range(len(order)), [analysis.arms[place].name for place in order])
    means.set_ylim(-0.6, len(order) - 0.4)
    apart.axvspan(-analysis.smallest, analysis.smallest, color="0.88", zorder=0)
    apart.axvline(0, color="0.4", linewidth=1)
    _dress(means, f"{analysis.metric} ({'lower' if analysis.lower else 'higher'} is better)")
    _dress(apart, f"difference to {reference}; grey: less than what matters")
    return figure


def _bar(axes: Axes, value: float, low: float, high: float, row: int, colour: str, mark: str) -> None:
    if math.isfinite(low):
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([value], [row], mark, color=colour, markersize=8)


def cost_picture(analysis: Analysis, curves: Sequence[Sequence[Curve]]) -> Figure:
    """Quality over floating-point operations, and over wall time: a line a run, a mark where it ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, label in zip(panels, ("flops", "hours"), ("floating-point operations", "hours of training"), strict=True):
        for place, runs in enumerate(curves):
            colour, mark, line = (some[place % len(some)] for some in (COLOURS, MARKS, LINES))
            for number, curve in enumerate(runs):
                spent = getattr(curve, key)
                axes.plot(spent, curve.values, color=colour, linestyle=line, linewidth=1.3, alpha=0.8)
                name = analysis.arms[place].name if number == 0 else None
                axes.plot(spent[-1:], curve.values[-1:], mark, color=colour, markersize=8, markeredgecolor="white", label=name)
        _dress(axes, label)
    panels[0].set_ylabel(analysis.metric)
    panels[1].legend(frameon=False, fontsize="small")
    return figure


def _dress(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
