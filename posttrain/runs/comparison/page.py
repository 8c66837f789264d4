"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from posttrain.runs.comparison.pictures import arms_picture, cost_picture, svg
from posttrain.runs.comparison.report import COSTS, QUALITY, Report, cost_rows, quality_rows
from posttrain.runs.comparison.verdict import p_value

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { border-left: 5px solid #0072B2; padding: .4rem 1rem; background: #f2f6fa; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #111; }
figure { margin: 1rem 0; overflow-x: auto; } svg { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
footer, .notes { color: #444; font-size: .9rem; }
@media print { body { margin: 0; max-width: none; } }
"""


def page(report: Report) -> str:
    """The whole page."""
    analysis = report.analysis
    first, *others = report.verdicts
    parts = [
        f'<p class="verdict">{escape(first)}</p>',
        *(f"<p>{escape(line)}</p>" for line in others),
        "<h2>Quality</h2>",
        table(QUALITY, quality_rows(analysis)),
        figure(svg(arms_picture(analysis)), f"Means of {analysis.metric} with 95 % intervals, and differences to the reference"),
        "<h2>Quality over cost</h2>",
        figure(svg(cost_picture(analysis, report.curves)), f"{analysis.metric} over floating-point operations and over hours of training"),
        table(COSTS, cost_rows(report)),
        "<h2>Tests</h2>",
        table(("pair", *tests_of(report)), test_rows(report)),
        "<h2>What differs</h2>",
        table(("setting", *(arm.name for arm in report.arms)), differing_rows(report)),
        "<h2>Runs</h2>",
        table(("arm", "seed", analysis.metric, "folder"), run_rows(report)),
        '<div class="notes"><h2>Notes</h2>' + "".join(f"<p>{escape(note)}</p>" for note in report.notes) + "</div>",
    ]
    title = f"{analysis.metric}: {', '.join(arm.name for arm in report.arms)}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>\n' + "\n".join(parts) + "</body></html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns and rows of plain text."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(picture: str, words: str) -> str:
    """An SVG with what a reader who cannot see it is told."""
    return f'<figure role="img" aria-label="{escape(words)}">{picture}</figure>'


def tests_of(report: Report) -> list[str]:
    """Names of all tests that were made of any pair."""
    return list(dict.fromkeys(name for pair in report.analysis.pairs for name in pair.tests))


def test_rows(report: Report) -> list[list[str]]:
    """p-values of each pair, not adjusted."""
    names, arms = tests_of(report), report.analysis.arms
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
    return [[arm.name, str(run.seed), f"{run.metrics[metric]:.6g}", str(run.folder)] for arm in report.arms for run in arm.runs]
