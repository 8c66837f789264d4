"""`posttrain human-eval`: from runs to sheets, through a browser, to a report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROGRAM, Browser

from posttrain.errors import ConfigError, UserError
from posttrain.evaluation.human.blind import Item, blind, from_json, to_json
from posttrain.evaluation.human.cells import from_csv, to_csv
from posttrain.evaluation.human.form import page
from posttrain.evaluation.human.returned import judgements
from posttrain.runs.commands.human_eval import run
from posttrain.runs.commands.table import Call
from posttrain.runs.compose import compose
from posttrain.runs.human_eval.answers import kept_rows
from posttrain.runs.human_eval.score import score
from posttrain.runs.job import run_job

COMMON = [
    "tracking=none",
    "hardware=cpu",
    "limit=60",
    "data.generator.held_out=16",
    "global_batch=8",
    "max_steps=1",
    "validate.at_start=false",
]
ASKED = ["evaluation.exact_match.before=false", "evaluation.exact_match.max_new_tokens=4", "evaluation.samples=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, one of them with two seeds."""
    home = tmp_path_factory.mktemp("runs")
    for name, lr in (("a1", "3e-3"), ("b", "1e-6")):
        assert run_job(compose([*COMMON, *ASKED, f"optimizer.lr={lr}", "seed=1", f"output_dir='{home / name}'"])) == 0
    shutil.copytree(home / "a1", home / "a2")
    config = (home / "a2" / "config.yaml").read_text()
    (home / "a2" / "config.yaml").write_text(config.replace("\nseed: 1\n", "\nseed: 2\n"))
    return home


def command(*arguments: str) -> int:
    return run(Call(arguments=arguments))


def annotate(file: Path, key: Path, arm: str) -> None:
    """An annotator who sees through the blinding and prefers one arm, but for every fifth item."""
    found = from_json(key.read_text())
    order = {row.id: row.order for row in found.raters[file.stem]}
    head, *rows = from_csv(file.read_bytes())
    for number, row in enumerate(rows):
        place = order[row[0]].index(found.arms.index(arm))
        row[5:8] = ["5" if place == 0 else "2", "5" if place == 1 else "2", "tie" if number % 5 == 0 else "AB"[place]]
    file.write_bytes(to_csv(head, rows))


