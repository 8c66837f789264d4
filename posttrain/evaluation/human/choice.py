"""The Bradley-Terry model of preferences with ties, for any number of answers, and with an effect of the place an answer stands at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
ROUNDS, CLOSE = 200, 1e-10


@dataclass(frozen=True)
class Strengths:
    """value [K]: log-strengths, summing to 0. covariance [K, K]: theirs. preferred [K]: probability of being preferred at no place of its
    own and without ties. places [K]: log-effects of the places, summing to 0. tie: log of the ties' parameter."""

    value: Array
    covariance: Array
    preferred: Array
    places: Array
    tie: float

    @property
    def se(self) -> Array:
        """Standard errors, [K]."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0.0))  # where nothing was preferred, rounding leaves less than nothing


def strengths(orders: Array, chosen: Array, clusters: Array, *, prior: float = 0.5) -> Strengths:
    """Fits P(arm i) ~ exp(s_i + g_place(i)), P(tie) ~ exp(t + mean of s) by maximum likelihood.

    With two answers this is the model of Davidson, J. Am. Stat. Assoc. 65 (1970) 317-328, with the order effect of Davidson & Beaver,
    Biometrics 33 (1977) 693-702; without ties that of Bradley & Terry, Biometrika 39 (1952) 324-345; with more answers and no ties the
    choice axiom of Luce (1959).

    orders: int [J, K], the arm at each place. chosen: int [J], the arm preferred, K for a tie. clusters: int [J], the item judged; errors
    hold for several judgements of one item (sandwich). prior: imagined judgements of each outcome, half of one by default, over all places
    alike: they keep an arm that always wins finite. 0: the likelihood alone.
    """
    arms = orders.shape[1]
    basis = _contrasts(arms)
    features, picked = _features(orders, basis), np.asarray(chosen, int)
    rolled = np.stack([np.roll(np.arange(arms), turn) for turn in range(arms)])
    imagined, outcomes = np.repeat(rolled, arms + 1, 0), np.tile(np.arange(arms + 1), arms)
    everything = np.concatenate([features, _features(imagined, basis)])
    weights = np.concatenate([np.ones(len(chosen)), np.full(len(outcomes), prior / arms)])
    theta, hessian = _newton(everything, np.concatenate([picked, outcomes]), weights)
    inverse = np.linalg.pinv(hessian)
    scores = _scores(features, picked, theta)
    _, place = np.unique(clusters, return_inverse=True)
    count = int(place.max()) + 1
    sums = np.zeros((count, len(theta)))
    np.add.at(sums, place, scores)
    covariance = inverse @ (sums.T @ sums * count / max(count - 1, 1)) @ inverse
    value, free = basis @ theta[: arms - 1], arms - 1
    odds = np.exp(value - value.max())
    return Strengths(value, basis @ covariance[:free, :free] @ basis.T, odds / odds.sum(), basis @ theta[free : 2 * free], float(theta[-1]))


def _contrasts(count: int) -> Array:
    """[count, count - 1]: columns that span all vectors summing to 0."""
    found = np.eye(count, count - 1) - 1 / count
    return np.linalg.qr(found)[0]


def _features(orders: Array, basis: Array) -> Array:
    """[J, K + 1, P]: of each outcome (arms in their own order, then a tie): strengths, places, tie."""
    count, arms = orders.shape
    free = arms - 1
    out = np.zeros((count, arms + 1, 2 * free + 1))
    out[:, :arms, :free] = basis
    place_of = np.argsort(orders, axis=1)
    out[:, :arms, free : 2 * free] = basis[place_of]
    out[:, arms, -1] = 1.0
    return out


def _probabilities(features: Array, theta: Array) -> Array:
    logits = features @ theta
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def _scores(features: Array, picked: Array, theta: Array) -> Array:
    """Gradient of each judgement's log-likelihood, [J, P]."""
    expected = np.einsum("jo,jop->jp", _probabilities(features, theta), features)
    return np.asarray(features[np.arange(len(picked)), picked] - expected)


def _newton(features: Array, picked: Array, weights: Array) -> tuple[Array, Array]:
    """The maximum, and minus the second derivative there. The log-likelihood is concave; steps that go too far are halved."""
    theta = np.zeros(features.shape[2])
    for _ in range(ROUNDS):
        probabilities = _probabilities(features, theta)
        mean = np.einsum("jo,jop->jp", probabilities, features)
        gradient = weights @ (features[np.arange(len(picked)), picked] - mean)
        away = features - mean[:, None]
        hessian = np.einsum("j,jo,jop,joq->pq", weights, probabilities, away, away)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        before = _likelihood(features, picked, weights, theta)
        while np.abs(step).max() > CLOSE and _likelihood(features, picked, weights, theta + step) < before:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() <= CLOSE:
            break
    return theta, hessian


def _likelihood(features: Array, picked: Array, weights: Array, theta: Array) -> float:
    return float(weights @ np.log(_probabilities(features, theta)[np.arange(len(picked)), picked]))
