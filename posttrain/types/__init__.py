"""Frozen types that travel between the floors, by subject; no behaviour."""

from posttrain.types.examples import Answer, Example, Rendering, Step
from posttrain.types.losses import AnswerLogps, Judged, PairLogps, PolicyTokens, Rated, TokenStats
from posttrain.types.rollouts import Arrangement, Completion, Group, GroupRewards, Part, Rollout, Sample
from posttrain.types.trees import StepShare, Stretch, TokenizedExample, TokenTree
from posttrain.types.work import Work

__all__ = [
    "Answer",
    "AnswerLogps",
    "Arrangement",
    "Completion",
    "Example",
    "Group",
    "GroupRewards",
    "Judged",
    "PairLogps",
    "Part",
    "PolicyTokens",
    "Rated",
    "Rendering",
    "Rollout",
    "Sample",
    "Step",
    "StepShare",
    "Stretch",
    "TokenStats",
    "TokenTree",
    "TokenizedExample",
    "Work",
]
