"""Every loss against its formula worked out in plain arithmetic, its value where policy and reference agree, and its gradient."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import divergences, preference
from posttrain.types import PairLogps

LN2 = math.log(2)


def logistic(x):
    return 1 / (1 + math.exp(-x))


def pairs(chosen=(-4.0, -9.0, -2.5), rejected=(-6.0, -7.5, -3.0), *, reference=True, grad=False, baseline=None):
    numbers = partial(torch.tensor, dtype=torch.float64)
    return PairLogps(
        numbers(chosen, requires_grad=grad),
        numbers(rejected, requires_grad=grad),
        numbers((4.0, 6.0, 1.0)),
        numbers((5.0, 3.0, 2.0)),
        numbers((-5.0, -8.0, -2.0)) if reference else None,
        numbers((-5.5, -8.0, -3.5)) if reference else None,
        None if baseline is None else numbers(baseline),
    )


C, R = (1.0, -1.0, -0.5), (-0.5, 0.5, 0.5)  # log-ratios of `pairs()`
LENGTHS = ((4.0, 5.0), (6.0, 3.0), (1.0, 2.0))
MARGIN = [c - r for c, r in zip(C, R, strict=True)]
PER_TOKEN = [c / n - r / m for c, r, (n, m) in zip(C, R, LENGTHS, strict=True)]


def test_log_ratios():
    c, r = preference.log_ratios(pairs())
    assert c.tolist() == list(C)
    assert r.tolist() == list(R)
    with pytest.raises(ValueError, match="reference"):
        preference.log_ratios(pairs(reference=False))


# loss, and what one pair costs by the paper's formula, from c, r and the margins
CASES = {
    "sigmoid": (partial(preference.sigmoid, beta=0.3), lambda c, r, d, t: -math.log(logistic(0.3 * d))),
    "cdpo": (
        partial(preference.sigmoid, beta=0.3, label_smoothing=0.2),
        lambda c, r, d, t: -0.8 * math.log(logistic(0.3 * d)) - 0.2 * math.log(logistic(-0.3 * d)),
    ),
    "sigmoid_norm": (partial(preference.sigmoid_norm, beta=2.0), lambda c, r, d, t: -math.log(logistic(2 * t))),
    "hinge": (partial(preference.hinge, beta=0.9), lambda c, r, d, t: max(0.0, 1 - 0.9 * d)),
    "ipo": (partial(preference.ipo, beta=0.25), lambda c, r, d, t: (t - 2) ** 2),
    "ipo_summed": (partial(preference.ipo, beta=0.25, per_token=False), lambda c, r, d, t: (d - 2) ** 2),
    "exo": (
        partial(preference.exo, beta=0.5, label_smoothing=0.1),
        lambda c, r, d, t: logistic(d / 2) * math.log(logistic(d / 2) / 0.9) + logistic(-d / 2) * math.log(logistic(-d / 2) / 0.1),
    ),
    "nca": (
        partial(preference.nca, beta=0.5),
        lambda c, r, d, t: -math.log(logistic(c / 2)) - math.log(logistic(-c / 2)) / 2 - math.log(logistic(-r / 2)) / 2,
    ),
    "robust": (
        partial(preference.robust, beta=0.5, label_smoothing=0.2),
        lambda c, r, d, t: (-0.8 * math.log(logistic(d / 2)) + 0.2 * math.log(logistic(-d / 2))) / 0.6,
    ),
    "bco": (partial(preference.bco, beta=0.5), lambda c, r, d, t: -math.log(logistic(c / 2)) - math.log(logistic(-r / 2))),
    "sppo": (partial(preference.sppo, beta=0.5), lambda c, r, d, t: (c - 1) ** 2 + (r + 1) ** 2),
    "apo_zero": (partial(preference.apo_zero, beta=0.5), lambda c, r, d, t: 1 - logistic(c / 2) + logistic(r / 2)),
    "apo_down": (partial(preference.apo_down, beta=0.5), lambda c, r, d, t: logistic(c / 2) + 1 - logistic(d / 2)),
    "discopop": (
        partial(preference.discopop, beta=0.5, tau=0.4),
        lambda c, r, d, t: -(1 - logistic(d / 0.8)) * math.log(logistic(d / 2)) + logistic(d / 0.8) * math.exp(-d / 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value(name):
    loss, formula = CASES[name]
    want = [formula(*one) for one in zip(C, R, MARGIN, PER_TOKEN, strict=True)]
    assert loss(pairs()).tolist() == pytest.approx(want, rel=1e-12)


# at the start of training c = r = 0
START = {
    "sigmoid": LN2, "cdpo": LN2, "sigmoid_norm": LN2, "hinge": 1.0, "ipo": 4.0, "ipo_summed": 4.0, "nca": 2 * LN2, "robust": LN2,
    "bco": 2 * LN2, "sppo": 2.0, "apo_zero": 1.0, "apo_down": 1.0, "discopop": (LN2 + 1) / 2,
    "exo": math.log(0.5 / 0.9) / 2 + math.log(0.5 / 0.1) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_where_policy_and_reference_agree(name):
    same = pairs(chosen=(-5.0, -8.0, -2.0), rejected=(-5.5, -8.0, -3.5))
    assert CASES[name][0](same).tolist() == pytest.approx([START[name]] * 3, rel=1e-12)


def test_aot_compares_sorted_margins():
    # margins of the policy: 2, -1.5, 0.5; of the reference: 0.5, 0, 1.5
    want = [-math.log(logistic(x / 2)) for x in (-1.5 - 0.0, 0.5 - 0.5, 2.0 - 1.5)]
    assert preference.aot(pairs(), beta=0.5).tolist() == pytest.approx(want, rel=1e-12)
    # c sorted: -1, -0.5, 1; r sorted: -0.5, 0.5, 0.5
    want = [-0.9 * math.log(logistic(x / 2)) - 0.1 * math.log(logistic(-x / 2)) for x in (-0.5, -1.0, 0.5)]
    assert preference.aot_unpaired(pairs(), beta=0.5, label_smoothing=0.1).tolist() == pytest.approx(want, rel=1e-12)


def test_bco_subtracts_the_baseline():
    got = preference.bco(pairs(baseline=0.2), beta=0.5)
    want = [-math.log(logistic((c - 0.2) / 2)) - math.log(logistic((0.2 - r) / 2)) for c, r in zip(C, R, strict=True)]
    assert got.tolist() == pytest.approx(want, rel=1e-12)


def test_reference_free_losses():
    free = pairs(reference=False)
    chosen, rejected = (-4.0, -9.0, -2.5), (-6.0, -7.5, -3.0)
    assert preference.cpo(free, beta=0.5).tolist() == pytest.approx(
        [-math.log(logistic((w - v) / 2)) for w, v in zip(chosen, rejected, strict=True)]
    )
    means = [(w / n, v / m) for w, v, (n, m) in zip(chosen, rejected, LENGTHS, strict=True)]
    want = [-math.log(logistic(2 * (w - v) - 0.5)) for w, v in means]
    assert preference.simpo(free, beta=2.0, gamma=0.5).tolist() == pytest.approx(want, rel=1e-12)
    shaped = [((1 - math.exp(-0.25 * w)) / 0.25, (1 - math.exp(-0.25 * v)) / 0.25) for w, v in means]
    want = [-math.log(logistic(2 * (w - v) - 0.5)) for w, v in shaped]
    assert preference.simpo(free, beta=2.0, gamma=0.5, alpha=0.25).tolist() == pytest.approx(want, rel=1e-12)
    odds = [[math.log(math.exp(x) / (1 - math.exp(x))) for x in two] for two in means]
    want = [-0.3 * math.log(logistic(w - v)) for w, v in odds]
    assert preference.orpo(free, beta=0.3).tolist() == pytest.approx(want, rel=1e-12)


def test_alpha_po_tends_to_simpo():
    near, plain = preference.simpo(pairs(), alpha=1e-7), preference.simpo(pairs())
    torch.testing.assert_close(near, plain, rtol=1e-6, atol=0)


def test_orpo_stays_finite_for_a_certain_answer():
    certain = pairs(chosen=(0.0, -1e-9, -50.0), reference=False, grad=True)
    loss = preference.orpo(certain)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert certain.chosen.grad.isfinite().all()


@pytest.mark.parametrize(
    ("transform", "formula"),
    [
        (divergences.reverse_kl, lambda x: x),
        (divergences.forward_kl, lambda x: 1 - math.exp(-x)),
        (divergences.jensen_shannon, lambda x: math.log(2 * logistic(x))),
        (partial(divergences.alpha, alpha=0.5), lambda x: 2 * (1 - math.exp(-x / 2))),
        (partial(divergences.alpha, alpha=3.0), lambda x: (math.exp(2 * x) - 1) / 2),
    ],
)
def test_divergences(transform, formula):
    x = torch.tensor([-2.0, -0.1, 0.0, 0.7, 3.0], dtype=torch.float64)
    assert transform(x).tolist() == pytest.approx([formula(v) for v in x.tolist()], rel=1e-12, abs=1e-15)
    # f(0) = 0 and f'(0) = 1: at the start every divergence gives plain DPO's loss and gradient
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    transform(zero).sum().backward()
    assert zero.grad.item() == pytest.approx(0.5 if transform is divergences.jensen_shannon else 1.0)
    got = preference.sigmoid(pairs(), beta=0.3, divergence=transform)
    want = [-math.log(logistic(0.3 * (formula(c) - formula(r)))) for c, r in zip(C, R, strict=True)]
    assert got.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("transform", [divergences.forward_kl, divergences.alpha])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_divergences_do_not_overflow(transform, dtype):
    x = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    y = transform(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


LOSSES = {name: loss for name, (loss, _) in CASES.items()} | {
    "aot": preference.aot, "aot_unpaired": preference.aot_unpaired, "cpo": preference.cpo, "simpo": preference.simpo, "orpo": preference.orpo,
    "alpha_po": partial(preference.simpo, alpha=0.3), "js": partial(preference.sigmoid, divergence=divergences.jensen_shannon),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name):
    given = pairs(rejected=(-6.0, -7.5, -3.1))  # no ties, where sorting has no gradient

    def f(chosen, rejected):
        return LOSSES[name](
            PairLogps(chosen, rejected, given.chosen_length, given.rejected_length, given.reference_chosen, given.reference_rejected)
        )

    assert gradcheck(f, (given.chosen.requires_grad_(), given.rejected.requires_grad_()))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("apo_down", "nca", "discopop", "sppo")])
def test_a_step_down_raises_the_chosen_answer_and_lowers_the_rejected(name):
    given = pairs(grad=True)
    LOSSES[name](given).sum().backward()
    assert (given.chosen.grad <= 0).all()
    assert (given.rejected.grad >= 0).all()
    assert (given.chosen.grad < 0).any()


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [(preference.sigmoid, 0.5), (preference.sigmoid, -0.1), (preference.robust, 0.5), (preference.exo, 0.0), (preference.simpo, 0.7)],
)
def test_impossible_label_smoothing(loss, smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        loss(pairs(), label_smoothing=smoothing)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("margin", [-2000.0, -200.0, 200.0, 2000.0])
def test_answers_far_apart_have_a_loss_and_a_gradient_in_float32(name, margin):
    own = [torch.tensor([-3000.0 + half], requires_grad=True) for half in (margin / 2, -margin / 2)]
    lengths, known = torch.tensor([500.0]), torch.tensor([-3000.0])
    loss = LOSSES[name](PairLogps(*own, lengths, lengths, known, known)).sum()
    slopes = torch.autograd.grad(loss, own, allow_unused=True)
    assert all(found.isfinite().all() for found in (loss, *slopes) if found is not None)
