import io

import pytest
from rich.console import Console

from posttrain.runs.progress import Progress, closing_panel, duration, human, memory_text, opening_lines, result_rows
from posttrain.runs.records import Result

RESULT = Result(
    status="finished",
    method="sft",
    steps=200,
    examples=12_800,
    tokens=1_234_567,
    flops=1e12,
    train_seconds=61.4,
    tokens_per_second=20_107.0,
    peak_memory_bytes=3 << 29,
    metrics={"val/loss": 0.51234, "val/loss/before": 3.0, "eval/exact_match": 0.71, "eval/exact_match/before": 0.02, "grad_norm": 1.0},
)


def terminal(width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def plain() -> Console:
    return Console(file=io.StringIO(), width=80)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_come_seldom_and_with_the_last_step() -> None:
    console = plain()
    progress = Progress(100, console=console, every_seconds=3600)
    for step in range(1, 101):
        progress.update(step, {"loss": 1 / step, "grad_norm": 5.0}, tokens_per_second=12_345.0, memory=3 << 30)
    progress.close()
    lines = text(console).splitlines()
    assert len(lines) == 2
    assert lines[0] == "step 1/100  loss 1  12.3k tok/s  3.0 GiB"
    assert lines[1].startswith("step 100/100  loss 0.01  12.3k tok/s  3.0 GiB  left 0s")


def test_plain_lines_are_never_wrapped_or_coloured() -> None:
    console = plain()
    progress = Progress(None, console=console, every_seconds=0)
    progress.update(1, {"loss": 1.23456, "val/loss": 2.0, "lr": 1e-4, "reward": 0.5, "kl": 0.1}, 1e6, 1e9)
    progress.message("m" * 300)
    assert text(console).splitlines() == ["step 1  loss 1.235  val 2  reward 0.5  kl 0.1  lr 0.0001  1M tok/s  954 MiB", "m" * 300]


def test_an_interrupted_run_still_shows_its_last_step() -> None:
    console = plain()
    progress = Progress(100, start_step=10, console=console, every_seconds=3600)
    for step in (11, 12, 13):
        progress.update(step, {"loss": 1.0})
    progress.close()
    progress.close()
    assert [line.split("  ")[0] for line in text(console).splitlines()] == ["step 11/100", "step 13/100"]


def test_time_left_leaves_out_what_came_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("posttrain.runs.progress.time.monotonic", lambda: clock[0])
    console = plain()
    progress = Progress(100, start_step=90, console=console, every_seconds=0)
    clock[0] += 500.0  # evaluation, compilation
    progress.update(91, {"loss": 1.0})
    clock[0] += 8.0
    progress.update(93, {"loss": 1.0})
    assert text(console).splitlines() == ["step 91/100  loss 1", "step 93/100  loss 1  left 28s"]


def test_terminal_shows_a_bar_and_keeps_messages() -> None:
    console = terminal()
    progress = Progress(10, start_step=4, console=console)
    progress.update(5, {"loss": 0.25}, 2000.0, 1 << 30)
    progress.message("saved checkpoint [step 5]")
    progress.update(6, {"val/loss": 0.5})
    progress.close()
    shown = text(console)
    assert "6/10" in shown
    assert "saved checkpoint [step 5]" in shown
    assert "loss 0.25  val 0.5  2k tok/s  1.0 GiB" in shown, "earlier values stay in sight"


@pytest.mark.parametrize("tty", [True, False])
def test_other_ranks_are_silent(tty: bool) -> None:
    console = terminal() if tty else plain()
    progress = Progress(10, tty=tty, console=console, enabled=False)
    progress.update(10, {"loss": 1.0})
    progress.message("hello")
    progress.close()
    assert text(console) == ""


def test_opening_lines() -> None:
    lines = opening_lines(model="nano", parameters=1_000_000, trainable=10_000, data="arithmetic", device="cpu", plan="200 steps of 64")
    assert lines[0] == "model   nano, 1M parameters, 10k of them trained (1.00%)"
    full = opening_lines(model="nano", parameters=1_000_000, trainable=1_000_000, data="a", device="cpu", plan="p")
    assert full == ["model   nano, 1M parameters", "data    a", "device  cpu", "plan    p"]


def test_results_show_before_and_after_in_one_row() -> None:
    rows = dict(result_rows(RESULT))
    assert rows["eval/exact_match"] == "0.02 -> 0.71"
    assert rows["val/loss"] == "3 -> 0.5123"
    assert rows["trained"] == "200 steps, 12.8k examples, 1.23M tokens in 1m01s"
    assert rows["speed"] == "20.1k tokens/s, at most 1.5 GiB"
    assert not any(name.endswith("/before") for name in rows)


@pytest.mark.parametrize("make", [terminal, plain])
def test_closing_words_can_be_copied(make: type[Console]) -> None:
    console = make()
    command = "mlflow ui --backend-store-uri sqlite:////" + "long/" * 40 + "mlflow.db"
    closing_panel(RESULT, {"artifact": "outputs/run/artifact"}, [command], console=console)
    assert f"  {command}\n" in text(console)
    assert "sft: finished" in text(console)
    assert "outputs/run/artifact" in text(console)
    assert "0.02 -> 0.71" in text(console)


def test_numbers_for_people() -> None:
    assert [human(value) for value in (0, 999, 1234, 5_600_000, 7e9)] == ["0", "999", "1.23k", "5.6M", "7G"]
    assert [duration(value) for value in (5, 200, 18_420)] == ["5s", "3m20s", "5h07m"]
    assert [memory_text(value) for value in (5 << 20, 3 << 29)] == ["5 MiB", "1.5 GiB"]
