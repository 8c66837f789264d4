"""Calibration, length bias and step metrics on numbers worked out by hand."""

import math

import pytest
import torch

from posttrain.functional import calibration, steps


def logit(p):
    return math.log(p / (1 - p))


MARGIN = torch.tensor([logit(0.62), logit(0.62), -logit(0.64), logit(0.97)], dtype=torch.float64)


def test_calibration_error_by_hand():
    sums = calibration.reliability_sums(MARGIN, bins=5)
    # bin [0.6, 0.7): three pairs, confidence 0.62 0.62 0.64, two right; bin [0.9, 1]: one pair, 0.97, right
    assert sums[:, 0].tolist() == [0, 3, 0, 0, 1]
    assert calibration.calibration_error(sums) == pytest.approx((abs(2 - 1.88) + abs(1 - 0.97)) / 4)


def test_sums_of_batches_add_up():
    parts = calibration.reliability_sums(MARGIN[:1]) + calibration.reliability_sums(MARGIN[1:])
    torch.testing.assert_close(parts, calibration.reliability_sums(MARGIN))


def test_a_calibrated_model_has_no_error():
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(200_000, generator=generator, dtype=torch.float64) * 2
    won = torch.rand(len(margin), generator=generator, dtype=torch.float64) < margin.sigmoid()
    assert calibration.calibration_error(calibration.reliability_sums(torch.where(won, margin, -margin))) < 0.004
    assert calibration.calibration_error(calibration.reliability_sums(torch.where(won, 3 * margin, -3 * margin))) > 0.1


def test_the_table_holds_the_bins():
    table = calibration.reliability_table(calibration.reliability_sums(MARGIN, bins=5))
    assert [row["pairs"] for row in table] == [0, 3, 0, 0, 1]
    assert table[1]["accuracy"] == pytest.approx(2 / 3)
    assert table[1]["confidence"] == pytest.approx(1.88 / 3)
    assert math.isnan(table[0]["accuracy"])
    assert (table[0]["from"], table[4]["to"]) == (0.5, 1.0)


def test_ties_are_half_right():
    assert calibration.reliability_sums(torch.zeros(4))[0].tolist() == [4, 2, 2]


def test_accuracy_by_length():
    difference = torch.tensor([-5.0, -5.0, 0.0, 0.0, 9.0, 9.0])
    margin = torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    rows = calibration.accuracy_by_length(margin, difference, buckets=3)
    assert [(row["from"], row["to"], row["pairs"], row["accuracy"]) for row in rows] == [(-5, -5, 2, 0.5), (0, 0, 2, 1.0), (9, 9, 2, 0.0)]
    assert len(calibration.accuracy_by_length(margin, torch.zeros(6))) == 1
    assert calibration.accuracy_by_length(margin[:0], difference[:0]) == []


def test_correlation_and_its_sums():
    one, other = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 2.0, 2.5])
    wanted = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    assert calibration.correlation(one, other) == pytest.approx(wanted)
    sums = calibration.moments(one[:1], other[:1]) + calibration.moments(one[1:], other[1:])
    assert calibration.pearson(sums) == pytest.approx(wanted)
    assert math.isnan(calibration.correlation(one, torch.ones(3)))
    assert math.isnan(calibration.pearson(calibration.moments(one, torch.ones(3))))


def test_names_keep_a_tensor():
    values = torch.arange(6.0).view(2, 3)
    named = {name: float(value) for name, value in calibration.named("bin", values).items()}
    torch.testing.assert_close(calibration.unnamed("bin", named | {"loss": 3.0}), values.double())


def test_step_metrics_by_hand():
    labels = torch.tensor([1.0, 0, 0, 1, 1, 0])
    trace = torch.tensor([2, 2, 2, 5, 5, 7])
    said_wrong = torch.tensor([0, 1, 0, 0, 1, 1])
    logits = torch.stack([said_wrong.float(), 1 - said_wrong.float()], 1)
    sums = {name: float(value) for name, value in steps.step_sums(logits, labels, trace).items()}
    assert sums == {
        "steps": 6, "agree": 4, "hits": 2, "called": 3, "wrong": 3, "broken": 2, "broken_found": 2, "sound": 1, "sound_found": 0,
    }  # fmt: skip
    metrics = steps.step_metrics(sums)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["error_f1"] == pytest.approx(2 * 2 / 6)
    assert metrics["first_error"] == pytest.approx(2 / 3)
    assert metrics["process_f1"] == 0
    assert metrics["base_rate"] == 0.5


def test_a_batch_without_steps_counts_nothing():
    nothing = steps.step_sums(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert all(float(value) == 0 for value in nothing.values())
