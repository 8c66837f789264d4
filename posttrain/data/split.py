"""A validation set cut from the training rows where the user gave none: whole documents, seeded."""

from __future__ import annotations

import numpy as np


def split(documents: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices of the train and of the validation examples, and one line that says how they were chosen.

    documents: int [N], the document of each example; examples of one document stay together. A single document is cut once: its
    last examples validate. At least one document trains; nothing validates where there is only one example or fraction is 0.
    """
    names, place_of = np.unique(documents, return_inverse=True)
    everything = np.arange(len(documents))
    if fraction <= 0 or len(documents) < 2:
        reason = "data.val_fraction is 0" if fraction <= 0 else "there is only one example"
        return everything, everything[:0], f"no validation set: {reason}"
    if len(names) == 1:
        count = _held_out(len(documents), fraction)
        return everything[:-count], everything[-count:], f"validation set: the last {count} of {len(documents)} pieces of the only document"
    count = _held_out(len(names), fraction)
    held = np.zeros(len(names), bool)
    held[np.random.default_rng(np.random.SeedSequence([seed, 0x5711])).permutation(len(names))[:count]] = True
    mine = held[place_of]
    return everything[~mine], everything[mine], f"validation set: {count} of {len(names)} rows, chosen with data.split_seed={seed}"


def _held_out(count: int, fraction: float) -> int:
    return min(max(1, round(count * fraction)), count - 1)
