"""Policy losses, advantages and PPO's quantities beside TRL's, verl's and torchtune's, from files made by tests/golden/make_policy.py."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from posttrain.functional import advantages, gae, importance, kl, policy
from posttrain.types import GroupRewards, PolicyTokens

FOLDER = Path(__file__).parents[1] / "golden"
CLOSE = {"rel": 1e-6, "abs": 1e-9}
EVEN = {"clip": 0.2, "clip_high": None}
FAR = {"clip": 0.2, "clip_high": 0.28, "dual_clip": 3.0}


def read(package):
    (file,) = FOLDER.glob(f"policy_{package}_*.json")
    return json.loads(file.read_text())


FILES = {name: read(name) for name in ("trl", "verl", "torchtune")}


def tensors(file):
    return {name: torch.tensor(table, dtype=torch.float64) for name, table in file["inputs"].items()}


def flat(table, there):
    """The tokens of all answers, one answer after the other."""
    table = torch.as_tensor(table, dtype=torch.float64)
    return (table if table.dim() == 2 else table[:, None].expand_as(there))[there.bool()]


def policy_tokens(given, *, advantages="advantages", corrected=False):
    """Packed tokens of the padded inputs, what a tool returned among them with weight 0."""
    there, mask = given["there"], given["mask"]
    packed = partial(flat, there=there)
    return PolicyTokens(
        logps=packed(given["logps"]).requires_grad_(),
        old=packed(given["old"]),
        advantages=packed(given[advantages]),
        weight=packed(mask),
        sequence=torch.arange(len(mask)).repeat_interleave(there.sum(1).long()),
        lengths=mask.sum(1).long(),
        step_tokens=float(mask.sum()),
        step_sequences=len(mask),
        longest=8,
        correction=packed(given["weights"]) if corrected else None,
    )


def with_kl(tokens, given, *, loss, aggregation, coef, unbiased):
    """GRPO's divergence beside its loss; no correction of the sampler holds for it."""
    ratio = policy.ratios(tokens) if unbiased else None
    per_token = kl.penalty(tokens.logps, flat(given["reference"], given["there"]), ratio)
    plain = PolicyTokens(**{**vars(tokens), "correction": None})
    part, metrics = loss(tokens, aggregation=aggregation)
    return part + coef * policy.aggregate(per_token, plain, aggregation=aggregation), metrics


CLIPPED = partial(policy.clipped, **EVEN)
OURS = {
    "trl": {
        "grpo": CLIPPED,
        "bnpo": partial(CLIPPED, aggregation="token_mean"),
        "dr_grpo": partial(CLIPPED, aggregation="fixed_length"),
        "dapo": partial(policy.clipped, clip=0.2, clip_high=0.28, aggregation="token_mean"),
        "two_sided": partial(CLIPPED, dual_clip=3.0),
        "gspo": partial(CLIPPED, level="sequence"),
        "luspo": partial(CLIPPED, level="sequence", aggregation="sequence_sum"),
        "gspo_token": partial(CLIPPED, level="sequence_token"),
        "cispo": partial(policy.cispo, upper=2.0),
        "sapo": policy.sapo,
        "corrected": partial(CLIPPED, aggregation="token_mean"),
        "corrected_gspo": partial(CLIPPED, level="sequence"),
        "with_kl": CLIPPED,
        "with_unbiased_kl": CLIPPED,
        "rloo": partial(CLIPPED, level="sequence_product"),
    },
    "verl": {
        "ppo": partial(CLIPPED, aggregation="token_mean"),
        "dual_clip": partial(policy.clipped, **FAR, aggregation="token_mean"),
        "dual_clip_token_advantages": partial(policy.clipped, **FAR),
        "grpo": CLIPPED,
        "sequence_sum": partial(CLIPPED, aggregation="sequence_sum"),
        "dr_grpo": partial(CLIPPED, aggregation="fixed_length"),
        "corrected": partial(policy.clipped, **FAR, aggregation="token_mean"),
        "gspo": partial(CLIPPED, level="sequence"),
        "gspo_token_advantages": partial(CLIPPED, level="sequence_token"),  # what verl calls gspo
        "sapo": policy.sapo,
        "cispo": partial(policy.cispo, lower=0.7, upper=2.0),
        "reinforce": partial(policy.reinforce, aggregation="sequence_sum"),
    },
}
KL = {"with_kl": ("sequence_mean", False), "with_unbiased_kl": ("token_mean", True)}
TOKEN_ADVANTAGES = {"ppo", "dual_clip_token_advantages", "gspo_token_advantages"}
CORRECTED = {"corrected", "corrected_gspo", "with_unbiased_kl"}


@pytest.mark.parametrize("package", OURS)
def test_every_case_is_compared(package):
    assert set(FILES[package]["losses"]) == set(OURS[package])


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in OURS for name in OURS[package]])
def test_loss_and_gradient(package, name):
    given, case, loss = tensors(FILES[package]), FILES[package]["losses"][name], OURS[package][name]
    if name in KL:
        loss = partial(with_kl, given=given, loss=loss, aggregation=KL[name][0], coef=0.25, unbiased=KL[name][1])
    tokens = policy_tokens(given, advantages="token_advantages" if name in TOKEN_ADVANTAGES else "advantages", corrected=name in CORRECTED)
    found, _ = loss(tokens)
    found.backward()
    assert found.item() == pytest.approx(case["loss"], **CLOSE)
    assert tokens.logps.grad.tolist() == pytest.approx(flat(case["gradient"], given["there"]).tolist(), **CLOSE)


