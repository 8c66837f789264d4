"""Losses on single answers that were judged desirable or not: thumbs up, thumbs down.

Every function maps the log-probabilities of M answers to one loss an answer, [M]; the mean over an optimizer step is the method's.
Written x = log pi(y) - log pi_ref(y), z = `answers.baseline` (0 where there is none).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, where
from torch.nn.functional import logsigmoid

from posttrain.functional.pairs import answer_sums
from posttrain.types import AnswerLogps, TokenTree


def answer_logps(logps: Tensor, reference: Tensor, tree: TokenTree, *, baseline: Tensor | None = None) -> AnswerLogps:
    """Log-probabilities of a tree's answers, one a mark; a value above 0 there says desirable.

    logps, reference: [N], of the targets, under the policy and the reference.
    """
    lengths = answer_sums(logps.new_ones(logps.shape), tree)
    return AnswerLogps(answer_sums(logps, tree), answer_sums(reference, tree), lengths, tree.value > 0, baseline)


def kto(answers: AnswerLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """w_d (1 - sigmoid(beta (x - z))) or w_u (1 - sigmoid(beta (z - x))): KTO (arXiv:2402.01306, eq. 8), less its constant.

    z: an estimate of KL(pi || pi_ref), the mean log-ratio of answers to other prompts, at least 0, without a gradient.
    """
    ratio = beta * (answers.logps - answers.reference - _baseline(answers))
    return where(answers.desirable, desirable_weight * (-ratio).sigmoid(), undesirable_weight * ratio.sigmoid())


def bco_unpaired(answers: AnswerLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """-w_d log sigmoid(beta (x - z)) or -w_u log sigmoid(-beta (x - z)): binary classifier optimisation (arXiv:2404.04656, eq. 8).

    z: the running mean of the log-ratios x.
    """
    shifted = beta * (answers.logps - answers.reference - _baseline(answers))
    return -where(answers.desirable, desirable_weight * logsigmoid(shifted), undesirable_weight * logsigmoid(-shifted))


def apo_zero_unpaired(answers: AnswerLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """w_d (1 - sigmoid(beta x)) or w_u sigmoid(beta x): APO-zero answer by answer (arXiv:2408.06266, eq. 9)."""
    ratio = beta * (answers.logps - answers.reference)
    return where(answers.desirable, desirable_weight * (-ratio).sigmoid(), undesirable_weight * ratio.sigmoid())


def _baseline(answers: AnswerLogps) -> Tensor | float:
    return 0.0 if answers.baseline is None else answers.baseline.detach().to(answers.logps.dtype)


def function_of(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The function of this module behind a partial of it."""
    return loss.func if isinstance(loss, functools.partial) else loss


MISMATCH = frozenset({kto})  # its baseline is the mean log-ratio of answers to other prompts
RUNNING_MEAN = frozenset({bco_unpaired})  # its baseline is the running mean of the log-ratios
