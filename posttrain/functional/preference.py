"""Losses on pairs of answers, one preferred to the other.

Every function maps the log-probabilities of P pairs to one loss a pair, [P]; the mean over an optimizer step is the method's. Written
c = log pi(y_w) - log pi_ref(y_w) for the chosen and r for the rejected answer, s = label_smoothing, f = the divergence's transform.
Names and formulas are the papers'; where implementations differ, the docstring says what is computed here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from posttrain.functional.divergences import bounded, reverse_kl
from posttrain.types import PairLogps

Divergence = Callable[[Tensor], Tensor]


def log_ratios(pairs: PairLogps) -> tuple[Tensor, Tensor]:
    """c and r, [P] each. Raises ValueError without a reference."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("this loss compares with a reference policy: choose a reference, or a loss without one (simpo, cpo, orpo)")
    return pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected


def sigmoid(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl) -> Tensor:
    """-(1 - s) log sigmoid(beta D) - s log sigmoid(-beta D), D = f(c) - f(r): DPO (arXiv:2305.18290, eq. 7).

    label_smoothing: probability that a label is wrong, which makes it conservative DPO (cDPO). Raises ValueError outside [0, 0.5).
    """
    _check_smoothing(label_smoothing)
    return _smoothed(beta * _difference(pairs, divergence), label_smoothing)


def sigmoid_norm(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """DPO on log-ratios per token, c / |y_w| - r / |y_l| (Tulu 3, arXiv:2411.15124, section 5.1.2)."""
    _check_smoothing(label_smoothing)
    c, r = log_ratios(pairs)
    return _smoothed(beta * (c / pairs.chosen_length - r / pairs.rejected_length), label_smoothing)


def hinge(pairs: PairLogps, *, beta: float = 0.1, divergence: Divergence = reverse_kl) -> Tensor:
    """max(0, 1 - beta D): the hinge of SLiC (arXiv:2305.10425) on DPO's margin (RSO, arXiv:2309.06657, eq. 12)."""
    return relu(1 - beta * _difference(pairs, divergence))


def ipo(pairs: PairLogps, *, beta: float = 0.1, per_token: bool = True) -> Tensor:
    """(D - 1 / (2 beta))^2: IPO (arXiv:2310.12036, eq. 17).

    per_token: D = c / |y_w| - r / |y_l|, as its authors train (and most implementations); False: D = c - r, as the paper's formula reads.
    """
    c, r = log_ratios(pairs)
    difference = c / pairs.chosen_length - r / pairs.rejected_length if per_token else c - r
    return (difference - 1 / (2 * beta)).square()


def exo(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 1e-3, divergence: Divergence = reverse_kl) -> Tensor:
    """KL(p || q) of p = sigmoid(beta D) to the labels q = (1 - s, s): EXO for pairs (arXiv:2402.00856, eq. 16).

    Raises ValueError unless 0 < label_smoothing < 0.5: with hard labels the divergence is infinite.
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"exo needs label_smoothing in (0, 0.5), got {label_smoothing}")
    x = beta * _difference(pairs, divergence)
    smoothing = torch.as_tensor(label_smoothing, dtype=x.dtype)
    return x.sigmoid() * (logsigmoid(x) - torch.log1p(-smoothing)) + (-x).sigmoid() * (logsigmoid(-x) - smoothing.log())


def nca(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta c) - log sigmoid(-beta c) / 2 - log sigmoid(-beta r) / 2: NCA for pairs (arXiv:2402.05369, eq. 14)."""
    c, r = (beta * x for x in log_ratios(pairs))
    return -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)


def robust(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.1, divergence: Divergence = reverse_kl) -> Tensor:
    """[-(1 - s) log sigmoid(beta D) + s log sigmoid(-beta D)] / (1 - 2 s): unbiased where a share s of the labels is flipped
    (arXiv:2403.00409, eq. 11). Raises ValueError outside [0, 0.5)."""
    _check_smoothing(label_smoothing)
    x = beta * _difference(pairs, divergence)
    return (-(1 - label_smoothing) * logsigmoid(x) + label_smoothing * logsigmoid(-x)) / (1 - 2 * label_smoothing)


