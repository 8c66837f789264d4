import pytest

from posttrain.functional.coefficients import constant, cosine, linear


@pytest.mark.parametrize(
    ("schedule", "options", "factors"),
    [
        (constant, {}, [1.0, 1.0, 1.0, 1.0]),
        (linear, {}, [1.0, 0.775, 0.55, 0.1]),
        (linear, {"start": 0.5, "end": 2.5}, [0.5, 1.0, 1.5, 2.5]),
        (cosine, {}, [1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1]),
        (cosine, {"start": 0.0, "end": 1.0}, [0.0, (1 - 0.5**0.5) / 2, 0.5, 1.0]),
    ],
)
def test_factor_over_a_run(schedule, options, factors):
    assert [schedule(progress, **options) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(factors, rel=1e-12, abs=1e-15)
