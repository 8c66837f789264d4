"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from posttrain.runs.comparison.forgetting import Change
from posttrain.runs.comparison.ink import key, labels
from posttrain.runs.comparison.report import COSTS, QUALITY, TIMES, Report, cost_rows, folder_of, quality_rows, time_rows
from posttrain.runs.comparison.sheet import STYLE
from posttrain.runs.comparison.verdict import between, number, p_value

COST, TIME, DRIFT, CHANGE = ("pareto", "quality_over_flops"), ("quality_over_hours",), "reward_over_kl", "change_"

CHANGES = (
    "Intervals are over seeds and examples where the scores of both models were kept, else over seeds; with one seed an arm they are "
    "about this one model. p-values are adjusted by Holm for all rows."
)


def page(report: Report, drawn: Mapping[str, tuple[str, str]]) -> str:
    """The whole page. drawn: the pictures by name, as elements, and what each shows."""
    first, *others = report.verdicts
    keys = [key(place) for place in range(len(report.arms))]

    def grid(names: Sequence[str]) -> str:
        return '<div class="grid">' + "".join(figure(*drawn[name]) for name in names if name in drawn) + "</div>"

    parts = [
        f'<p class="verdict">{escape(first)}</p>',
        *(f"<p>{escape(line)}</p>" for line in others),
        *(f'<p class="warning">{escape(line)}</p>' for line in report.warnings),
        legend(report, keys),
        "<h2>Quality</h2>",
        table(QUALITY, quality_rows(report.analysis), lead=[keys[place] for place in report.analysis.order]),
        grid(("quality", "differences")),
        "<h2>Quality over cost</h2>",
        table(COSTS, cost_rows(report), lead=[keys[place] for place in report.analysis.order]),
        grid(COST),
        *(["<h2>Reward over divergence</h2>", grid((DRIFT,))] if DRIFT in drawn else []),
        *_changes(report, keys, grid([name for name in drawn if name.startswith(CHANGE)])),
        *_measured(report, keys, grid(TIME)),
        *_details(report),
        '<div class="notes"><h2>Notes</h2>' + "".join(f"<p>{escape(note)}</p>" for note in report.notes) + "</div>",
    ]
    title = title_of(report)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}</body></html>\n'
    )


def title_of(report: Report) -> str:
    """The study's name, or the arms'; and what decides."""
    if report.study is not None:
        return f"{report.study.name}: {report.analysis.metric} of {len(report.arms)} arm{'s' * (len(report.arms) > 1)}"
    return f"{report.analysis.metric} of {len(report.arms)} arms"


def legend(report: Report, keys: Sequence[str]) -> str:
    """Every arm with its line and mark, and the letter that stands for it beside an axis."""
    names = [arm.name for arm in report.arms]
    items = [
        f"<li><span>{picture}{'' if label == name else f'<b>{escape(label)}</b> '}{escape(name)}</span></li>"
        for picture, label, name in zip(keys, labels(names), names, strict=True)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, lead: Sequence[str] = (), kind: str = "") -> str:
    """Columns and rows of plain text. lead: an element before the first cell of each row."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    marks = lead or [""] * len(rows)
    cells = [
        "<tr>" + "".join(f"<td>{mark if place == 0 else ''}{escape(cell)}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row, mark in zip(rows, marks, strict=True)
    ]
    body = "".join(cells)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(picture: str, words: str) -> str:
    """An SVG with what it shows, which is also what a reader who cannot see it is told."""
    return f'<figure><div role="img" aria-label="{escape(words)}">{picture}</div><figcaption>{escape(words)}.</figcaption></figure>'


def _measured(report: Report, keys: Sequence[str], grid: str) -> list[str]:
    """What is of the machines; all else on the page is of the study."""
    units = {(run.result.get("budget") or {}).get("unit") for arm in report.arms for run in arm.runs}
    seconds = "gpu_seconds" in units or (report.study is not None and (report.study.budget or {}).get("unit") == "gpu_seconds")
    others = "and, with a budget in seconds, also elsewhere" if seconds else "and the same ones everywhere else"
    words = (
        f"Measured on the machines. The same study run again, or killed and continued, finds other numbers in this section, {others}. "
        f"The runs lie in {report.home}."
    )
    rows = table(TIMES, time_rows(report), lead=[keys[place] for place in report.analysis.order])
    return ["<section>", "<h2>Time and memory</h2>", f"<p>{escape(words)}</p>", rows, grid, "</section>"]


def _changes(report: Report, keys: Sequence[str], grid: str) -> list[str]:
    if not report.changes:
        return []
    rows = [_change_row(report.arms[change.arm].name, change) for change in report.changes]
    head = ("arm", "metric", "starting model", "trained", "change", "its 95 % interval", "p (Holm)", "verdict")
    made = table(head, rows, lead=[keys[change.arm] for change in report.changes])
    return ["<h2>Against the starting model</h2>", f"<p>{escape(CHANGES)}</p>", made, grid]


def _change_row(arm: str, change: Change) -> tuple[str, ...]:
    means = [number(sum(values) / len(values)) for values in (change.before, change.after)]
    apart = "-" if math.isnan(change.low) else between(change.low, change.high)
    return arm, change.metric, *means, f"{change.difference + 0.0:+.3g}", apart, p_value(change.holm), change.verdict


def _details(report: Report) -> list[str]:
    """Tables that few readers want."""
    names = tests_of(report)
    sections = (
        ("Tests of each pair: p-values, not adjusted", table(("pair", *names), test_rows(report, names)), bool(report.analysis.pairs)),
        ("Settings that differ", table(("setting", *(arm.name for arm in report.arms)), differing_rows(report), kind="plain"), True),
        ("Runs", table(("arm", "seed", report.analysis.metric, "folder"), run_rows(report), kind="plain"), True),
    )
    return [f"<details><summary>{title}</summary>{content}</details>" for title, content, is_there in sections if is_there]


def tests_of(report: Report) -> list[str]:
    """Names of all tests that were made of any pair."""
    return list(dict.fromkeys(name for pair in report.analysis.pairs for name in pair.tests))


def test_rows(report: Report, names: Sequence[str]) -> list[list[str]]:
    """p-values of each pair, not adjusted."""
    arms = report.analysis.arms
    return [
        [f"{arms[pair.one].name} less {arms[pair.other].name}", *(p_value(pair.tests.get(name, float("nan"))) for name in names)]
        for pair in report.analysis.pairs
    ]


def differing_rows(report: Report) -> list[list[str]]:
    """Every setting that is not the same in all arms."""
    keys = report.arms[0].differs
    return [[key, *(json.dumps(arm.differs[key], default=str) for arm in report.arms)] for key in keys]


def run_rows(report: Report) -> list[list[str]]:
    """Every run."""
    metric = report.analysis.metric
    return [[arm.name, str(run.seed), f"{run.metrics[metric]:.6g}", folder_of(report, run)] for arm in report.arms for run in arm.runs]
