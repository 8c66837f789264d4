"""A disk that fills up while a run saves: a clear error, the last checkpoint intact, and the same command goes on once there is room."""

import subprocess

import preloaded
import pytest

LINE = [
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu",
    "limit=100", "global_batch=4", "max_steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "validate.at_start=false",
    "data.generator.held_out=24",
]  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk(small_disk):
    folder = small_disk / "run"
    first = preloaded.posttrain(*LINE, f"output_dir={folder}")
    _, told = first.communicate(timeout=200)
    assert first.returncode == 1
    assert "the disk is full" in told
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    again = preloaded.posttrain(*LINE, f"output_dir={folder}")
    said, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    assert "continuing after step 4" in said
    assert (folder / "artifact" / "model.safetensors").is_file()
