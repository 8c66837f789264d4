"""Policy losses in plain arithmetic, their gradients, and what must not change them: how a step is split."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import policy
from posttrain.types import PolicyTokens

numbers = partial(torch.tensor, dtype=torch.float64)
LENGTHS = (3, 1, 2)
LOG_RATIOS = (0.5, -0.4, 0.1, -0.9, 0.3, 1.4)
ADVANTAGES = (1.0, 1.0, 1.0, -2.0, -0.5, -0.5)  # of answers of 3, 1 and 2 tokens
LOGPS = (-1.0, -0.5, -2.0, -0.25, -3.0, -1.5)


def tokens(log_ratios=LOG_RATIOS, advantages=ADVANTAGES, weight=(1.0,) * 6, lengths=LENGTHS, grad=True):
    logps = numbers(LOGPS)
    return PolicyTokens(
        logps=logps.clone().requires_grad_(grad),
        old=logps - numbers(log_ratios),
        advantages=numbers(advantages),
        weight=numbers(weight),
        sequence=torch.arange(3).repeat_interleave(torch.tensor(LENGTHS)),
        lengths=torch.tensor(lengths),
        step_tokens=float(sum(lengths)),
        step_sequences=3,
        longest=4,
    )


def gradient(loss, given):
    given = replace(given, logps=given.logps.detach().requires_grad_())
    found, _ = loss(given)
    return found.item(), torch.autograd.grad(found, given.logps)[0]


LOSSES = {
    "token": policy.clipped,
    "dual": partial(policy.clipped, dual_clip=3.0, clip_high=0.28),
    "sequence": partial(policy.clipped, level="sequence"),
    "sequence_token": partial(policy.clipped, level="sequence_token"),
    "sequence_product": partial(policy.clipped, level="sequence_product"),
    "cispo": partial(policy.cispo, lower=0.5, upper=2.0),
    "sapo": policy.sapo,
    "reinforce": policy.reinforce,
}
AGGREGATIONS = ("sequence_mean", "token_mean", "fixed_length", "sequence_sum")


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("sequence_mean", (2 + 4 + 5.5) / 3), ("token_mean", 21 / 6), ("fixed_length", 21 / 12), ("sequence_sum", 21 / 3)],
)
def test_aggregations(aggregation, expected):
    values = numbers((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert policy.aggregate(values, tokens(), aggregation=aggregation).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("sequence_mean", (2 + 0 + 5.5) / 3), ("token_mean", 15 / 4), ("fixed_length", 15 / 12), ("sequence_sum", 15 / 3)],
)
def test_masked_tokens_do_not_count_and_an_answer_without_tokens_adds_nothing(aggregation, expected):
    given = tokens(weight=(1, 0, 1, 0, 1, 1), lengths=(2, 0, 2))
    values = numbers((1.0, math.nan, 3.0, math.inf, 5.0, 6.0))
    assert policy.aggregate(values, given, aggregation=aggregation).item() == pytest.approx(expected)


def test_corrections_scale_and_do_not_change_denominators():
    values, given = torch.ones(6, dtype=torch.float64), tokens()
    corrected = replace(given, correction=numbers((0.5, 0, 2, 0.5, 1, 1)))
    assert policy.aggregate(values, corrected, aggregation="token_mean").item() == pytest.approx(5 / 6)
    level = partial(policy.ratios, level="sequence")
    assert torch.equal(level(corrected), level(given))


def test_unknown_names_and_empty_steps():
    given = tokens()
    with pytest.raises(ValueError, match="aggregation"):
        policy.aggregate(given.logps, given, aggregation="mean")
    with pytest.raises(ValueError, match="level"):
        policy.ratios(given, level="answer")
    with pytest.raises(ValueError, match="denominator"):
        policy.aggregate(given.logps, replace(given, step_tokens=0.0), aggregation="token_mean")


def test_ratios():
    first = (0.5 - 0.4 + 0.1, 0.2 / 3)
    assert policy.ratios(tokens()).tolist() == pytest.approx([math.exp(x) for x in LOG_RATIOS])
    for level, (of_first, of_last) in {"sequence_product": (first[0], 1.7), "sequence": (first[1], 0.85)}.items():
        expected = [math.exp(x) for x in (*[of_first] * 3, -0.9, *[of_last] * 2)]
        assert policy.ratios(tokens(), level=level).tolist() == pytest.approx(expected)
    assert policy.ratios(tokens(), level="sequence_token").tolist() == pytest.approx(policy.ratios(tokens(), level="sequence").tolist())
    assert policy.ratios(tokens(), log_ratio_clamp=0.3).log().tolist() == pytest.approx([0.3, -0.3, 0.1, -0.3, 0.3, 0.3])


def test_a_masked_token_is_in_no_ratio_and_cannot_harm():
    given = tokens(log_ratios=(0.5, math.inf, 0.1, -0.9, 0.3, 1.4), weight=(1, 0, 1, 1, 1, 1), lengths=(2, 1, 2))
    assert policy.ratios(given, level="sequence")[0].item() == pytest.approx(math.exp(0.3))
    for loss in LOSSES.values():
        found, grad = gradient(loss, given)
        assert math.isfinite(found)
        assert grad.isfinite().all()
        assert grad[1] == 0


def surrogate(ratio, advantage, low=0.8, high=1.2, most=math.inf):
    return -min(min(ratio, most) * advantage, min(max(ratio, low), high) * advantage)


def test_clipped_by_token():
    values = [surrogate(math.exp(d), a) for d, a in zip(LOG_RATIOS, ADVANTAGES, strict=True)]
    loss, metrics = policy.clipped(tokens(), aggregation="token_mean")
    assert loss.item() == pytest.approx(sum(values) / 6)
    assert metrics["clip/low"].item() == pytest.approx(1 / 6)  # exp(-0.9) with A < 0
    assert metrics["clip/high"].item() == pytest.approx(1 / 6)  # exp(0.5) with A > 0
    assert metrics["ratio/mean"].item() == pytest.approx(sum(map(math.exp, LOG_RATIOS)) / 6)
    assert metrics["ratio/kl"].item() == pytest.approx(sum(math.exp(d) - 1 - d for d in LOG_RATIOS) / 6)
    assert "clip/dual" not in metrics


def test_clipped_above_and_dual():
    loss, metrics = policy.clipped(tokens(), clip_high=0.28, dual_clip=3.0, aggregation="token_mean")
    values = [surrogate(math.exp(d), a, high=1.28, most=3.0 if a < 0 else math.inf) for d, a in zip(LOG_RATIOS, ADVANTAGES, strict=True)]
    assert loss.item() == pytest.approx(sum(values) / 6)
    assert metrics["clip/dual"].item() == pytest.approx(1 / 6)  # exp(1.4) with A < 0


def test_clipped_by_answer_is_the_mean_of_the_answers_objectives():
    for level, log_ratios in {"sequence_product": (0.2, -0.9, 1.7), "sequence": (0.2 / 3, -0.9, 0.85)}.items():
        answers = [surrogate(math.exp(d), a) for d, a in zip(log_ratios, (1.0, -2.0, -0.5), strict=True)]
        loss, metrics = policy.clipped(tokens(), level=level)
        assert loss.item() == pytest.approx(sum(answers) / 3)
        assert metrics["clip/low"].item() == pytest.approx(1 / 3)
        assert metrics["ratio/mean"].item() == pytest.approx(sum(map(math.exp, log_ratios)) / 3)


def test_gradient_of_an_answers_ratio():
    """GSPO, eq. 10: A s mean_t grad log pi; of the product: A rho sum_t grad log pi."""
    wide = partial(policy.clipped, clip=1.0, clip_high=9.0)
    _, grad = gradient(partial(wide, level="sequence"), tokens())
    s = [math.exp(d) for d in (0.2 / 3, -0.9, 0.85)]
    assert grad.tolist() == pytest.approx([*[-s[0] / 9] * 3, 2 * s[1] / 3, *[0.5 * s[2] / 6] * 2])
    _, by_token = gradient(partial(wide, level="sequence_token"), tokens())
    torch.testing.assert_close(by_token, grad)
    _, grad = gradient(partial(wide, level="sequence_product"), tokens())
    rho = [math.exp(d) for d in (0.2, -0.9, 1.7)]
    assert grad.tolist() == pytest.approx([*[-rho[0] / 3] * 3, 2 * rho[1] / 3, *[0.5 * rho[2] / 3] * 2])


def test_a_clipped_token_has_no_gradient():
    _, grad = gradient(policy.clipped, tokens())
    assert (grad == 0).tolist() == [True, False, False, True, False, False]
    _, grad = gradient(partial(policy.clipped, dual_clip=3.0), tokens())
    assert (grad == 0).tolist() == [True, False, False, True, False, True]


def test_cispo_keeps_every_gradient():
    loss, metrics = policy.cispo(tokens(), lower=0.5, upper=2.0)
    weights = [min(max(math.exp(d), 0.5), 2.0) for d in LOG_RATIOS]
    assert loss.item() == pytest.approx(-sum(w * a * x for w, a, x in zip(weights, ADVANTAGES, LOGPS, strict=True)) / 6)
    _, grad = gradient(partial(policy.cispo, lower=0.5, upper=2.0), tokens())
    assert grad.tolist() == pytest.approx([-w * a / 6 for w, a in zip(weights, ADVANTAGES, strict=True)])
    assert (metrics["clip/low"].item(), metrics["clip/high"].item()) == pytest.approx((1 / 6, 1 / 6))


def test_sapo():
    gates = [4 / t / (1 + math.exp(-t * (math.exp(d) - 1))) for d, t in zip(LOG_RATIOS, (1.0,) * 3 + (1.05,) * 3, strict=True)]
    loss, _ = policy.sapo(tokens(), aggregation="token_mean")
    assert loss.item() == pytest.approx(-sum(g * a for g, a in zip(gates, ADVANTAGES, strict=True)) / 6)


ON_POLICY = {  # loss -> REINFORCE's aggregation with the same gradient where it has this one
    "token": None,
    "dual": None,
    "sequence": "sequence_mean",
    "sequence_token": None,
    "sequence_product": "sequence_sum",
    "cispo": None,
    "sapo": None,
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", [name for name, own in ON_POLICY.items() if own is None])
def test_on_policy_the_gradient_is_reinforces(name, aggregation):
    given = tokens(log_ratios=(0.0,) * 6)
    _, ours = gradient(partial(LOSSES[name], aggregation=aggregation), given)
    _, expected = gradient(partial(policy.reinforce, aggregation=aggregation), given)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["sequence", "sequence_product"])
def test_on_policy_the_gradient_of_answers_is_reinforces(name):
    given = tokens(log_ratios=(0.0,) * 6)
    _, ours = gradient(partial(LOSSES[name], aggregation="sequence_mean"), given)
    _, expected = gradient(partial(policy.reinforce, aggregation=ON_POLICY[name]), given)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_split_over_micro_batches_changes_nothing(name, aggregation):
    loss, whole = partial(LOSSES[name], aggregation=aggregation), tokens(weight=(1, 1, 0.5, 1, 0, 1), lengths=(3, 1, 1))
    value, grad = gradient(loss, whole)
    _, metrics = loss(whole)
    values, grads, parts = [], [], []
    for answers in ([0, 2], [1], []):
        places = torch.tensor([i for i in range(6) if whole.sequence[i] in answers], dtype=torch.int64)
        names = ("logps", "old", "advantages", "weight")
        part = replace(
            whole,
            **{n: getattr(whole, n).detach()[places] for n in names},
            sequence=torch.tensor([answers.index(int(s)) for s in whole.sequence[places]], dtype=torch.int64),
            lengths=whole.lengths[answers],
        )
        found, of_part = gradient(loss, part)
        values.append(found)
        grads.append((places, of_part))
        parts.append(loss(part)[1])
    assert sum(values) == pytest.approx(value)
    joined = torch.zeros(6, dtype=torch.float64)
    for places, of_part in grads:
        joined[places] = of_part
    torch.testing.assert_close(joined, grad)
    for key, total in metrics.items():
        assert sum(part[key].item() for part in parts) == pytest.approx(total.item()), key


def test_equal_clips_make_dapo_grpo_with_the_other_mean():
    dapo = partial(policy.clipped, clip=0.2, clip_high=0.2, aggregation="token_mean")
    one_length = replace(tokens(), sequence=torch.arange(3).repeat_interleave(2), lengths=torch.tensor((2, 2, 2)))
    for ours, theirs in zip(gradient(dapo, one_length), gradient(policy.clipped, one_length), strict=True):
        torch.testing.assert_close(ours, theirs)  # equal where all answers are of one length
    assert gradient(dapo, tokens())[0] != pytest.approx(gradient(policy.clipped, tokens())[0])


@pytest.mark.parametrize("name", LOSSES)
def test_all_masked_is_zero(name):
    found, grad = gradient(LOSSES[name], replace(tokens(weight=(0.0,) * 6, lengths=(0, 0, 0)), step_tokens=4.0))
    assert found == 0
    assert torch.equal(grad, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("cispo", "sequence_token")])  # these stop gradients on purpose
def test_gradients_are_those_of_the_values(name):
    given = tokens()
    assert gradcheck(lambda logps: LOSSES[name](replace(given, logps=logps))[0], (given.logps,))


@pytest.mark.parametrize(
    "loss",
    [
        partial(policy.clipped, clip=-0.1), partial(policy.clipped, clip=1.5), partial(policy.clipped, clip_high=-1.0),
        partial(policy.clipped, dual_clip=1.2), partial(policy.cispo, lower=2.0, upper=1.0), partial(policy.sapo, tau_positive=0.0),
    ],
)  # fmt: skip
def test_options_out_of_range(loss):
    with pytest.raises(ValueError, match=r"clip|cispo|sapo"):
        loss(tokens())


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_product"])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_answers_that_have_become_far_likelier_have_a_loss_and_a_gradient(level, advantage):
    """4,000 tokens, each 3 % likelier: e^120 is no number in float32. Nothing is gained or lost where there is no advantage or a clip."""
    count, given = 4000, torch.full((4000,), -1.0)
    known = PolicyTokens(
        logps=(given + 0.03).requires_grad_(), old=given, advantages=torch.full((count,), advantage), weight=torch.ones(count),
        sequence=torch.zeros(count, dtype=torch.long), lengths=torch.tensor([count]), step_tokens=float(count), step_sequences=1, longest=count,
    )  # fmt: skip
    loss, metrics = policy.clipped(known, level=level)
    (slope,) = torch.autograd.grad(loss, known.logps)
    assert all(found.isfinite().all() for found in (loss, slope, metrics["ratio/mean"]))
    if advantage == 0 or (advantage > 0 and level == "sequence_product"):
        assert not slope.any()
