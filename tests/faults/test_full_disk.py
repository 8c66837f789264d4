"""A disk that fills up while a run saves: a clear error, the last checkpoint intact, and the same command goes on once there is room."""

import subprocess
import sys

import pytest

COMMAND = [
    sys.executable, "-m", "posttrain", "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu",
    "limit=100", "global_batch=4", "max_steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "validate.at_start=false",
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


@pytest.mark.slow
def test_full_disk(small_disk):
    folder = small_disk / "run"
    first = subprocess.run([*COMMAND, f"output_dir={folder}"], capture_output=True, text=True, check=False, timeout=200)
    assert first.returncode == 1
    assert "the disk is full" in first.stderr
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    again = subprocess.run([*COMMAND, f"output_dir={folder}"], capture_output=True, text=True, check=False, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "continuing after step 4" in again.stdout
    assert (folder / "artifact" / "model.safetensors").is_file()
