"""Log-probabilities under the reference policy: what is written is read back, at the trained places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posttrain.data.reference_logps import BLOCK, FILE, ReferenceLogps, trained_places, write
from posttrain.data.tree import collate, tree_of
from posttrain.types import StepShare


def example(*weights: float):
    return tree_of([(np.arange(len(weights)), np.array(weights))])


EXAMPLES = [example(0, 0, 1, 1), example(1, 1, 0, 0.5), example(0, 0)]  # the first token is no target; the last has no targets at all
LOGPS = [np.array([-1.5, -0.1], np.float32), np.array([-2.0, -30.25], np.float32), np.zeros(0, np.float32)]


@pytest.fixture
def known(tmp_path: Path) -> ReferenceLogps:
    folders = {0: tmp_path / "0", 2: tmp_path / "2"}
    for folder, logps in zip(folders.values(), (LOGPS, LOGPS[::-1]), strict=True):
        folder.mkdir()
        write(folder / FILE, logps)
    return ReferenceLogps(folders)


def test_places():
    assert [trained_places(one).tolist() for one in EXAMPLES] == [[2, 3], [1, 3], []]


def test_what_is_written_is_read_back(known: ReferenceLogps):
    rows = [known.of(place, one) for place, one in enumerate(EXAMPLES)]
    tenth = float(np.float32(-0.1))
    assert [row.tolist() for row in rows] == [[0, 0, -1.5, tenth], [0, -2.0, 0, -30.25], [0, 0]]
    assert all(row.dtype == np.float32 for row in rows)


def test_blocks_are_files_of_their_own(known: ReferenceLogps):
    got = [known.of(2 * BLOCK + place, one).tolist() for place, one in enumerate(EXAMPLES[::-1])]
    assert got == [known.of(place, one).tolist() for place, one in reversed(list(enumerate(EXAMPLES)))]


def test_a_block_that_was_not_computed(known: ReferenceLogps):
    with pytest.raises(KeyError):
        known.of(BLOCK, EXAMPLES[0])


def test_other_data_is_refused(known: ReferenceLogps):
    with pytest.raises(ValueError, match="shape"):
        known.of(0, example(0, 1, 1, 1))


def test_a_row_is_the_callers_own(known: ReferenceLogps):
    known.of(0, EXAMPLES[0])[:] = 7.0
    assert known.of(0, EXAMPLES[0]).max() == 0.0


def test_they_reach_the_targets_of_a_micro_batch(known: ReferenceLogps):
    with_it = [replace(one, reference=known.of(place, one)) for place, one in enumerate(EXAMPLES)]
    assert collate(with_it, StepShare(1.0, 3, 1)).reference.tolist() == [value for row in LOGPS for value in row.tolist()]
    assert collate([with_it[0], EXAMPLES[1]], StepShare(1.0, 2, 1)).reference is None
