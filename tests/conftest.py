"""Before anything imports torch; processes that need not import it again; and the order of files."""

import gc
import os
from pathlib import Path

import preloaded
import pytest

from posttrain.runs.forking.request import SERVER
from posttrain.runs.threads import spin_briefly

spin_briefly()
os.environ["PYTHONPATH"] = preloaded.FOUND  # what is tested is this tree, also by processes in other folders

CURRENT = "PYTEST_CURRENT_TEST"
HERE = Path(__file__).parent
LONGEST = (
    "distributed/test_every_method.py",
    "configs/test_compose.py",
    "invariants/test_preference_curves.py",
    "invariants/test_reward_curves.py",
    "invariants/test_curves.py",
    "runs/test_study.py",
    "runs/test_pipeline_run.py",
    "notebooks/test_notebooks.py",
    "invariants/test_online_curves.py",
    "runs/test_tracking_mlflow.py",
    "runs/test_recipes_run.py",
    "evaluation/test_human_statistics.py",
    "runs/test_forking.py",
    "runs/test_planning.py",
    "faults/test_resume_online.py",
    "configs/test_pipeline.py",
    "methods/test_online_preference.py",
    "configs/test_plan_command.py",
    "distributed/test_ranks.py",
    "data/test_prepare.py",
    "runs/test_parallel.py",
    "runs/test_entering_run.py",
    "methods/test_ppo.py",
    "runs/test_budget.py",
    "faults/test_resume_preference.py",
    "faults/test_resume.py",
    "distributed/test_ring.py",
)


def pytest_configure(config):
    """The order of files is ours; xdist's own begins with those of many tests, which are short, and ends on a long one alone."""
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False


def pytest_collection_finish():
    """What modules of tests have set by now, their processes have too. What they have imported stays: no collector need look at it."""
    preloaded.at_first = dict(os.environ)
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Long files first, so that the processes end together."""
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def environment():
    """What a test or a library that it imports sets is gone after it: with another environment, no later process would be forked."""
    kept = dict(os.environ)
    yield
    stays = {name: os.environ[name] for name in (SERVER, CURRENT) if name in os.environ}
    preloaded.restore({**kept, **stays})


@pytest.fixture(autouse=True)
def preloaded_runs(monkeypatch):
    """What a test's own process starts to train in, ranks and runs that are made first, need not import anything."""
    for module in ("processes", "tracking.mlflow"):
        monkeypatch.setattr(f"posttrain.runs.{module}.start", preloaded.start)
    monkeypatch.setattr("posttrain.runs.forking.client.serving", preloaded.served)
