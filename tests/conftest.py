"""Before anything imports torch; processes that need not import it again; and the order of files."""

import os
from pathlib import Path

import preloaded
import pytest

from posttrain.runs.threads import spin_briefly

spin_briefly()
os.environ["PYTHONPATH"] = preloaded.FOUND  # what is tested is this tree, also by processes in other folders

HERE = Path(__file__).parent
LONGEST = (
    "distributed/test_every_method.py",
    "notebooks/test_notebooks.py",
    "invariants/test_preference_curves.py",
    "invariants/test_reward_curves.py",
    "runs/test_tracking_mlflow.py",
    "runs/test_pipeline_run.py",
    "invariants/test_online_curves.py",
    "methods/test_ppo.py",
    "faults/test_resume.py",
    "faults/test_resume_online.py",
    "distributed/test_zero.py",
    "distributed/test_sharded.py",
    "distributed/test_ranks.py",
    "runs/test_planning.py",
    "configs/test_compose.py",
    "data/test_prepare.py",
    "methods/test_online_preference.py",
    "faults/test_resume_elsewhere.py",
    "runs/test_entering_run.py",
    "rewards/test_math.py",
)


def pytest_configure(config):
    """The order of files is ours; xdist's own begins with those of many tests, which are short, and ends on a long one alone."""
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files first, so that the processes end together."""
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def preloaded_runs(monkeypatch):
    """What a test's own process starts to train in, ranks and runs that are made first, need not import anything."""
    for module in ("processes", "tracking.mlflow"):
        monkeypatch.setattr(f"posttrain.runs.{module}.start", preloaded.start)
    monkeypatch.setattr("posttrain.runs.forking.client.serving", preloaded.served)
