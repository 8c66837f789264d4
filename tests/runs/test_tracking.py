"""Trackers without a store: addresses, names, and the backends that write files."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, MissingExtra
from posttrain.runs.tracking import RunInfo, git_state
from posttrain.runs.tracking.mlflow import MLflowTracker, closing_hint
from posttrain.runs.tracking.naming import chunks, flatten, legal, metric_name
from posttrain.runs.tracking.none import NoTracker
from posttrain.runs.tracking.tensorboard import TensorBoardTracker
from posttrain.runs.tracking.uris import artifact_location, redacted, resolve_uri, ui_hint
from posttrain.runs.tracking.wandb import WandbTracker


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (None, "sqlite:////launch/outputs/mlflow.db"),
        ("sqlite:///relative/m.db", "sqlite:////launch/relative/m.db"),
        ("sqlite:////absolute/m.db", "sqlite:////absolute/m.db"),
        ("store.db", "sqlite:////launch/store.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql+psycopg2://u:p@host/db", "postgresql+psycopg2://u:p@host/db"),
    ],
)
def test_addresses_are_absolute(given: str | None, resolved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(given, Path("/launch")) == resolved
    assert resolve_uri(resolved, Path("/elsewhere")) == resolved


def test_the_environment_names_the_store_unless_the_config_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:1")
    assert resolve_uri(None, Path("/launch")) == "http://from-environment:1"
    assert resolve_uri("http://from-config:1", Path("/launch")) == "http://from-config:1"


@pytest.mark.parametrize("uri", ["ftp://host/x", "mlruns", "htp://host:5000"])
def test_an_unknown_kind_of_store_is_refused_before_training(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: .* is no MLflow store, expected sqlite"):
        MLflowTracker(uri=uri)


def test_hints_can_be_copied_and_hide_passwords() -> None:
    assert closing_hint({"uri": "sqlite:////with space/m.db"}) == "mlflow ui --backend-store-uri 'sqlite:////with space/m.db'"
    assert ui_hint("https://user:secret@host:5000/x") == redacted("https://user:secret@host:5000/x") == "https://host:5000/x"
    assert artifact_location("sqlite:////a/outputs/mlflow.db") == "file:///a/outputs/mlartifacts"
    assert artifact_location("http://host") is None


def test_config_becomes_flat_parameters() -> None:
    config = {"a": {"b": 1, "c": None, "empty": {}}, "list": [1, "x"], "mix": [{"p": 0.1}, {"p": True}], "long": "y" * 9000}
    flat = flatten(config)
    assert flat.pop("long") == "y" * 6000
    assert flat == {"a.b": "1", "a.c": "null", "a.empty": "{}", "list": '[1, "x"]', "mix.0.p": "0.1", "mix.1.p": "true"}


def test_names_are_legal_and_prefixed() -> None:
    assert [metric_name(name) for name in ("loss", "rewards/accuracy", "val/loss", "eval/gsm8k/acc", "system/cpu", "a@b")] == [
        "train/loss",
        "train/rewards/accuracy",
        "val/loss",
        "eval/gsm8k/acc",
        "system/cpu",
        "train/a_b",
    ]
    assert len(legal("k" * 300)) == 250
    assert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]


def test_git_state_marks_changes(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == f"{clean}-dirty"


def test_nothing_heavy_is_imported_by_the_training_side() -> None:
    modules = (
        "records, files, progress, plots, tracking.base, tracking.none, tracking.mlflow, tracking.sync, tracking.sweep, tracking.wandb"
    )
    imports = "\n".join(f"import posttrain.runs.{name.strip()}" for name in modules.split(","))
    heavy = "[m for m in sys.modules if m in ('mlflow', 'torch', 'lightning', 'wandb', 'matplotlib', 'pandas', 'omegaconf')]"
    code = f"import sys\n{imports}\nimport posttrain.runs.tracking.tensorboard\nprint({heavy})"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def info(folder: Path, start_step: int = 0) -> RunInfo:
    return RunInfo(output_dir=folder, name="run", config={"a": {"b": 1}}, start_step=start_step)


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    tracker = NoTracker()
    tracker.start(info(tmp_path))
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")
    assert (list(tmp_path.iterdir()), tracker.hint(), tracker.run_id) == ([], "", None)


@pytest.mark.parametrize(
    ("tracker", "module"), [(WandbTracker(), "wandb"), (TensorBoardTracker(), "tensorboard")], ids=["wandb", "tensorboard"]
)
def test_a_missing_extra_is_one_clear_line(
    tracker: WandbTracker | TensorBoardTracker, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra) as caught:
        tracker.start(info(tmp_path))
    assert str(caught.value) == f"tracking={module}: needs the extra '{module}' (pip install 'posttrain[{module}]')"


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, last, offset in ((0, 5, 0.0), (3, 8, 10.0)):
        tracker = TensorBoardTracker()
        tracker.start(info(tmp_path, start))
        for step in range(start + 1, last + 1):
            tracker.log(step, {"loss": step + offset})
        tracker.table("samples", [{"prompt": "1+1", "answer": "2"}])
        tracker.finish("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(1, 1), (2, 2), (3, 3), (4, 14), (5, 15), (6, 16), (7, 17), (8, 18)]
    assert tracker.hint() == f"tensorboard --logdir {tmp_path}/tensorboard"


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_continues_under_the_same_id(tmp_path: Path) -> None:
    ids = []
    for start in (0, 3):
        tracker = WandbTracker(mode="offline")
        tracker.start(info(tmp_path, start))
        tracker.log(start + 1, {"loss": 1.0})
        ids.append(tracker.run_id)
        tracker.finish("finished")
    assert ids[0] == ids[1]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
