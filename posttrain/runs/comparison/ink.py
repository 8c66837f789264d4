"""How a comparison's pictures look: colours that follow the page between light and dark, marks and lines that tell arms apart without."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import bidirectional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, BACK, BAND = "#111213", "#767778", "#fdfcfb", "#e4e5e6"
# Okabe & Ito's colours, ordered so that neighbours differ in lightness too; with as many marks and lines, coprime in number where arms
# outnumber them. The second of each is the one on a dark page.
COLOURS = (
    ("#0072b2", "#5fb4ea"), ("#d55e00", "#ff9150"), ("#009e73", "#3fd3a6"), ("#cc79a7", "#ec9cc8"),
    ("#303132", "#e8e9ea"), ("#e69f00", "#f5bd41"), ("#56b4e9", "#9bd6f8"), ("#7a4b1e", "#c79a6b"),
)  # fmt: skip
MARKS = ("o", "s", "^", "D", "X", "v", "P", "h", "*")
LINES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2)))
VARIABLES = {INK: "ink", SOFT: "soft", BACK: "back", BAND: "band"} | {light: f"arm-{place}" for place, (light, _) in enumerate(COLOURS)}
FONT = "DejaVu Sans"
SHORT = 14  # letters of a name that fits beside an axis
RC: Any = {
    "svg.hashsalt": "posttrain", "svg.fonttype": "path", "font.family": FONT,
    "font.size": 9.0, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SOFT, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": SOFT,
}  # fmt: skip


def style(place: int) -> tuple[str, str, Any]:
    """Colour, mark and line of the arm at this place."""
    return COLOURS[place % len(COLOURS)][0], MARKS[place % len(MARKS)], LINES[place % len(LINES)]


def labels(names: Sequence[str]) -> list[str]:
    """What stands beside an axis for each arm: its name, or letters where some name is too long for that, or cannot be drawn."""
    if all(len(name) <= SHORT and is_drawn(name) for name in names):
        return list(names)
    return [_letters(place) for place in range(len(names))]


def is_drawn(text: str) -> bool:
    """Whether the pictures' font, which comes with matplotlib, has every letter, in a script that needs no shaping; `$` would begin a
    formula."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    return all(font.get_char_index(ord(letter)) and bidirectional(letter) not in ("R", "AL") for letter in text) and "$" not in text


def _letters(place: int) -> str:
    """A ... Z, AA, AB ..."""
    return (_letters(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def svg(figure: Figure) -> str:
    """The figure as an element for a page: letters drawn, nothing fetched, the same bytes for the same figure.

    Its colours are variables of the page, which fall back to the light ones where there is no page around.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    picture = io.StringIO()
    with rc_context(RC):
        FigureCanvasSVG(figure).print_svg(picture, metadata={"Date": None})
    text = picture.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])  # numbered anew in each figure: not unique in a page
    return re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]}, {found[0]})", text)


def variables(dark: bool) -> str:
    """The arms' colours as declarations of a style sheet."""
    return " ".join(f"--arm-{place}: {pair[dark]};" for place, pair in enumerate(COLOURS))


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty one, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="none")


def dress(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Labels, a faint grid, no box."""
    axes.set_facecolor("none")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, linewidth=0.6)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)
    axes.spines[["top", "right"]].set_visible(False)


def key(place: int) -> str:
    """An arm's line and mark as a small picture, for legends and tables."""
    from matplotlib import rc_context

    with rc_context(RC):
        figure = new_figure(0.55, 0.18, layout=None)
        axes = figure.add_axes((0, 0, 1, 1))
        colour, mark, line = style(place)
        axes.plot([0, 1], [0, 0], color=colour, linestyle=line, linewidth=1.6)
        axes.plot([0.5], [0], mark, color=colour, markersize=7, markeredgecolor=BACK, markeredgewidth=0.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(-1, 1)
        axes.set_axis_off()
    return svg(figure)
