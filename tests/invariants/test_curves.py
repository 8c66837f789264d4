"""Whole loss curves are the same however a step is computed (float32, 1e-5 relative)."""

import math

import pytest

SAME = {
    "many micro-batches": ("max_tokens=256", "max_length=256"),
    "two ranks": ("hardware=2xcpu",),
    "two ranks, many micro-batches": ("hardware=2xcpu", "max_tokens=256", "max_length=256"),
    "rows cut over two ranks": ("hardware=2xcpu", "hardware.context_parallel=2", "max_tokens=256", "max_length=256"),
    "rows cut over two ranks that exchange heads": (
        "hardware=2xcpu",
        "hardware.context_parallel=2",
        "hardware.context_method=ulysses",
        "max_tokens=256",
        "max_length=256",
    ),
    "packed": ("model.layout=packed",),
    "padded": ("model.layout=padded",),
    "checkpointed activations": ("model.gradient_checkpointing=true",),
}


def assert_same(ours, theirs, tolerance):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert math.isclose(a[name], b[name], rel_tol=tolerance, abs_tol=1e-9), (a["step"], name, a[name], b[name])


@pytest.mark.parametrize("name", SAME)
def test_the_curve_does_not_depend_on_the_split_or_the_layout(curve, name):
    reference = curve()
    assert reference[-2]["loss"] < reference[1]["loss"]
    assert_same(curve(*SAME[name]), reference, 1e-5)


def test_a_lora_curve_does_not_depend_on_it_either(curve):
    lora = ("model/peft=lora", "model.peft.dropout=0.0")
    assert_same(curve(*lora, "max_tokens=256", "max_length=256"), curve(*lora), 1e-5)


def test_bfloat16_on_a_cpu_follows_float32(curve):
    ours, theirs = (curve(*options)[0]["val/loss"] for options in (("precision=bf16",), ()))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=5e-3)
