"""What the terminal shows of a run: opening lines, a live bar or plain lines, a closing panel. Rank 0 only."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from posttrain.runs.records import Result

# Shown in this order, if logged; everything else is in metrics.jsonl.
SHOWN = {
    "loss": "loss",
    "val/loss": "val",
    "reward": "reward",
    "reward/mean": "reward",
    "accuracy": "accuracy",
    "rewards/accuracy": "accuracy",
    "kl": "kl",
    "lr": "lr",
}
STATUS_COLOUR = {"finished": "green", "stopped": "yellow", "failed": "red"}


def human(number: float, unit: str = "") -> str:
    """A count with a prefix: 1234567 -> ``1.23M``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{prefix}{unit}"
    return f"{number:.3g}{unit}"


def memory_text(size: float) -> str:
    """Bytes as GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Seconds as ``45s``, ``3m20s`` or ``5h07m``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def metrics_text(metrics: Mapping[str, SupportsFloat]) -> str:
    """The values worth a glance, as ``loss 1.2345  lr 0.001``."""
    return "  ".join(f"{label} {float(metrics[key]):.4g}" for key, label in SHOWN.items() if key in metrics)


class Progress:
    """Shows where training stands: a live bar on a terminal, else one plain line every `every_seconds` (and for the last step).

    total_steps: None if unknown (a stream). start_step: steps already done (resume). tty: None = look at the standard error stream.
    enabled: False on every rank but 0; then nothing is ever printed. Output goes to standard error, results to standard output.
    """

    def __init__(
        self,
        total_steps: int | None,
        start_step: int = 0,
        tty: bool | None = None,
        *,
        enabled: bool = True,
        every_seconds: float = 10.0,
        console: Console | None = None,
    ):
        self.total_steps = total_steps
        self.start_step = start_step
        self.console = console or Console(stderr=True, force_terminal=tty)
        self.tty = self.console.is_terminal if tty is None else tty
        self.enabled = enabled
        self.every_seconds = every_seconds
        self._first: tuple[int, float] | None = None
        self._next_line = 0.0
        self._metrics: dict[str, SupportsFloat] = {}
        self._speed = ""
        self._memory = ""
        self._pending: str | None = None
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if enabled and self.tty:
            self._start_bar()

    def _start_bar(self) -> None:
        self._bar = Bar(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._bar.add_task("train", total=self.total_steps, completed=self.start_step, text="")
        self._bar.start()

    def update(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat],
        tokens_per_second: float | None = None,
        memory: float | None = None,
    ) -> None:
        """Show step `step` (1-based count of steps done). Values that are not given keep showing their last state."""
        if not self.enabled:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        self._note(metrics, tokens_per_second, memory)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text())
            return
        line = self._line(step, now)
        if now >= self._next_line or step == self.total_steps:
            self._next_line = now + self.every_seconds
            self._pending = None
            self._print(line)
        else:
            self._pending = line

    def _note(self, metrics: Mapping[str, SupportsFloat], tokens_per_second: float | None, memory: float | None) -> None:
        self._metrics.update(metrics)
        if tokens_per_second is not None:
            self._speed = human(tokens_per_second, " tok/s")
        if memory is not None:
            self._memory = memory_text(memory)

    def _text(self) -> str:
        return "  ".join(filter(None, (metrics_text(self._metrics), self._speed, self._memory)))

    def _line(self, step: int, now: float) -> str:
        of = f"/{self.total_steps}" if self.total_steps is not None else ""
        left = ""
        first, began = self._first or (step, now)
        if self.total_steps is not None and step > first:  # the time before the first step was evaluation, or compilation
            left = f"  left {duration((now - began) / (step - first) * (self.total_steps - step))}"
        return f"step {step}{of}  {self._text()}{left}"

    def _print(self, text: str) -> None:
        # Not through rich: no colours, no wrapping, one line a record in scheduler logs.
        print(text, file=self.console.file, flush=True)

    def message(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.console.print(Text(text), soft_wrap=True)
        else:
            self._print(text)

    def close(self) -> None:
        """Stop the bar, or print the last step if it was not due yet. May be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._pending is not None:
            self._print(self._pending)
            self._pending = None


def opening_lines(*, model: str, parameters: int, trainable: int, data: str, device: str, plan: str) -> list[str]:
    """What is about to run, one fact a line. plan: batch, micro-batches and number of steps in words."""
    share = "" if trainable == parameters else f", {human(trainable)} of them trained ({trainable / parameters:.2%})"
    return [f"model   {model}, {human(parameters)} parameters{share}", f"data    {data}", f"device  {device}", f"plan    {plan}"]


def result_rows(result: Result) -> list[tuple[str, str]]:
    """The closing panel's rows. A metric NAME that comes with ``NAME/before`` becomes one row with both values."""
    rows = []
    for key, value in result.metrics.items():
        before = result.metrics.get(f"{key}/before")
        if before is not None:
            rows.append((key, f"{before:.4g} -> {value:.4g}"))
        elif not (key.endswith("/before") and key.removesuffix("/before") in result.metrics):
            rows.append((key, f"{value:.4g}"))
    trained = f"{result.steps} steps, {human(result.examples)} examples, {human(result.tokens)} tokens in {duration(result.train_seconds)}"
    speed = f"{human(result.tokens_per_second)} tokens/s, at most {memory_text(result.peak_memory_bytes)}"
    return [*rows, ("trained", trained), ("speed", speed)]


def closing_panel(
    result: Result,
    paths: Mapping[str, str],
    next_commands: Sequence[str],
    *,
    console: Console | None = None,
) -> None:
    """Print what the run came to, where it lies and what to do next. Commands stay outside the frame, unwrapped, to be copied."""
    console = console or Console(file=sys.stdout)
    rows = [*result_rows(result), *paths.items()]
    title = f"{result.method}: {result.status}"
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
        console.print(Panel(table, title=Text(title), border_style=STATUS_COLOUR[result.status], expand=False))
    else:
        width = max(len(name) for name, _ in rows)
        print(title, *(f"  {name:<{width}}  {value}" for name, value in rows), sep="\n", file=console.file)
    if next_commands:
        print("next:", *(f"  {command}" for command in next_commands), sep="\n", file=console.file, flush=True)
