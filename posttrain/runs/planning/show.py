"""A plan on the terminal: tables that a narrow one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.runs.planning import request
from posttrain.runs.planning.cut import CUTS
from posttrain.runs.planning.estimate import Estimate
from posttrain.runs.planning.memory import ALLOCATOR
from posttrain.runs.planning.remedies import Remedy
from posttrain.runs.planning.strategies import SHARDINGS
from posttrain.runs.planning.workload import Workload
from posttrain.runs.progress import duration, human

Config = Mapping[str, Any]
Rows = list[tuple[str, str]]
GIB = 2**30
LARGEST = 1 << 23  # tokens: beyond it, `max_tokens` is not what memory ends at


def plan(
    console: Console,
    config: Config,
    found: Estimate,
    work: Workload,
    *,
    model: Rows,
    checks: Rows,
    remedies: Sequence[Remedy],
) -> None:
    """Prints all of it."""
    console.print(as_table("Model", model))
    console.print(memory_table(found))
    console.print(as_table("Strategy", strategy_rows(config, found, work)))
    console.print(as_table("Step", [("devices", devices_text(config)), *work.words]))
    console.print(as_table("Time", time_rows(config, found)))
    console.print(as_table("Checks", checks))
    if remedies:
        console.print(remedy_table(remedies, found))
    console.print(verdict(found, work))


def gib(size: float) -> str:
    """Bytes as a number of GiB, with as many digits as say something."""
    amount = size / GIB
    return f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}" if amount >= 0.1 else f"{amount:.3f}"


def memory_table(found: Estimate) -> Table:
    """Components by phase; the phase that peaks is marked."""
    table = _table("Memory per device, GiB")
    table.add_column(style="cyan", no_wrap=True)
    for phase in found.phases:
        mark = " (peak)" if phase is found.peak else ""
        table.add_column(Text(phase.name + mark, style="bold" if mark else ""), justify="right")
    names = dict.fromkeys(name for phase in found.phases for name in phase.parts if name != ALLOCATOR)
    for name in [*names, ALLOCATOR]:
        sizes = [phase.parts.get(name, 0.0) for phase in found.phases]
        if any(sizes):
            table.add_row("  " + name, *(gib(size) if size else "-" for size in sizes))
    table.add_row("  together", *(gib(phase.total) for phase in found.phases), style="bold")
    return table


def strategy_rows(config: Config, found: Estimate, work: Workload) -> Rows:
    """How the devices share the work, and how large a micro-batch may be."""
    name = found.chosen.name
    rows = [("strategy", f"{name}: {SHARDINGS[name].words} ({found.chosen.why})")]
    if (size := config["hardware"]["context_parallel"]) > 1:
        way = CUTS[found.setup.cut].words
        rows.append(("rows", f"each micro-batch is cut over {size} devices; {way}"))
    if found.most_tokens is not None:
        most = f"{found.most_tokens:,}" if found.most_tokens < LARGEST else "more than any sequence needs"
        rows.append(
            ("largest max_tokens", f"{most} would fit; this plan has {config['max_tokens']:,}, of which {work.row.tokens:,} are used")
        )
    if config["hardware"]["accelerator"] == "cuda":
        loading, after = found.main_memory
        words = f"{gib(loading)} GiB of a node while loading: each of {found.here} processes builds a whole model"
        rows.append(("main memory", words + (f"; then {gib(after)} GiB of what is offloaded" if after else "")))
    return rows


def devices_text(config: Config) -> str:
    """Number, kind and precision."""
    hardware = config["hardware"]
    name = hardware["device_name"] or hardware["accelerator"]
    return f"{hardware['nodes']} x {hardware['devices']} {name}, {config['precision']}"


def time_rows(config: Config, found: Estimate) -> Rows:
    """Operations, seconds, hours and the request to a cluster."""
    spent = found.duration
    parts = f" (training {human(spent.training)}, sampling {human(spent.sampling)})" if spent.sampling else ""
    rows = [("FLOPs a step", human(spent.flops) + parts)]
    if spent.steps is not None:
        rows.append(("FLOPs of the run", human(spent.flops * spent.steps)))
    if spent.seconds is None or found.rates is None:
        rows.append(("time", f"unknown: no rates of {config['hardware']['device_name']} in the table of devices"))
    else:
        rows += [("a step", f"{seconds_text(spent.seconds)}"), ("reckoned with", found.rates.source)]
    if spent.hours is not None:
        rows.append(("the run", duration(3600 * spent.hours)))
        if config["hardware"]["accelerator"] == "cuda":
            rows.append(("GPU-hours", f"{spent.hours * spent.devices:,.2f}"))
    if config["hardware"]["accelerator"] == "cuda":
        rows.append(("sbatch", " ".join(request.lines(config["hardware"], spent.hours))))
    return rows


def seconds_text(seconds: float) -> str:
    """A step's time."""
    return duration(seconds) if seconds >= 100 else f"{seconds:.3g} s"


def remedy_table(remedies: Sequence[Remedy], found: Estimate) -> Table:
    """What to change, best first."""
    table = _table("What to change, in this order")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column("alone, GiB", justify="right")
    table.add_column("with those above", justify="right")
    for remedy in remedies:
        marks = [Text(gib(size) + (" fits" if fits else ""), style="green" if fits else "") for size, fits in _sizes(remedy)]
        table.add_row("  " + remedy.override, *marks)
    return table


def _sizes(remedy: Remedy) -> list[tuple[float, bool]]:
    return [(remedy.alone, remedy.fits_alone), (remedy.together, remedy.fits_together)]


def verdict(found: Estimate, work: Workload) -> Text:
    """Fits or not, in one line."""
    need = f"{gib(found.peak.total)} GiB a device at the peak ({found.peak.name})"
    bound = "" if work.exact else "; an upper bound, as the data are not here"
    if found.capacity is None:
        return Text(f"Verdict: needs {need}; hardware.memory_gb does not say whether that fits{bound}", style="bold yellow")
    words = f"{need}, of {gib(found.capacity)} GiB{bound}"
    return Text(f"Verdict: fits: {words}", style="bold green") if found.fits else Text(f"Verdict: does not fit: {words}", style="bold red")


def as_table(title: str, rows: Rows) -> Table:
    """Two columns under a title."""
    table = _table(title)
    table.show_header = False
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row("  " + name, value)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
