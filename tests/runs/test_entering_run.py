"""Runs that start from another run, which is made first."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest

from posttrain.errors import ConfigError
from posttrain.runs.budget.amount import Budget
from posttrain.runs.budget.watch import Meter
from posttrain.runs.check import compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.entering import applied, config_of
from posttrain.runs.forking.request import SERVER
from posttrain.runs.job import run_job
from posttrain.runs.ranks import Ranks

FIRST = '"experiment=quickstart","max_steps=2","limit=40","evaluation=none","validate.at_start=false"'
LINE = [
    "method=grpo", "model=nano", "hardware=cpu", "tracking=none", "evaluation=none", "validate.at_start=false", "validate.at_end=false",
    "max_steps=1", "global_batch=2", "limit=20", "rollout.group_size=2", "rollout.max_new_tokens=8", "reward=[length]", "seed=3",
]  # fmt: skip


def problems(*overrides):
    with pytest.raises(ConfigError) as raised:
        compose_and_check([*LINE, *overrides])
    return {problem.where for problem in raised.value.problems}


def test_mistakes_of_the_first_run_are_told_before_anything_starts():
    assert problems('entering=["metod=sft","optimizer.lr=fast"]') == {"entering: metod=sft", "entering: optimizer.lr"}
    assert problems(f"entering=['entering=[{FIRST}]']") == {"entering"}


def test_the_first_run_has_the_seed_of_this_one_unless_it_names_its_own():
    config = compose(LINE)
    assert config_of(["experiment=quickstart"], config)["seed"] == 3
    assert config_of(["experiment=quickstart", "seed=7"], config)["seed"] == 7


def test_the_first_run_is_made_once_and_its_artifact_is_the_model(tmp_path):
    config = compose([*LINE, f"entering=[{FIRST}]", f"output_dir={tmp_path / 'run'}"])
    assert run_job(config) == 0
    entered = tmp_path / "run" / "entering" / "artifact"
    assert applied(config)["model"]["path"] == str(entered)
    lineage = json.loads((tmp_path / "run" / "artifact" / "artifact.json").read_text())
    assert str(entered) in json.dumps(lineage)
    made = (entered / "model.safetensors").stat().st_mtime_ns
    assert run_job({**config, "max_steps": 2}) == 0  # goes on, with the same beginning
    assert (entered / "model.safetensors").stat().st_mtime_ns == made


SHORT = [line for line in LINE if not line.startswith(("method", "rollout", "reward", "max_steps", "limit"))]


def test_the_first_run_is_charged_to_the_budget(tmp_path, capsys):
    line = [*SHORT, "limit=40", f'entering=[{FIRST},"global_batch=8"]', f"output_dir={tmp_path / 'run'}"]
    assert run_job(compose([*line, "budget.tokens=2000"])) == 0
    before, result = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run" / "entering", tmp_path / "run"))
    spent = before["tokens"] + result["tokens"]
    assert result["budget"] == {"unit": "tokens", "asked": 2000.0, "spent": spent}
    assert spent == pytest.approx(2000, rel=0.04)
    assert result["entering"] == {"folder": "entering", **{name: before[name] for name in ("flops", "tokens", "train_seconds")}}
    assert run_job(compose([*line, f"budget.tokens={before['tokens'] - 1}", "resume=never"])) == 2
    told = capsys.readouterr().err
    assert "so nothing is left for this one" in told
    assert "1 problem, nothing was started" not in told


@pytest.mark.parametrize(("unit", "own"), [("flops", 3.0), ("tokens", 2.0), ("gpu_seconds", 1.5)])
def test_the_schedule_is_of_what_the_first_run_left(unit, own):
    recorder = SimpleNamespace(totals={"flops_before": 1.0, "flops": 2.0, "tokens": 2.0})
    meter = Meter(Budget(unit, 10.0), recorder, Ranks(), entered=4.0)
    meter.seconds = 1.5
    assert (meter.spent, meter.share) == (4.0 + own, own / 6.0)


def children_of(pid):
    """Process ids of the children that are there now."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        found |= {int(folder.name)} if parent == pid else set()
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_first_run_ends_with_the_one_it_is_made_for(tmp_path):
    first = FIRST.replace("max_steps=2", "max_steps=100000")
    line = [*LINE, f"entering=[{first}]", f"output_dir={tmp_path}"]
    parent = preloaded.posttrain(*line, **{SERVER: ""})  # what it starts is its own child
    try:
        wait_until(lambda: (tmp_path / "entering" / "metrics.jsonl").exists() or parent.poll() is not None, 120)
        (child,) = children_of(parent.pid)
    finally:
        parent.kill()
    parent.wait(20)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 10)


def wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
