import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from posttrain.runs.plots import BLUE, ORANGE, draw_train, draw_val, dress, loss_plot, series, smooth, wants_log
from posttrain.runs.records import MetricsFile


def test_a_curve_is_drawn_from_what_was_logged(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(100):
        file.append(step, {"loss": 3 / (step + 1)})
    file.append(100, {"val/loss": 0.5})
    assert loss_plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    image = imread(tmp_path / "loss.png")
    assert image.shape[:2] == (675, 1200)
    for colour in (BLUE, ORANGE):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02).sum() > 50, f"no line in {colour}"


def test_nothing_logged_draws_nothing(tmp_path: Path) -> None:
    assert not loss_plot(tmp_path / "absent.jsonl", tmp_path / "loss.png")
    MetricsFile(tmp_path / "metrics.jsonl").append(1, {"loss": math.nan})
    assert not loss_plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_series_leaves_out_other_lines_and_values_that_cannot_be_drawn() -> None:
    rows = [{"step": 0, "val/loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 1.0}]
    steps, values = series(rows, "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 3], [2.0, 1.0])


def test_smoothing_keeps_level_and_position() -> None:
    assert smooth(np.full(50, 2.5), 8) == pytest.approx(np.full(50, 2.5))
    line = np.arange(200.0)
    assert smooth(line, 10)[50:150] == pytest.approx(line[50:150])
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise, 20).std() < 0.3 * noise.std()
    assert len(smooth(np.arange(3.0), 30)) == 3


def test_log_axis_only_where_it_shows_more() -> None:
    assert wants_log(np.geomspace(5, 0.01, 100))
    assert not wants_log(np.linspace(5, 1, 100))
    assert not wants_log(np.array([5.0, -1.0]))
    assert not wants_log(np.append(np.linspace(2, 1, 1000), 500.0)), "one spike does not make the axis logarithmic"


def test_a_spike_does_not_flatten_the_rest_and_the_legend_names_the_last_value() -> None:
    axes = Figure().add_subplot()
    losses = np.linspace(3, 1, 500)
    losses[250] = 100.0
    draw_train(axes, np.arange(500.0), losses)
    draw_val(axes, np.array([0.0, 499.0]), np.array([3.1, 1.234]))
    dress(axes, losses, "run")
    assert axes.get_ylim()[1] < 5
    assert [text.get_text() for text in axes.get_legend().get_texts()][1] == "validation (last 1.234)"
