"""Sweeps: expansion, folder names, and one true sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.overrides import expand
from posttrain.runs.sweep_grown import Earlier, grown
from posttrain.runs.sweep_jobs import LONGEST_NAME, Job, job_name, job_names, planned_of


def options_of(group: str) -> list[str]:
    return {"model": ["nano", "nano_moe", "smollm3"]}[group]


def test_expansion_is_the_product_in_order() -> None:
    jobs = expand(["seed=1,2", "method.loss=nll,dft", "max_steps=3"], options_of)
    assert [list(job.values()) for job in jobs] == [
        [f"seed={seed}", f"method.loss={loss}", "max_steps=3"] for seed in (1, 2) for loss in ("nll", "dft")
    ]


def test_ranges_lists_globs_and_repeats() -> None:
    assert [job["seed"] for job in expand(["seed=range(0,3)"], options_of)] == ["seed=0", "seed=1", "seed=2"]
    assert [job["model"] for job in expand(["model=glob(nano*)"], options_of)] == ["model=nano", "model=nano_moe"]
    assert expand(["data.train=[a,b]"], options_of) == [{"data.train": "data.train=[a,b]"}]
    assert expand(["seed=1", "seed=2"], options_of) == [{"seed": "seed=2"}]
    assert expand([], options_of) == [{}]


def test_interval_is_refused() -> None:
    with pytest.raises(ConfigError):
        expand(["optimizer.lr=interval(0,1)"], options_of)


def test_job_names_are_folder_names() -> None:
    assert job_name(["method/loss=dft", "seed=1"]) == "method.loss=dft,seed=1"
    long = job_name([f"data.train=[{'a/b ' * 100}]"])
    assert len(long) <= LONGEST_NAME
    assert "/" not in long
    assert long != job_name([f"data.train=[{'a/b ' * 101}]"])


def test_other_overrides_are_another_name() -> None:
    jobs = expand(["data.system='Be A?','Be A!'", "seed=1,2"], options_of)
    runs = planned_of(jobs)
    assert len({run.name for run in runs}) == 4
    assert len({run.arm for run in runs}) == 2
    assert (runs[0].name, runs[0].arm) == ("data.system=.Be.A.,seed=1", "data.system=.Be.A."), "as before, when there is no other"
    grown = planned_of(expand(["data.system='Be A?','Be A!','Be_A.'", "seed=1,2,3"], options_of))
    names = {run.lines: run.name for run in grown}
    assert all(names[run.lines] == run.name for run in runs), "a sweep that has grown finds its runs"


def job(name: str, arm: str, seed: int, **settings: Any) -> Job:
    common = {"resume": "auto", "tracking": {}, "hardware": {"name": "cpu"}, "max_steps": 5}
    return Job(name, (), {**common, **settings, "seed": seed, "output_dir": f"/sweep/{name}"}, arm)


def there(*jobs: Job) -> list[Earlier]:
    return [Earlier(job.arm, Path(job.config["output_dir"]), job.config) for job in jobs]


def test_a_sweep_that_has_grown_finds_runs_that_other_keys_named() -> None:
    sft, grpo = ({"method": {"name": name}} for name in ("sft", "grpo"))
    earlier = there(job("method=sft", "method=sft", 1, **sft), job("method=grpo", "method=grpo", 1, **grpo))
    now = [job(f"method=sft,seed={seed}", "method=sft", seed, **sft) for seed in (1, 2)]
    found = grown(now, earlier)
    assert [(run.name, run.arm, run.config["output_dir"]) for run in found.jobs] == [
        ("method=sft", "method=sft", "/sweep/method=sft"), ("method=sft,seed=2", "method=sft", "/sweep/method=sft,seed=2"),
    ]  # fmt: skip
    assert (found.kept, found.problems) == (earlier, [])
    assert [run.arm for run in grown([job("seed=2", "all", 2, **sft)], earlier).jobs] == ["method=sft"]
    assert [run.name for run in grown([job("method=sft", "method=sft", 2, **sft)], earlier).jobs] == ["method=sft,seed=2"]
    assert [run.name for run in grown([job("0", "all", 3, **grpo)], earlier).jobs] == ["seed=3"]
    elsewhere = grown([job("method=sft,seed=1", "method=sft", 1, **sft, hardware={"name": "2xcpu"})], earlier)
    assert ([run.name for run in elsewhere.jobs], elsewhere.problems) == (["method=sft"], []), "a run may go on on another machine"


def test_the_arm_of_all_runs_gets_a_name_when_there_is_another() -> None:
    sft, grpo = ({"method": {"name": name}} for name in ("sft", "grpo"))
    found = grown(
        [job("method=sft,seed=1", "method=sft", 1, **sft), job("method=grpo,seed=1", "method=grpo", 1, **grpo)],
        there(job("seed=1", "all", 1, **sft)),
    )
    assert [(run.name, run.arm) for run in found.jobs] == [("seed=1", "method=sft"), ("method=grpo,seed=1", "method=grpo")]
    assert [run.arm for run in found.kept] == ["method=sft"]


def test_an_arm_that_is_meant_otherwise_is_refused_or_begun_anew() -> None:
    earlier = there(*(job(f"seed={seed}", "all", seed) for seed in (1, 2)))
    (problem,) = grown([job("seed=1", "all", 1, max_steps=6)], earlier).problems
    assert "other max_steps" in problem.message
    anew = grown([job("seed=1", "all", 1, max_steps=6, resume="never")], earlier)
    assert ([run.name for run in anew.jobs], anew.kept, anew.problems) == (["seed=1"], [], [])


def test_names_are_cut_by_bytes() -> None:
    name = job_name([f"data.system={'trả lời ' * 20}"])
    assert len(name.encode()) <= LONGEST_NAME
    assert name.startswith("data.system=trả.lời.")
    pair = [(f"data.system={'a/b ' * 100}{end}",) for end in ("?", "!")]
    assert len(set(job_names(pair))) == 2
    assert max(len(name.encode()) for name in job_names(pair)) <= LONGEST_NAME


@pytest.mark.parametrize("more", [["seed=1,2"], ["optimizer.lr=interval(1e-5,1e-3)", "hydra/sweeper=optuna"]])
def test_the_folder_of_a_sweep_is_one(posttrain: Callable[..., Any], more: list[str]) -> None:
    outcome = posttrain("-m", "model=nano", "output_dir=a,b", *more)
    assert outcome.code == 2, outcome
    assert "output_dir=a,b: a sweep has one folder" in outcome.err


def test_a_sweep_goes_on_when_a_job_fails(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}] * 8
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "broken.jsonl").write_text("{")
    common = ["model=nano", "max_steps=2", "global_batch=4", "tracking=none", "evaluation=none", "output_dir=sweep", "data=files"]
    outcome = posttrain("-m", *common, "data.train=broken.jsonl,good.jsonl")
    assert outcome.code == 2, outcome
    assert json.loads((tmp_path / "sweep" / "data.train=good.jsonl" / "result.json").read_text())["status"] == "finished"
    assert "2 runs in" in outcome.out
    assert "broken.jsonl" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_dry_run_shows_the_batch_script_of_each_kind_of_hardware(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    cluster = tmp_path / "conf" / "hydra" / "launcher"
    cluster.mkdir(parents=True)
    (cluster / "mine.yaml").write_text("defaults: [slurm, _self_]\npartition: gpu\nmodules: [cuda/12]\nsbatch: {mail-type: END}\n")
    hardware = ["hardware=cpu,2x8xh100", "hardware.time_limit=2"]
    outcome = posttrain(
        "--config-dir",
        "conf",
        "-m",
        "seed=1,2",
        *hardware,
        "hydra/launcher=mine",
        "hydra.launcher.dry_run=true",
        "hydra.launcher.array_parallelism=1",
    )
    assert outcome.code == 0, outcome
    small, large = outcome.out.split("# 2 of 4 runs:")[1:]
    for line in ("--array=0-1%1", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=16", "--mem=655360M"):
        assert f"#SBATCH {line}\n" in large
    for line in ("--partition=gpu", "--mail-type=END", "--time=120", "--requeue", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in small
    assert "gpus" not in small
    assert "module load cuda/12\n" in small
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_shows_what_each_stage_of_a_pipeline_asks_and_waits_for(posttrain: Callable[..., Any]) -> None:
    line = ["-m", "method=staged", "model=nano", "limit=40", "stages.grpo.hardware=8xh100", "hydra/launcher=slurm"]
    outcome = posttrain(*line, "hardware=cpu", "hydra.launcher.dry_run=true")
    assert outcome.code == 0, outcome
    first, second = outcome.out.split("# 0/")[1:]
    assert "--ntasks-per-node=1\n" in first
    assert "--dependency" not in first
    assert second.startswith("2_grpo, after 0/1_sft:")
    for words in ("--dependency=afterok:ID_OF_0/1_sft", "--kill-on-invalid-dep=yes", "--ntasks-per-node=8"):
        assert f"#SBATCH {words}\n" in second
    outcome = posttrain(*line, "hardware=cpu", "hydra.launcher.dry_run=true", "hydra.launcher.stages=one_job")
    assert outcome.code == 2
    assert "share one job, so they need the same hardware" in outcome.err


def test_what_is_wrong_with_a_cluster_request_is_told_before_anything_is_submitted(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("-m", "seed=1", "hydra/launcher=slurm", "hydra.launcher.max_requeues=often", "hydra.launcher.dry_run=maybe")
    assert outcome.code == 2
    assert "hydra.launcher.max_requeues: expected" in outcome.err
    assert "hydra.launcher.dry_run: expected true or false" in outcome.err
    outcome = posttrain("-m", "seed=1", "hydra/launcher=slurm", "hydra.launcher.partitoin=gpu")
    assert "did you mean hydra.launcher.partition?" in outcome.err