def bco(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta c - d) - log sigmoid(-(beta r - d)): BCO on pairs (arXiv:2404.04656, eq. 8).

    d: beta times `pairs.baseline`, the running mean of the log-ratios c and r; 0 where there is none.
    """
    c, r = (beta * x for x in log_ratios(pairs))
    shift = 0.0 if pairs.baseline is None else beta * pairs.baseline.detach().to(c.dtype)
    return -logsigmoid(c - shift) - logsigmoid(shift - r)


def sppo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2: SPPO with hard labels (arXiv:2405.00675, eq. 4.7; its eta is 1 / beta)."""
    c, r = log_ratios(pairs)
    return (c - 1 / (2 * beta)).square() + (r + 1 / (2 * beta)).square()


def aot(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Smoothed logistic loss on sorted margins: alignment by optimal transport, paired (arXiv:2406.05882, section 3).

    The policy's margins log pi(y_w) - log pi(y_l) and the reference's are sorted over all P pairs; their differences, quantile by
    quantile, take the place of D. P must be the whole optimizer step.
    """
    _check_smoothing(label_smoothing)
    c, r = log_ratios(pairs)
    ours = pairs.chosen - pairs.rejected
    theirs = ours - (c - r)
    return _smoothed(beta * (ours.sort().values - theirs.detach().sort().values), label_smoothing)


def aot_unpaired(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Smoothed logistic loss on sorted c minus sorted r: alignment by optimal transport, unpaired (arXiv:2406.05882, section 3).

    P must be the whole optimizer step.
    """
    _check_smoothing(label_smoothing)
    c, r = log_ratios(pairs)
    return _smoothed(beta * (c.sort().values - r.sort().values), label_smoothing)


def apo_zero(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta c) + sigmoid(beta r): raises the chosen and lowers the rejected answer (arXiv:2408.06266, eq. 9)."""
    c, r = log_ratios(pairs)
    return 1 - (beta * c).sigmoid() + (beta * r).sigmoid()


def apo_down(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """sigmoid(beta c) + 1 - sigmoid(beta (c - r)): lowers both, the rejected one more, for a policy better than its data
    (arXiv:2408.06266, eq. 10)."""
    c, r = log_ratios(pairs)
    return (beta * c).sigmoid() + 1 - (beta * (c - r)).sigmoid()


def discopop(pairs: PairLogps, *, beta: float = 0.1, tau: float = 0.05, divergence: Divergence = reverse_kl) -> Tensor:
    """(1 - m) (-log sigmoid x) + m e^-x, x = beta D, m = sigmoid(x / tau): log-ratio modulated loss (arXiv:2406.08414, eq. 5).

    m e^-x is computed as one exponential: for answers far on the wrong side it is nothing, though e^-x alone is no number any more.
    """
    x = beta * _difference(pairs, divergence)
    return (-x / tau).sigmoid() * -logsigmoid(x) + bounded(logsigmoid(x / tau) - x).exp()


def cpo(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss with a uniform reference, x = beta (log pi(y_w) - log pi(y_l)): CPO's preference term (arXiv:2401.08417, eq. 3)."""
    _check_smoothing(label_smoothing)
    return _smoothed(beta * (pairs.chosen - pairs.rejected), label_smoothing)


def simpo(pairs: PairLogps, *, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0, alpha: float = 0.0) -> Tensor:
    """Smoothed logistic loss of beta (p_w - p_l) - gamma, p = log pi(y) / |y|: SimPO (arXiv:2405.14734, eq. 6).

    gamma: margin of the rewards, in their units. alpha: AlphaPO (arXiv:2501.03884, eq. 6) where it is not 0: (1 - e^(-alpha p)) / alpha
    in place of p.
    """
    _check_smoothing(label_smoothing)
    chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    if alpha:
        chosen, rejected = (-torch.expm1(-alpha * p) / alpha for p in (chosen, rejected))
    return _smoothed(beta * (chosen - rejected) - gamma, label_smoothing)


def orpo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """-beta log sigmoid(log odds_w - log odds_l), odds = p / (1 - p), log p = log pi(y) / |y|: ORPO's ratio term
    (arXiv:2403.07691, eq. 7); beta is the paper's lambda."""
    chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    return -beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def weighted(pairs: PairLogps, *, beta: float = 0.1, terms: Mapping[str, Any]) -> Tensor:
    """Weighted sum of the losses above: MPO (arXiv:2411.10442, eq. 1) is 0.8 sigmoid + 0.2 bco, with an SFT term beside it.

    terms: name of a loss -> its weight, or {"weight": w, option: value ...}; `beta` holds for every loss that is not given its own, which
        then follows no schedule.
    Raises ValueError for an unknown loss or option, and without terms.
    """
    if not terms:
        raise ValueError("weighted needs its losses: method.loss.terms={sigmoid:0.8,bco:0.2}")
    read = {name: _term(name, term) for name, term in terms.items()}
    if not any(weight for weight, _ in read.values()):
        raise ValueError("all weights of method.loss.terms are 0")
    total = torch.zeros_like(pairs.chosen)
    for name, (weight, options) in read.items():
        total = total + weight * LOSSES[name](pairs, **{"beta": beta, **options})
    return total


def _term(name: str, term: Any) -> tuple[float, dict[str, Any]]:
    """Weight and options of one term."""
    if name not in LOSSES:
        raise ValueError(f"there is no pair loss {name!r}; known: {', '.join(sorted(LOSSES))}")
    weight = term.get("weight", 1.0) if isinstance(term, Mapping) else term
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"the weight of {name} must be a number of at least 0, got {weight!r}")
    if not isinstance(term, Mapping):
        return float(term), {}
    options = dict(term)
    if not options.get("beta", 1.0) > 0:
        raise ValueError(f"beta of {name} must be positive, got {options['beta']}")
    if unknown := set(options) - {"weight"} - set(inspect.signature(LOSSES[name]).parameters):
        raise ValueError(f"{name} has no option {sorted(unknown)[0]!r}")
    return float(options.pop("weight", 1.0)), options