ADVANTAGES = {
    "group": advantages.group,
    "batch": partial(advantages.group, scale="batch"),
    "none": partial(advantages.group, scale="none"),
    "decoupled": advantages.decoupled,
    "leave_one_out": advantages.leave_one_out,
    "leave_one_out_normalised": partial(advantages.leave_one_out, normalise=True),
    "reinforce_plus_plus": advantages.reinforce_plus_plus,
    "reinforce_plus_plus_baseline": partial(advantages.reinforce_plus_plus, baseline=True),
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in ("trl", "verl") for name in FILES[package]["advantages"]])
def test_advantages(package, name):
    given, wanted = tensors(FILES[package]), torch.tensor(FILES[package]["advantages"][name], dtype=torch.float64)
    parts = given["parts"][:, : len(wanted)]
    total = (parts * given["weights_of_parts"][:, None, None]).nansum(0).masked_fill(parts.isnan().all(0), float("nan"))
    options = {"eps": 1e-6} if (package, name) == ("verl", "group") else {}
    found = ADVANTAGES[name](GroupRewards(total, parts, given["weights_of_parts"]), **options)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("package", ["trl", "verl"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_correction_for_the_sampler(package, level, mode):
    given = tensors(FILES[package])
    tokens, sampler = policy_tokens(given), flat(given["sampler"], given["there"])
    least = 0.5 if mode == "mask" else None
    weights, _ = importance.correction(tokens.old, sampler, tokens.sequence, 4, level=level, mode=mode, most=1.5, least=least)
    wanted = flat(FILES[package]["correction"][f"{level}_{mode}"], given["there"])
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_divergences(name):
    given = tensors(FILES["verl"])
    found = kl.penalty(given["logps"], given["reference"], estimator=name)
    torch.testing.assert_close(found, torch.tensor(FILES["verl"]["kl"][name], dtype=torch.float64), rtol=1e-6, atol=1e-9)


def gae_of(given):
    """Our advantages and returns of the values, with what the references take for rewards."""
    packed = partial(flat, there=given["there"])
    lengths = given["there"].sum(1).long()
    return gae.gae(packed(given["returns"]), packed(given["values"]), lengths, gamma=0.9, lam=0.8)


def close(found, wanted, given):
    torch.testing.assert_close(found, flat(wanted, given["there"]), rtol=1e-6, atol=1e-9)


def test_advantages_over_time_and_whitening():
    trl, given = FILES["trl"]["ppo"], tensors(FILES["trl"])
    found, returns = gae_of(given)
    close(found, trl["advantages"], given)
    close(returns, trl["returns"], given)
    values = flat(given["values"], given["there"])
    ones = torch.ones_like(values)
    sums = gae.moments(values, ones)
    assert gae.mean_and_variance(sums)[1:] == pytest.approx((trl["mean"], trl["variance"]), **CLOSE)
    close(gae.whiten(values, ones, sums), trl["whitened"], given)
    close(gae.whiten(values, ones, sums, shift_mean=False), trl["whitened_in_place"], given)


def test_whitened_advantages():
    verl, torchtune, given = FILES["verl"]["gae"], FILES["torchtune"], tensors(FILES["verl"])
    found, returns = gae_of(given)
    ones = torch.ones_like(found)
    close(gae.whiten(found, ones, gae.moments(found, ones)), verl["whitened"], given)
    close(gae.whiten(found, ones, gae.moments(found, ones), shift_mean=False), torchtune["advantages_with_their_mean"], given)
    for wanted in (verl["returns"], torchtune["returns"]):
        close(returns, wanted, given)


@pytest.mark.parametrize("package", ["verl", "torchtune"])
def test_value_loss(package):
    given, case = tensors(FILES[package]), FILES[package]["value_loss"]
    packed = partial(flat, there=given["there"])
    values, ones = packed(given["values"]).requires_grad_(), packed(given["there"])
    loss, _ = gae.value_loss(values, packed(given["old_values"]), packed(given["returns"]), ones, float(ones.sum()), clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], **CLOSE)
    close(values.grad, case["gradient"], given)


def test_torchtunes_policy_loss_and_rewards():
    file, given = FILES["torchtune"], tensors(FILES["torchtune"])
    given["mask"] = given["there"]
    tokens = policy_tokens(given, advantages="token_advantages")
    loss, _ = OURS["verl"]["ppo"](tokens)
    loss.backward()
    assert loss.item() == pytest.approx(file["ppo"]["loss"], **CLOSE)
    close(tokens.logps.grad, file["ppo"]["gradient"], given)
    reference = flat(given["reference"], given["there"])
    close(gae.token_rewards(given["scores"], tokens.old, reference, tokens.lengths, coef=0.05), file["rewards"], given)


def test_adaptive_coefficient():
    coef, found = 0.05, []
    for divergence in (9.0, 6.5, 1.0):
        coef = gae.adapted(coef, divergence, target=6.0, rate=256 / 10000)
        found.append(coef)
    assert found == pytest.approx(FILES["verl"]["adaptive"], **CLOSE)
