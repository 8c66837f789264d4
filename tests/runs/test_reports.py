"""Closing reports: what they say of outcomes worked out by hand, and that odd outcomes still give a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.runs.reports import write
from posttrain.runs.reports.pairs import bins_around_zero

PNG = b"\x89PNG"


def report(name, folder, **columns):
    table, picture = write(name, {key: np.asarray(values, float) for key, values in columns.items()}, folder)
    assert picture.read_bytes().startswith(PNG)
    return json.loads(table.read_text())


def test_pairs(tmp_path):
    found = report(
        "pairs", tmp_path, chosen=[3, 1, 0, 2], rejected=[1, 2, 0, -4], chosen_length=[9, 5, 5, 20], rejected_length=[3, 6, 5, 10]
    )  # fmt: skip
    assert (found["pairs"], found["accuracy"]) == (4, 2.5 / 4)
    assert found["margin"]["mean"] == pytest.approx((2 - 1 + 0 + 6) / 4)
    assert sum(row["pairs"] for row in found["accuracy_by_length_difference"]) == 4
    wanted = np.corrcoef([2, -1, 0, 6], [6, -1, 0, 10])[0, 1]
    assert found["length_bias"]["margin"] == pytest.approx(wanted)


@pytest.mark.parametrize("chosen", [[1.0], [1.0, 1.0], [-2.0, -2.0]])
def test_pairs_that_do_not_vary(tmp_path, chosen):
    zeros = [0.0] * len(chosen)
    found = report("pairs", tmp_path, chosen=chosen, rejected=zeros, chosen_length=zeros, rejected_length=zeros)
    assert found["length_bias"]["margin"] == "NaN"
    assert sum(found["margin"]["counts"]) == len(chosen)


def test_ratings(tmp_path):
    found = report("ratings", tmp_path, reward=[1, 2, 3], score=[1, 3, np.nan], length=[5, 6, 7])
    assert (found["answers"], found["scored"], found["mean_absolute_error"]) == (3, 2, 0.5)
    assert found["length_bias"]["reward"] == pytest.approx(1.0)


def test_steps(tmp_path):
    found = report("steps", tmp_path, right=[0.9, 0.2, 0.7, 1.0], label=[1, 0, 0, 1])
    assert (found["steps"], found["wrong"], found["accuracy"]) == (4, 2, 0.75)
    assert sum(row["pairs"] for row in found["reliability"]) == 4


@pytest.mark.parametrize("values", [[-1.0, 3.0], [2.0, 5.0], [-4.0, -4.0], [0.0]])
def test_bins_part_at_zero(values):
    edges = bins_around_zero(np.array(values))
    assert np.isclose(edges, 0.0, atol=1e-12).any()
    assert edges[0] <= min(values) + 1e-12
    assert edges[-1] >= max(values) - 1e-12