def parts_of(loss: Callable[..., Any]) -> set[Callable[..., Any]]:
    """The functions of this module that a loss is made of: itself, or the terms of `weighted`. loss: a function or a partial of one."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, functools.partial) else (loss, {})
    return {LOSSES[name] for name in options.get("terms") or {} if name in LOSSES} if function is weighted else {function}


def _log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p), in float32 or wider; a probability of one counts as the largest below it."""
    wide = logp.to(torch.promote_types(logp.dtype, torch.float32))
    wide = wide.clamp(max=-torch.finfo(wide.dtype).eps)
    return wide - torch.log(-torch.expm1(wide))


def _difference(pairs: PairLogps, divergence: Divergence) -> Tensor:
    """D = f(c) - f(r), [P]."""
    c, r = log_ratios(pairs)
    return divergence(c) - divergence(r)


def _smoothed(x: Tensor, smoothing: float) -> Tensor:
    """-(1 - s) log sigmoid(x) - s log sigmoid(-x)."""
    return -(1 - smoothing) * logsigmoid(x) - smoothing * logsigmoid(-x)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"label_smoothing is the share of wrong labels and must lie in [0, 0.5), got {smoothing}")


LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        sigmoid, sigmoid_norm, hinge, ipo, exo, nca, robust, bco, sppo, aot, aot_unpaired, apo_zero, apo_down, discopop, cpo, simpo, orpo,
    )
}  # fmt: skip
WHOLE_STEP = frozenset({aot, aot_unpaired})  # each loss depends on all pairs of the optimizer step
REFERENCE_FREE = frozenset({cpo, simpo, orpo})  # read the policy alone
BASELINE = frozenset({bco})  # reads `pairs.baseline`
