"""`posttrain constitution`: rows out of prompts, counted failures, and a kill in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.formats import detect
from posttrain.data.rows import Row
from posttrain.errors import ConfigError, UserError
from posttrain.runs.constitution import main

COUNT = 6


class Endpoint(ThreadingHTTPServer):
    """A writer behind an OpenAI-style endpoint. asked: the contents it was asked. mute: texts that get HTTP 400. slow: seconds a reply."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.mute: set[str] = set()
        self.slow = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.asked.append(text)
        time.sleep(self.server.slow)
        if any(word in text for word in self.server.mute):
            self.send_error(400)
            return
        stage = "revise" if "[critique " in text else "critique" if "[answer " in text else "answer"
        reply = {"answer": f"first of {text}", "critique": "too curt", "revise": "[revision]a better one[end of revision]"}[stage]
        data = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"ask <{number}>"}) + "\n" for number in range(COUNT)))
    return str(file)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_that_training_reads(tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "out"
    assert main({"data": prompts, "to": str(to), "backend": "scripted", "draft": "{prompt} is stupid", "batch": 4}) == 0
    sft, pairs = rows(to / "sft.jsonl"), rows(to / "pairs.jsonl")
    assert sft[0] == {"messages": [{"role": "user", "content": "ask <0>"}, {"role": "assistant", "content": "ask <0> is good"}]}
    assert pairs[5]["rejected"] == [{"role": "assistant", "content": "ask <5> is stupid"}]
    assert (len(sft), len(pairs)) == (COUNT, COUNT)
    for written, kind in ((sft, "conversation"), (pairs, "preference")):
        assert detect([Row(row, "x", 1) for row in written], "x").kind == kind
    assert "6 pairs; 0 answers were left as they were" in capsys.readouterr().out


def test_line_ends_of_other_kinds_stay_inside_a_row(tmp_path: Path, prompts: str) -> None:
    call = {"data": prompts, "to": str(tmp_path / "out"), "backend": "scripted", "draft": "one\u2028two\x85three"}
    assert main(call) == main(call) == 0
    written = (tmp_path / "out" / "sft.jsonl").read_text().split("\n")
    assert json.loads(written[0])["messages"][1]["content"] == "one\u2028two\x85three"


def test_answers_that_need_no_mending_make_no_pair(tmp_path: Path, prompts: str) -> None:
    assert main({"data": prompts, "to": str(tmp_path / "out"), "backend": "scripted", "draft": "fine"}) == 0
    assert len(rows(tmp_path / "out" / "sft.jsonl")) == COUNT
    assert rows(tmp_path / "out" / "pairs.jsonl") == []


def test_what_failed_is_counted_and_silence_is_asked_again(
    tmp_path: Path, prompts: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"data": prompts, "to": str(tmp_path / "out"), "backend": "openai", "url": endpoint.url, "model": "m", "retries": 0}
    endpoint.mute = {"<1>", "<4>"}
    assert main(call) == 0
    assert "left out: 2 (no reply; the same command tries again)" in capsys.readouterr().out
    assert len(rows(tmp_path / "out" / "sft.jsonl")) == COUNT - 2
    endpoint.mute, endpoint.asked = set(), []
    assert main({**call, "patience": 3}) == 0
    assert len(endpoint.asked) == 2 * 3
    assert [row["messages"][0]["content"] for row in rows(tmp_path / "out" / "sft.jsonl")] == [f"ask <{n}>" for n in range(COUNT)]


def test_a_kill_costs_the_batch_at_hand(tmp_path: Path, prompts: str, endpoint: Endpoint) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call = [f"data={prompts}", "backend=openai", f"url={endpoint.url}", "model=m", "batch=2", "rounds=2"]
    arguments = dict(item.split("=", 1) for item in call)
    assert main({**arguments, "to": str(whole)}) == 0
    journal, endpoint.slow = broken / "journal.jsonl", 0.2
    process = subprocess.Popen([sys.executable, "-m", "posttrain", "constitution", *call, f"to={broken}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (journal.is_file() and len(journal.read_text().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rows(journal)) - 1
    assert 2 <= done < COUNT
    with journal.open("a") as file:
        file.write('{"index": 5, "pro')  # a kill in the middle of a line
    endpoint.slow, endpoint.asked = 0.0, []
    assert main({**arguments, "to": str(broken)}) == 0
    assert len(endpoint.asked) == (COUNT - done) * (1 + 2 * 2)
    for name in ("sft.jsonl", "pairs.jsonl", "journal.jsonl"):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_more_prompts_continue_and_other_settings_do_not(tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = {"data": prompts, "to": str(tmp_path / "out"), "backend": "scripted"}
    assert main({**call, "limit": 2}) == 0
    assert main(call) == 0
    assert "6 prompts, 2 of them done before" in capsys.readouterr().out
    for changed in ({"rounds": 2}, {"principles": ["Be brief."]}, {"seed": 1}, {"draft": "other"}):
        with pytest.raises(ConfigError, match="was made with"):
            main({**call, **changed})
    Path(prompts).write_text('{"prompt": "something else"}\n')
    with pytest.raises(ConfigError, match="other prompts"):
        main(call)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backend": "scripte"}, "did you mean scripted"),
        ({"rounds": 0}, "integer >= 1"),
        ({"model": "m"}, "no argument model"),
        ({"principles": "nowhere.yaml"}, "No such file"),
        ({"data": "nowhere.jsonl"}, "no such file"),
        ({"run": "."}, "already says who writes"),
        ({"backend": "openai"}, "url: is needed"),
    ],
)
def test_mistakes(tmp_path: Path, prompts: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main({"data": prompts, "to": str(tmp_path / "out"), "backend": "scripted", **changed})
    assert message in "\n".join(map(str, caught.value.problems))
    assert not (tmp_path / "out").exists()
