"""What is looked at before a run: each check on what it is there to find."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.data.tree import answered
from posttrain.errors import ConfigError
from posttrain.models.tokenizers import load_tokenizer
from posttrain.runs import machine, preflight
from posttrain.runs.callbacks.preflight import FIRST_STEP, compare
from posttrain.runs.compose import compose
from posttrain.runs.planning.states import States
from posttrain.runs.planning.strategies import Buffers

CONFIG = compose(["model=nano", "hardware=cpu", "tracking=mlflow"])
TOKENIZER = load_tokenizer(CONFIG["model"])
GIB = 2**30


def subject(folder: Path, **changes: Any) -> Any:
    """A run that every check is content with; changes: of the config by key, or `examples`, `kept`, `targets`, `online`."""
    end = TOKENIZER.eos_token_id
    examples = changes.pop("examples", [answered(np.array([5, 6]), [np.array([7, end])], {})])
    weights = changes.pop("targets", np.array([2.0]))
    kept = changes.pop("kept", States(1e6, 0.0, 1e6, 2e6, Buffers(), 0.0))
    method = SimpleNamespace(online=changes.pop("online", False), language_model=True)
    config = {**CONFIG, **{key: {**CONFIG[key], **value} for key, value in changes.items()}}
    job = SimpleNamespace(
        config=config, folder=folder, tokenizer=TOKENIZER, prepared=SimpleNamespace(train=SimpleNamespace(targets=weights)),
        ranks=SimpleNamespace(leads=True, world=1), device=torch.device("cpu"),
    )  # fmt: skip
    shapes = preflight.adapted(config["model"])
    return SimpleNamespace(job=job, method=method, sample=examples, kept=kept, shapes=shapes)


def found(name: str, given: Any) -> list[tuple[str, bool]]:
    return [(finding.problem.where, finding.stops) for finding in getattr(preflight, name)(given)]


def test_a_sound_run_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = subject(tmp_path)
    assert [finding for check in preflight.CHECKS for finding in check(given)] == []
    assert preflight.summary(0) == f"preflight: {len(preflight.CHECKS) + 2} checks passed"
    assert preflight.summary(1).endswith("passed, 1 doubt")


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_gpus", lambda: 1)
    assert found("devices", subject(tmp_path, hardware={"accelerator": "cuda", "devices": 2})) == [("hardware.devices", True)]
    assert found("devices", subject(tmp_path, hardware={"devices": 4096})) == [("hardware.devices", False)]


@pytest.mark.parametrize(("weights", "stops"), [(0.5, None), (0.9, False), (1.1, True)])
def test_memory(tmp_path: Path, weights: float, stops: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 8.0 * GIB)
    given = subject(tmp_path, kept=States(weights * 8 * GIB, 0, 0, 0, Buffers(), 0))
    assert found("memory", given) == ([] if stops is None else [("hardware", stops)])
    assert found("memory", subject(tmp_path, kept=States(2 * GIB, 0, 0, 0, Buffers(), 0), hardware={"devices": 8})) == [("hardware", True)]


@pytest.mark.parametrize(("weights", "stops"), [(0.5, None), (0.9, False), (1.1, True)])
def test_a_cached_references_whole_model(tmp_path: Path, weights: float, stops: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the policy is cut: what it keeps on a device is little here."""
    monkeypatch.setattr(preflight, "available_memory", lambda: 16.0 * GIB)
    given = subject(tmp_path, method={"reference": "cached"}, hardware={"devices": 2})
    given.weights = SimpleNamespace(packed_bytes=weights * 8 * GIB)
    assert found("cached_reference", given) == ([] if stops is None else [("method.reference", stops)])


@pytest.mark.parametrize(("free", "stops"), [(100.0, None), (7.0, False), (4.0, True)])
def test_disk(tmp_path: Path, free: float, stops: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * GIB))
    given = subject(tmp_path, kept=States(GIB, 0, 0, GIB, Buffers(), 0))  # an artifact of 1, checkpoints of 2, of which 4 at once
    assert found("disk", given) == ([] if stops is None else [("output_dir", stops)])


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "access", lambda place, _: "closed" not in str(place))
    (tmp_path / "closed").mkdir()
    given = subject(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/closed/runs.db"})
    assert found("folders", given) == [("tracking.uri", True)]


def test_tracking_that_is_away_is_a_doubt(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        given = subject(tmp_path, tracking={"uri": f"http://127.0.0.1:{port}"})
        assert found("tracking", given) == [("tracking.uri", False)]
        taken.listen()
        assert found("tracking", given) == []


def test_targets(tmp_path: Path) -> None:
    assert found("targets", subject(tmp_path, targets=np.zeros(3))) == [("data", True)]
    assert found("targets", subject(tmp_path, targets=np.array([0.0, 0.0, 1.0]))) == [("data", False)]
    assert found("targets", subject(tmp_path, targets=np.zeros(3), online=True)) == []


def test_ends_and_beginnings(tmp_path: Path) -> None:
    unended = [answered(np.array([5, 6]), [np.array([7, 8])], {})]
    assert found("ends_are_trained", subject(tmp_path, examples=unended)) == [("data", False)]
    twice = subject(tmp_path, examples=[answered(np.array([1, 1]), [np.array([7, 8])], {})])
    twice.job.tokenizer = SimpleNamespace(bos_token_id=1, bos_token="<s>")
    assert found("beginning_is_single", twice) == [("model.chat_template", True)]
    twice.sample = [answered(np.array([1, 2]), [np.array([7, 8])], {})]
    assert found("beginning_is_single", twice) == []


def test_positions(tmp_path: Path) -> None:
    long = [answered(np.zeros(4000, np.int32), [np.zeros(50, np.int32), np.zeros(97, np.int32)], {})]
    assert preflight.path_of(long[0]) == 4097
    assert found("positions", subject(tmp_path, examples=long)) == [("max_length", False)]


def test_ranks_must_agree() -> None:
    same = {"the configuration": "a", "the data": "b"}
    compare([same, dict(same)])
    with pytest.raises(ConfigError, match=r"ranks \[2\] differ from rank 0 in the data"):
        compare([same, same, {**same, "the data": "c"}])


def test_first_step() -> None:
    values = {"groups/informative": 0.0, "kl": 0.1}
    assert [problem.where for look in FIRST_STEP for problem in look(values)] == ["reward", "method.reference"]
    assert not [problem for look in FIRST_STEP for problem in look({"groups/informative": 0.5, "kl": 1e-9})]


def test_errors_stop_together_and_doubts_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def finding(where: str, *, stops: bool) -> Any:
        return lambda _: iter([preflight.Finding(preflight.Problem(where, "is odd"), stops)])

    job: Any = SimpleNamespace(ranks=SimpleNamespace(leads=True))
    monkeypatch.setattr(preflight, "CHECKS", [finding("a", stops=False)])
    with caplog.at_level("WARNING", "posttrain"):
        assert preflight.run(job, SimpleNamespace()) == 1  # type: ignore[arg-type]
    monkeypatch.setattr(preflight, "CHECKS", [finding("a", stops=True), finding("b", stops=False), finding("c", stops=True)])
    with pytest.raises(ConfigError) as caught:
        preflight.run(job, SimpleNamespace())  # type: ignore[arg-type]
    assert [problem.where for problem in caught.value.problems] == ["a", "c"]
