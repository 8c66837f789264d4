"""Reward heads: their formulas, their options, and that each of their weights learns."""

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.functional.reward import bradley_terry
from posttrain.models.heads import make
from posttrain.models.loading import seeded

NAMES = ("correctness", "efficiency", "readability")
HEADS = {"scalar": {}, "branch": {"width": 16}, "quantile": {"quantiles": 5}, "median": {"quantiles": 4, "reward": "median"}}


def built(case, size=12, **options):
    with seeded(0):
        return make({"median": "quantile"}.get(case, case), size, NAMES, {**HEADS[case], **options})


@pytest.fixture
def state():
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(1))


def test_branch_is_its_formula(state):
    head = built("branch")
    weights, quality = head.weights(state), head.quality(state).sigmoid()
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    cell, memory = head.recurrent, torch.zeros(6, 16)
    for _ in range(3):
        memory = cell(state, memory)
    wanted = 0.7 * (weights * quality).sum(-1) + 0.3 * head.rethink(memory)[:, 0]
    judged = head(state)
    torch.testing.assert_close(judged.reward, wanted)
    assert ((judged.attributes > 0) & (judged.attributes < 1)).all()
    one_share = built("branch", attribute_share=1.0, recurrent_share=0.0)(state).reward
    assert ((one_share > 0) & (one_share < 1)).all()


def test_each_attribute_learns_from_its_own_rating_alone(state):
    head = built("branch")
    targets = torch.full((6, 3), float("nan"))
    targets[:, 1] = 0.9
    extra = head.auxiliary(head(state), targets)
    extra.sum().backward()
    gradient = head.quality[-1].weight.grad
    assert (gradient[1] != 0).any()
    assert (gradient[[0, 2]] == 0).all()
    assert (head.auxiliary(head(state), torch.full((6, 3), float("nan"))) == 0).all()


@pytest.mark.parametrize(("case", "weights"), [("quantile", [0.2] * 5), ("median", [0, 0.5, 0.5, 0])])
def test_quantile(state, case, weights):
    judged = built(case)(state)
    assert (judged.quantiles.diff(dim=1) > 0).all()
    torch.testing.assert_close(judged.reward, judged.quantiles @ torch.tensor(weights))
    count = len(weights)
    torch.testing.assert_close(judged.levels, torch.tensor([(k + 0.5) / count for k in range(count)]))


@pytest.mark.parametrize("case", HEADS)
def test_heads_overfit_pairs_and_leave_no_weight_out(case):
    state = torch.randn(16, 12, generator=torch.Generator().manual_seed(2))
    head = built(case)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    for _ in range(150):
        pairs = head(state).reward.view(-1, 2)
        loss = bradley_terry(pairs[:, 0], pairs[:, 1], torch.zeros(8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25
    # a constant added to every reward is no preference: the lowest quantile's bias stays
    assert {name for name, value in head.state_dict().items() if torch.equal(value, start[name])} <= {"lowest.bias", "rethink.2.bias"}


@pytest.mark.parametrize("case", HEADS)
def test_a_tree_without_answers_still_reaches_every_weight(case):
    head = built(case)
    head(torch.zeros(0, 12)).reward.sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any() for name, parameter in head.named_parameters() if "attribute" not in name
    )


def test_wrong_options():
    with pytest.raises(ConfigError, match="at least one attribute"):
        make("branch", 12, (), {})
    with pytest.raises(ConfigError, match="integer >= 2"):
        make("quantile", 12, (), {"quantiles": 1})
    with pytest.raises(ConfigError, match="did you mean scalar"):
        make("scaler", 12, (), {})


def test_a_head_is_drawn_from_its_seed():
    assert torch.equal(built("scalar").score.weight, built("scalar").score.weight)
    spread = float(built("scalar", size=4000).score.weight.detach().std())
    assert spread == pytest.approx(4001**-0.5, rel=0.05)
