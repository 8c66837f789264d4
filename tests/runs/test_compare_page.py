"""The report in a real browser, without a network: wide and narrow, light and dark, one arm and eight with long names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comparison_runs import METRIC, make_arm, make_study
from PIL import Image

from posttrain.runs.comparison.command import report_on_study
from posttrain.runs.records import MetricsFile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
# A page that holds the report in frames of both widths and writes down what it measures in each.
FRAMES = """<body>%s<pre id="found"></pre><script>
onload = () => { document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, wide = frame.clientWidth;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const out = [...page.querySelectorAll("body *")].filter(each => !each.closest(".scroll") && each.getBoundingClientRect().right > wide + 1);
  return {width: wide, scroll: page.documentElement.scrollWidth, out: out.map(each => each.outerHTML.slice(0, 80)),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(each => each.name),
    drawn: [...page.querySelectorAll("figure svg")].map(each => Math.round(each.getBoundingClientRect().width)),
    ink: getComputedStyle(page.body).color};
})); };</script></body>"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens a page; what it and its console say. Nothing but files can be reached."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
        "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--force-device-scale-factor=1", *options, f"file://{page}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


def study(home: Path, names: list[str]) -> Path:
    """Arms of which the second one has a reference and is over-optimised."""
    arms = {name: make_arm(home, f"arm{place}", gain=0.02 * place, seeds=2, examples=60) for place, name in enumerate(names)}
    for folder in arms[names[-1]]:
        lines = MetricsFile(folder / "metrics.jsonl")
        for step in range(3, 30):
            lines.append(step, {"kl": 0.01 * step, "reward/mean": 0.02 * step, "generated": 5 * step})
        lines.close()
        result = json.loads((folder / "result.json").read_text())
        result["metrics"] |= {f"{METRIC}/before": 0.2}
        (folder / "result.json").write_text(json.dumps(result))
    report_on_study(make_study(home, arms))
    return home / "compare" / "compare.html"


LONG = [f"an arm with a long name that somebody gave it, number {place}: beta=0.{place}, label_smoothing=0.05" for place in range(8)]


@pytest.mark.parametrize("names", [["sft"], LONG], ids=["one", "eight"])
def test_nothing_is_fetched_and_nothing_overflows(tmp_path: Path, names: list[str]) -> None:
    page = study(tmp_path, names)
    frames = "".join(f'<iframe src="compare.html" style="width:{width}px;height:2000px;border:0"></iframe>' for width in (1280, 400))
    (page.parent / "frames.html").write_text(FRAMES % frames)
    done = browse(page.parent / "frames.html", "--window-size=1800,2200", "--virtual-time-budget=4000", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert written
    found: list[dict[str, Any]] = json.loads(written[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [frame["width"] for frame in found] == [1280, 400]
    for frame in found:
        assert frame["scroll"] <= frame["width"]
        assert (frame["out"], frame["fetched"]) == ([], [])
        assert len(frame["drawn"]) >= 5
        assert min(frame["drawn"]) > 330, "also on a telephone a plot is as wide as the page"


def test_what_is_seen(tmp_path: Path) -> None:
    page = study(tmp_path, ["SFT only", "RL only"])
    shots = {}
    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        browse(page, "--window-size=1280,1600", f"--screenshot={tmp_path / name}.png", *options)
        shots[name] = Image.open(tmp_path / f"{name}.png").convert("RGB")
    light, dark = (shot.getpixel((5, 5)) for shot in shots.values())
    assert light == (255, 255, 255)
    assert max(dark) < 60  # type: ignore[type-var]
    for shot in shots.values():
        assert len({colour for _, colour in shot.getcolors(1 << 24)}) > 50, "plots are drawn"
    greys = {name: [shot.convert("L").getpixel((5, 5))] for name, shot in shots.items()}
    assert greys["light"] != greys["dark"]
