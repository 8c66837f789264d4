import errno
import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.records import MetricsFile, Result, open_log, peak_memory_bytes, read_metrics, read_result, versions, write_result

ENVIRONMENT = os.environ | {"PYTHONPATH": os.getcwd()}
RESULT = Result(
    status="finished",
    method="sft",
    steps=3,
    examples=12,
    tokens=345,
    flops=1e9,
    train_seconds=1.5,
    tokens_per_second=230.0,
    peak_memory_bytes=1 << 20,
    metrics={"val/loss": 0.1, "val/perplexity": math.inf},
    artifact="artifact",
)


def test_metrics_round_trip_in_full_precision_and_strict_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"loss": 0.1 + 0.2, "tokens": 12, "grad_norm": math.inf, "kl": math.nan})
    file.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": 0.30000000000000004, "tokens": 12, "grad_norm": "Infinity", "kl": "NaN"}\n'
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert (row["loss"], row["grad_norm"]) == (0.1 + 0.2, math.inf)
    assert math.isnan(row["kl"])


def test_a_line_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from posttrain.runs.records import MetricsFile\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "for step in range(5): file.append(step, {'loss': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], env=ENVIRONMENT, check=False)
    assert done.returncode == -9
    assert [row["step"] for row in read_metrics(tmp_path / "m.jsonl")] == [0, 1, 2, 3, 4]


def test_a_torn_last_line_is_left_out_by_readers_and_cut_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
    file = MetricsFile(path)
    file.append(2, {"loss": 1.5})
    assert [row["loss"] for row in file.read()] == [2.0, 1.5]


def test_truncate_after_keeps_earlier_lines_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 0, "val/loss": 3.10}\n', '{"step": 1, "loss": 1e-3}\n', '{"step": 1, "val/loss": 2}\n', '{"step": 2, "loss": 1}\n']
    path.write_text("".join(lines) + '{"step": 3')
    file = MetricsFile(path)
    file.truncate_after(1)
    assert path.read_text() == "".join(lines[:3])
    file.append(2, {"loss": 0.5})
    assert [row["step"] for row in file.read()] == [0, 1, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_last_values_are_not_there_twice(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.jsonl")
    file.append(3, {"loss": 1.0})
    file.append(4, {"loss": 0.5})
    for step, names in ((4, {"val/loss"}), (3, {"loss"}), (4, {"loss", "val/loss"})):
        file.forget_last(step, names)
    assert [row["step"] for row in file.read()] == [3, 4]
    file.append(4, {"val/loss": 0.25, "val/perplexity": 2.0})
    file.forget_last(4, {"val/perplexity", "val/loss"})
    file.append(4, {"val/loss": 0.75, "val/perplexity": 3.0})
    assert file.read()[1:] == [{"step": 4, "loss": 0.5}, {"step": 4, "val/loss": 0.75, "val/perplexity": 3.0}]


def test_only_timed_files_hold_times(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").append(1, {"loss": 1.0})
    MetricsFile(tmp_path / "throughput.jsonl", timed=True).append(1, {"tokens_per_second": 5.0})
    assert set(read_metrics(tmp_path / "metrics.jsonl")[0]) == {"step", "loss"}
    assert abs(read_metrics(tmp_path / "throughput.jsonl")[0]["time"] - time.time()) < 60


def test_full_disk_leaves_whole_lines_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, {"loss": 1.0})
    real_write = os.write
    writes = []

    def half_then_full(descriptor: int, line: bytes) -> int:
        writes.append(line)
        if len(writes) == 1:
            return real_write(descriptor, line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OSError, match="disk is full: free space and run the same command again") as caught:
        file.append(2, {"loss": 0.5})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_result_round_trip(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", RESULT)
    assert read_result(tmp_path / "result.json") == RESULT
    fields = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"not strict JSON: {name}"))
    expected = {"status", "method", "steps", "examples", "tokens", "flops", "train_seconds", "tokens_per_second", "peak_memory_bytes"}
    assert fields.keys() == expected | {"metrics", "artifact", "mlflow_run_id", "versions"}


def test_versions_come_without_imports() -> None:
    code = "import sys; from posttrain.runs.records import versions; print(versions()['torch']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == versions()["torch"] != "absent"


def test_write_atomic_keeps_the_old_file_when_the_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk is full"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_prepare_folder_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir: .*file is a file, expected a folder"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match="part of the path is a file"):
        prepare_folder(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="GB free, the run needs about"):
        prepare_folder(tmp_path, need_bytes=1 << 60)
    with pytest.raises(ConfigError, match="cannot write to /proc/"):
        prepare_folder(Path("/proc/posttrain"))


def test_log_goes_to_the_file_on_rank_zero_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = open_log(tmp_path)
    logging.getLogger("posttrain.data").info("dropped %d rows", 3)
    assert "INFO posttrain.data: dropped 3 rows" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == "dropped 3 rows\n"
    open_log(tmp_path / "absent", rank=1)
    logger.info("silent")
    logger.warning("heard")
    assert capsys.readouterr().err == "[rank 1] WARNING heard\n"
    assert "heard" not in (tmp_path / "log.txt").read_text()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes("cpu")
    held = bytearray(before + (64 << 20))
    assert peak_memory_bytes("cpu") >= len(held)
