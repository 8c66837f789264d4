"""Which jobs a sweep with pipelines becomes on a cluster, what each waits for, and what of an earlier command is not submitted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import ConfigError
from posttrain.runs import rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.slurm import queue
from posttrain.runs.slurm.chain import Wish, dependency, depending, links_of
from posttrain.runs.slurm.live import live_in
from posttrain.runs.slurm.request import Request
from posttrain.runs.sweep_record import JobRecord, SweepRecord

REQUEST = Request(nodes=1, tasks_per_node=1, cpus_per_task=1, gpus_per_node=0, mem_gb=None, timeout_min=60, array_parallelism=2)


@pytest.fixture(scope="module")
def wishes(tmp_path_factory: pytest.TempPathFactory) -> list[Wish]:
    folder = tmp_path_factory.mktemp("sweep")

    def wish(name: str, *lines: str) -> Wish:
        places = [f"output_dir={folder / name}", f"stages_dir={folder / 'stages'}"]
        config = compose_and_check(["model=nano", "limit=40", *lines, *places], rules=rules.PLAN)
        return Wish(name, config, [REQUEST] * len(config["stages"] or [config]))

    common = ("method=staged", "max_steps=300", "budget.flops=1e12", "stages.sft.share=0.5")
    return [wish("a", "stages=[sft,grpo]", *common), wish("b", "stages=[sft,dpo]", *common), wish("c", "method=sft")]


def test_a_shared_stage_is_one_job_and_no_more_runs_are_under_way_than_allowed(wishes: list[Wish]) -> None:
    links = links_of(wishes)
    assert [link.name for link in links] == ["a/1_sft", "a/2_grpo", "b/2_dpo", "c"]
    assert [dependency(link, ["7", "8", "9"]) for link in links] == ["", "afterok:7", "afterok:7", "afterany:8"]


def test_a_chain_that_is_there_is_waited_for(wishes: list[Wish]) -> None:
    key = links_of(wishes)[0].key
    there = [JobRecord("a/1_sft", Path("a/1_sft"), Path("0-1_sft.stage"), "7", key, ("a",))]
    links = links_of([Wish("a", wishes[0].config, wishes[0].requests, slurm_id="8"), wishes[1]], there)
    assert [(link.name, link.slurm_id) for link in links] == [("a/1_sft", "7"), ("a", "8"), ("b/2_dpo", None)]
    assert dependency(links[2], ["7", "8"]) == "afterok:7"


def test_the_users_own_dependency_stays() -> None:
    mine = Request(**{**vars(REQUEST), "sbatch": {"dependency": "singleton"}})
    assert depending(mine, "afterok:7").sbatch == {"dependency": "singleton,afterok:7", "kill-on-invalid-dep": "yes"}
    assert depending(mine, "") == mine


def test_a_run_that_the_cluster_still_has_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"output_dir": str(tmp_path / "run"), "seed": 1, "resume": "auto"}
    files = [tmp_path / name for name in ("0.yaml", "1.yaml")]
    for file in files:
        file.write_text(yaml.safe_dump(config))
    jobs = (JobRecord("run", tmp_path / "run", files[0], "7"), JobRecord("ended", tmp_path / "ended", files[1], "8"))
    SweepRecord(tmp_path, jobs, {}).write()
    monkeypatch.setattr(queue, "there", lambda: True)
    monkeypatch.setattr(queue, "states", lambda ids: {"7": "PENDING", "8": "COMPLETED"})
    live = live_in(tmp_path)
    assert (live.ids, live.files) == ({"7"}, {"0"})
    assert live.job_of(config) == jobs[0]
    assert live.job_of({**config, "output_dir": str(tmp_path / "ended")}) is None
    with pytest.raises(ConfigError, match="job 7 still trains there, with other seed"):
        live.job_of({**config, "seed": 2})
