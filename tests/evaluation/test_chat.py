"""The terminal chat on a model that knows two answers: pipes, commands, interruption, long conversations."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.errors import ConfigError
from posttrain.evaluation.streaming import Answerer, PieceStreamer
from posttrain.runs.chat import Conversation, _typed_lines, main

ROOT = Path(__file__).parents[2]


def piped(run_dir: Path, lines: str, *args: str) -> subprocess.CompletedProcess[str]:
    line = ["chat", f"run={run_dir}", "temperature=0", "max_new_tokens=30", *args]
    process = preloaded.posttrain(*line)
    out, err = process.communicate(lines, timeout=120)
    return subprocess.CompletedProcess(line, process.wait(), out, err)


def test_a_pipe_answers_each_line(run_dir: Path) -> None:
    done = piped(run_dir, "2+2?\n\n/reset\n3+5?\n/help\n/quit\n2+2?\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["It is 4.", "(new conversation)", "It is 8."]
    assert lines[3].startswith("(/reset forgets")
    assert len(lines) == 4


def test_end_of_input_ends_the_chat(run_dir: Path) -> None:
    assert piped(run_dir, "2+2?").stdout == "It is 4.\n"


def test_pieces_join_to_the_answer(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    answerer = Answerer(trained_model, tokenizer, max_new_tokens=30, temperature=0, top_p=1.0)
    pieces: list[str] = []
    answer = answerer.answer(answerer.encode_messages([{"role": "user", "content": "2+2?"}]), pieces.append)
    assert answer == "It is 4." == "".join(pieces)
    assert len(pieces) > 4, "it streams"


def test_a_seed_repeats_sampled_answers(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    def sampled(seed: int) -> str:
        answerer = Answerer(random_model, tokenizer, max_new_tokens=20, temperature=1.5, top_p=0.95, seed=seed)
        return answerer.answer([1, 2, 3], lambda piece: None)

    with torch.random.fork_rng():
        assert sampled(1) == sampled(1) != sampled(2)


def test_half_a_character_is_held_back(tokenizer: PreTrainedTokenizerFast) -> None:
    shown: list[str] = []
    streamer = PieceStreamer(tokenizer, [], shown.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for byte in "a\u00e9\u4e2d".encode():
        streamer.put(torch.tensor([byte]))
    streamer.end()
    assert [piece for piece in shown if piece] == ["a", "\u00e9", "\u4e2d"]


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    answerer = Answerer(trained_model, tokenizer, max_new_tokens=30, temperature=0, top_p=1.0)
    pieces: list[str] = []

    def interrupting(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 4:
            raise KeyboardInterrupt

    trained_model.train()
    answer = answerer.answer(answerer.encode_messages([{"role": "user", "content": "2+2?"}]), interrupting)
    assert "It is 4.".startswith(answer)
    assert 0 < len(answer) < len("It is 4.")
    assert trained_model.training, "what decoding changed is put back"
    trained_model.eval()


def test_control_c_in_a_real_terminal_stops_the_answer_not_the_program(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """With all logits equal, the model says byte 0 and never stops by itself."""
    with torch.no_grad():
        random_model.get_output_embeddings().weight.zero_()
    random_model.save_pretrained(tmp_path / "artifact")
    tokenizer.save_pretrained(tmp_path / "artifact")
    master, slave = pty.openpty()
    pairs = {"run": str(tmp_path), "temperature": "0", "max_new_tokens": "1000000"}
    # A suite started in the background hands on an ignored SIGINT, which a terminal's foreground program never has.
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from posttrain.runs.chat import main; sys.exit(main({pairs!r}))"
    chat = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True)
    os.close(slave)
    try:
        assert b"/quit" in until_seen(master, b"\n> ")
        os.write(master, b"go on\n")
        until_seen(master, b"\0" * 5)
        chat.send_signal(signal.SIGINT)
        until_seen(master, b"\n> ")
        assert chat.poll() is None
        os.write(master, b"/quit\n")
        assert chat.wait(timeout=20) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(master)


def until_seen(terminal: int, wanted: bytes, seconds: float = 60.0) -> bytes:
    """What the terminal showed up to `wanted`; fails after `seconds`."""
    heard, end = b"", time.monotonic() + seconds
    while wanted not in heard:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no {wanted!r} within {seconds} s: {heard[-500:]!r}"
        heard += os.read(terminal, 4096)
    return heard


def test_control_c_and_control_d_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    events = iter(["hello", KeyboardInterrupt(), EOFError()])

    def ask(prompt: str) -> str:
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return event

    assert list(_typed_lines(ask)) == ["hello"]
    assert "/quit" in capsys.readouterr().out


def test_the_oldest_turns_are_forgotten_first() -> None:
    conversation = Conversation("be brief", templated=True)
    for text in ("a", "A", "b", "B", "c"):
        conversation.messages.append({"role": "user" if text.islower() else "assistant", "content": text})
    assert conversation.drop_oldest()
    assert [message["content"] for message in conversation.messages] == ["be brief", "b", "B", "c"]
    assert conversation.drop_oldest()
    assert not conversation.drop_oldest()
    assert [message["content"] for message in conversation.messages] == ["be brief", "c"]
    conversation.reset()
    assert [message["content"] for message in conversation.messages] == ["be brief"]


def test_a_long_conversation_goes_on(run_dir: Path) -> None:
    done = piped(run_dir, "2+2?\n" * 6, "max_new_tokens=330")
    assert done.returncode == 0, done.stderr
    assert "oldest turns are forgotten" in done.stderr
    assert done.stdout.startswith("It is 4.\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"web": True}, "browser chat"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 0}, "top_p=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_token": 3}, "did you mean max_new_tokens"),
        ({"device": "tpu9"}, "device=tpu9"),
    ],
)
def test_wrong_arguments(run_dir: Path, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main({"run": str(run_dir), **args})


def test_a_model_without_a_template_continues_text(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    random_model.save_pretrained(tmp_path / "artifact")
    plain.save_pretrained(tmp_path / "artifact")
    assert piped(tmp_path, "once upon\n").returncode == 0
    with pytest.raises(ConfigError, match="no system prompt"):
        main({"run": str(tmp_path), "system": "be brief"})
