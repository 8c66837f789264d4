"""`posttrain chat run=DIR`: talk to an artifact in the terminal, or answer the lines of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.quiet import quiet_libraries

if TYPE_CHECKING:
    from posttrain.evaluation.streaming import Answerer

HELP = "/reset forgets the conversation, /quit leaves (also Ctrl-D); Ctrl-C stops an answer"


@dataclass
class Conversation:
    """Turns so far. templated: False for a model without a chat template, which continues each line on its own."""

    system: str | None
    templated: bool
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget all turns but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def __post_init__(self) -> None:
        self.reset()

    def drop_oldest(self) -> bool:
        """Forget the oldest exchange; False if only the newest question is left."""
        first = 1 if self.system else 0
        if len(self.messages) - first < 3:
            return False
        del self.messages[first : first + 2]
        return True


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises ConfigError for wrong arguments, before the model is loaded."""
    options = bind(args, parameters_of("posttrain.runs.chat.chat"), command="chat")
    if options.get("web"):
        raise ConfigError(Problem("web=true", "the browser chat is not part of this version", "leave it out to chat in the terminal"))
    return chat(**options)


def chat(
    *,
    run: str,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.9,
    system: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    web: bool = False,
) -> int:
    """Chat until the input ends. temperature 0 = greedy. seed: makes sampled answers repeatable. Returns the exit code."""
    del web  # main refused it
    _check_ranges(max_new_tokens, temperature, top_p)
    folder = find_artifact(run)
    quiet_libraries()
    from posttrain.evaluation.streaming import Answerer
    from posttrain.runs.loaded import load

    model, tokenizer = load(folder, device=device)
    answerer = Answerer(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    conversation = Conversation(system, templated=tokenizer.chat_template is not None)
    if system and not conversation.templated:
        raise ConfigError(Problem("system", "the model has no chat template, so it takes no system prompt"))
    if sys.stdin.isatty():
        kind = "" if conversation.templated else " It has no chat template: it continues your text."
        print(f"{folder}: {model.config.model_type}.{kind} {HELP}")
    _converse(conversation, answerer, _typed_lines() if sys.stdin.isatty() else iter(sys.stdin.readline, ""))
    return 0


def _check_ranges(max_new_tokens: int, temperature: float, top_p: float) -> None:
    wrong = [
        Problem(f"{name}={value}", f"expected {expected}")
        for name, value, good, expected in (
            ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "an integer >= 1"),
            ("temperature", temperature, temperature >= 0, "a number >= 0 (0 = greedy)"),
            ("top_p", top_p, 0 < top_p <= 1, "a number above 0, at most 1"),
        )
        if not good
    ]
    if wrong:
        raise ConfigError(wrong)


def _converse(conversation: Conversation, answerer: Answerer, lines: Iterator[str]) -> None:
    """Answer every line until /quit or the end of the input."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            conversation.reset()
            print("(new conversation)")
        elif text.startswith("/") and " " not in text:
            print(f"({HELP})")
        elif text:
            _answer(conversation, answerer, text)


def _answer(conversation: Conversation, answerer: Answerer, text: str) -> None:
    """Stream one answer. Ctrl-C ends it; what was said until then stays in the conversation."""
    if not conversation.templated:
        answerer.answer(answerer.encode_text(text), _show)
        print()
        return
    conversation.messages.append({"role": "user", "content": text})
    prompt = answerer.encode_messages(conversation.messages)
    while not answerer.fits(prompt) and conversation.drop_oldest():
        print("(the conversation is too long for the model: its oldest turns are forgotten)", file=sys.stderr)
        prompt = answerer.encode_messages(conversation.messages)
    reply = answerer.answer(prompt, _show)
    print()
    conversation.messages.append({"role": "assistant", "content": reply})


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def _typed_lines(ask: Callable[[str], str] = input) -> Iterator[str]:
    """Lines typed at a prompt, until Ctrl-D; Ctrl-C there only says how to leave."""
    while True:
        try:
            yield ask("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n({HELP})")
