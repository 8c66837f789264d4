"""Before anything imports torch; and processes that need not import it again."""

import pytest
from preloaded import SUBPROCESS

from posttrain.runs.threads import spin_briefly

spin_briefly()


@pytest.fixture(autouse=True)
def preloaded_runs(monkeypatch):
    """What a test's own process starts to train in, ranks and runs that are made first, is preloaded; what a command line starts is not."""
    monkeypatch.setattr("posttrain.runs.processes.subprocess", SUBPROCESS)