def test_from_runs_to_a_report(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "out"
    assert command("make", f"runs={runs}", f"to={to}", "n=12", "seed=1", "raters=2") == 0
    assert "12 prompts" in capsys.readouterr().out
    key = from_json((to / "key.json").read_text())
    assert key.arms == ("optimizer.lr=0.003", "optimizer.lr=1e-06")
    assert {Path(row.runs[0]).name for row in key.raters["r1"]} == {"a1", "a2"}
    prompts = [row[1] for row in from_csv((to / "sheets" / "r1.csv").read_bytes())[1:]]
    assert all("im_start" not in prompt and "=?" in prompt for prompt in prompts)
    assert b"optimizer" not in b"".join(file.read_bytes() for file in (to / "sheets").iterdir())
    for rater in ("r1", "r2"):
        annotate(to / "sheets" / f"{rater}.csv", to / "key.json", "optimizer.lr=0.003")
    sheets = ",".join(str(to / "sheets" / f"{rater}.csv") for rater in ("r1", "r2"))
    assert command("score", f"sheets=[{sheets}]", f"key={to / 'key.json'}") == 0
    said = json.loads((to / "human_eval.json").read_text())
    assert said["verdict"][0].startswith("optimizer.lr=0.003 is preferred to optimizer.lr=1e-06")
    assert said["standings"][0]["rating"]["value"] == 5
    assert said["verdict"][0] in capsys.readouterr().out
    assert "optimizer.lr=0.003" in (to / "human_eval.html").read_text()
    with pytest.raises(ConfigError, match="holds the key of other sheets"):
        command("make", f"runs={runs}", f"to={to}", "n=12", "seed=2")


def test_runs_that_kept_no_answer_give_them_anew(runs: Path, tmp_path: Path) -> None:
    for name in ("a1", "b"):
        shutil.copytree(runs / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "b" / "samples.jsonl").unlink()
    study = {"arms": [{"name": "fast", "runs": ["a1"]}, {"name": "slow", "runs": ["b"]}]}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert command("make", f"study={tmp_path}", f"to={tmp_path / 'new'}", "n=3", "max_new_tokens=4") == 0
    assert command("make", f"runs=[{runs / 'a1'},{runs / 'b'}]", f"to={tmp_path / 'kept'}", "n=16") == 0
    key = from_json((tmp_path / "new" / "key.json").read_text())
    assert (key.arms, key.about["answers"]) == (("fast", "slow"), "generated")
    fresh, kept = (
        {row[1]: sorted(row[3:5]) for row in from_csv((tmp_path / at / "sheets" / "r1.csv").read_bytes())} for at in ("new", "kept")
    )
    assert fresh.items() <= kept.items(), "greedy answers of the same artifacts"


def test_kept_answers_hold_line_ends_of_other_kinds(tmp_path: Path) -> None:
    row = {"example": 3, "prompt": "a\x85b", "completion": "c\u2028d", "expected": "e"}
    (tmp_path / "samples.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 2)
    assert kept_rows(tmp_path) == [row, row]


def test_bad_input_is_told_at_once(runs: Path, tmp_path: Path) -> None:
    to = f"to={tmp_path / 'out'}"
    for arguments, message in (
        (("make", to), "runs: is needed"),
        (("make", to, f"runs={runs}", f"study={runs}"), "are both given"),
        (("make", to, f"runs=[{runs / 'a1'},{runs / 'a2'}]"), "1 arms"),
        (("make", to, f"runs=[{runs / 'a1'},{runs / 'a1'},/nowhere]"), "is named twice"),
        (("make", to, f"runs={runs}", "n=17"), "have 16 held-out prompts in common"),
        (("make", to, f"runs={runs}", "n=0", "raters=0"), "raters=0: expected an integer"),
        (("make", to, f"runs={runs}", "m=3"), "has no argument m"),
        (("mke",), "did you mean make"),
        ((), "expected make or score"),
        (("score", "sheets=[a.csv]", "key=nowhere"), "cannot be read"),
    ):
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            command(*arguments)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium")
    found = Browser(tmp_path)
    yield found
    found.close()


def test_the_form_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    hostile = (
        "</script><script>document.title='owned'</script>",
        '=1+1,"x";\n@y\r\nz',
        "🙂 <img src=http://example.com/x onerror=alert(1)>",
    )
    items = [Item(f"{text} {k}", "", (text, f"{text}!"), "all", ("", "")) for k, text in enumerate(hostile)]
    key, (sheet,) = blind(items, ["sft", "grpo"], by="nothing", about={}, raters=1, seed=0)
    (tmp_path / "key.json").write_text(to_json(key))
    (tmp_path / "form.html").write_text(page(sheet, file="r1.csv"), encoding="utf-8")
    browser.downloads_to(tmp_path)
    browser.open(tmp_path / "form.html")
    shown = browser.run("[...document.querySelectorAll('.text')].map(one => one.textContent)")
    assert shown == [sheet.rows[0].prompt, *sheet.rows[0].answers]
    for text in "52an":
        browser.key(text)
    browser.open(tmp_path / "form.html")
    assert browser.run("document.getElementById('count').textContent") == "1 of 3 finished", "what was entered is there after a reload"
    for text in "33to13b":
        browser.key(text)
    browser.run("(one => { one.value = '=n, \"q\"\\n🙂'; one.dispatchEvent(new Event('input')); })(document.getElementById('notes'))")
    browser.run("document.getElementById('export').click()")
    saved = tmp_path / "r1.csv"
    for _ in range(100):
        if saved.is_file() and saved.stat().st_size:
            break
        time.sleep(0.05)
    found = judgements([("r1.csv", saved.read_bytes())], key)
    assert [one.ratings[one.order[0]] for one in found] == [5, 3, 1]
    assert [None if one.preferred is None else one.order.index(one.preferred) for one in found] == [0, None, 1]
    assert found[2].notes == '=n, "q"\n🙂'
    assert browser.run("document.title") == "Which answer is better?"
    assert browser.troubles() == []
    score(sheets=[str(saved)], key=str(tmp_path / "key.json"))
    browser.open(tmp_path / "human_eval.html")
    assert browser.troubles() == []
