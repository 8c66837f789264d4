"""The loss curve of a run as a picture, from its metrics.jsonl."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posttrain.runs.files import write_atomic
from posttrain.runs.records import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by readers of every kind of colour vision; the marks differ in shape as well.
BLUE, ORANGE = "#0072B2", "#D55E00"
MAX_POINTS = 20_000


def series(rows: list[dict[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[N]` and finite values `[N]` of one metric."""
    points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


def smooth(values: np.ndarray, window: float) -> np.ndarray:
    """Centred Gaussian average `[N]` over about `window` points: it does not lag behind, and shrinks to what is there at the ends."""
    reach = math.ceil(1.5 * window)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (window / 2)) ** 2)
    total = np.convolve(values, kernel)[reach:-reach]
    weight = np.convolve(np.ones_like(values), kernel)[reach:-reach]
    return total / weight


def wants_log(values: np.ndarray) -> bool:
    """Whether a logarithmic axis shows more: all values positive, and their range over a factor of 20 (outliers left aside)."""
    if len(values) < 2 or values.min() <= 0:
        return False
    low, high = np.quantile(values, [0.01, 0.99])
    return bool(high > 20 * low)


def loss_plot(metrics_path: Path, to: Path, *, title: str = "", key: str = "loss", val_key: str = "val/loss") -> bool:
    """Draw training loss (every step, and smoothed) and validation loss over steps as a PNG. False if there is nothing to draw."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics_path)
    steps, losses = series(rows, key)
    val_steps, val_losses = series(rows, val_key)
    if not len(steps) and not len(val_steps):
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150)
    figure.subplots_adjust(**margins(8, 4.5))
    axes = figure.add_subplot()
    draw_train(axes, steps, losses)
    draw_val(axes, val_steps, val_losses)
    dress(axes, np.concatenate([losses, val_losses]), title)
    write_png(figure, to)
    return True


# What a method that samples its own answers shows: title, its metric, the held-out counterpart if any.
PANELS = (
    ("reward of an answer", "reward/mean", "val/reward"),
    ("tokens of an answer", "answers/length", None),
    ("entropy, nats a token", "entropy", None),
    ("groups whose rewards differ, share", "groups/informative", None),
    ("KL to the reference, nats a token", "kl", None),
    ("answers cut off, share", "answers/truncated", None),
)


def online_plot(metrics_path: Path, to: Path) -> bool:
    """Draw what an online run went through, a panel each, as a PNG. False for a run that sampled nothing."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics_path)
    drawn = [(title, series(rows, key), series(rows, other or "")) for title, key, other in PANELS]
    drawn = [panel for panel in drawn if len(panel[1][0])]
    if not len(series(rows, "reward/mean")[0]):
        return False
    columns, lines = 2, math.ceil(len(drawn) / 2)
    figure = Figure(figsize=(9, 2.8 * lines), dpi=150)
    figure.subplots_adjust(**margins(9, 2.8 * lines), wspace=0.25, hspace=0.5)
    for place, (title, (steps, values), held_out) in enumerate(drawn, 1):
        axes = figure.add_subplot(lines, columns, place)
        draw_train(axes, steps, values)
        draw_val(axes, *held_out)
        dress(axes, np.concatenate([values, held_out[1]]), title, label="")
    write_png(figure, to)
    return True


def margins(width: float, height: float) -> dict[str, float]:
    """Where the axes of a figure of so many inches begin and end: told, since finding it out takes as long as drawing."""
    return {"left": 0.75 / width, "right": 1 - 0.15 / width, "bottom": 0.55 / height, "top": 1 - 0.35 / height}


def write_png(figure: Figure, to: Path) -> None:
    """Render a figure to a file, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_atomic(to, picture.getvalue())


def draw_train(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    """Every step faintly, the moving average clearly."""
    if not len(steps):
        return
    stride = math.ceil(len(steps) / MAX_POINTS)
    steps, losses = steps[::stride], losses[::stride]
    if len(steps) < 20:
        axes.plot(steps, losses, color=BLUE, linewidth=2, marker=".", label="train")
        return
    window = max(5, len(steps) / 50)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
    label = f"train (average over ~{window * stride:.0f} logged steps)"
    axes.plot(steps, smooth(losses, window), color=BLUE, linewidth=2, label=label)


def draw_val(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    """Validation points, joined by a dashed line, with the last value in the legend."""
    if not len(steps):
        return
    label = f"validation (last {losses[-1]:.4g})"
    axes.plot(steps, losses, color=ORANGE, linestyle="--", marker="o", markersize=5, linewidth=1.5, label=label)


def dress(axes: Axes, values: np.ndarray, title: str, *, label: str = "loss") -> None:
    """Labels, grid and scale; a lone spike does not flatten the rest. Only a loss may get a logarithmic scale."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_ylabel(label)
    if label and wants_log(values):
        axes.set_yscale("log")
    elif len(values) > 50:
        low, high = values.min(), np.quantile(values, 0.995)
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 3 * margin)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, loc="left")
    axes.margins(x=0.02)
