import json

import pytest

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

BASE = [
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=200", "global_batch=12",
    "max_steps=6", "validate.every_steps=3", "data.generator.held_out=24", "model.architecture.num_hidden_layers=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def curve(tmp_path_factory):
    """Runs a configuration (once) and returns its metrics: {name: [values]}."""
    done = {}

    def run(*overrides):
        if overrides not in done:
            folder = tmp_path_factory.mktemp("curve") / "run"
            with pytest.MonkeyPatch.context() as patch:
                for picture in ("loss_plot", "online_plot"):  # a good part of so short a run; others draw them
                    patch.setattr(f"posttrain.runs.plots.{picture}", lambda *_: False)
                code = run_job(compose([*BASE, *overrides, f"output_dir={folder}"]))
            assert code == 0
            done[overrides] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return done[overrides]

    return run
