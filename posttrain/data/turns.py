"""Assistant turns within a rendered conversation: where each starts and ends, and whether it says what the row says."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.chat import END_THINK, THINK, Chat, Messages, Rendering, Tools, thought_of
from posttrain.data.formats import RowError
from posttrain.data.spans import Span

_THOUGHT_TAGS = re.compile(r"</?think>")


@dataclass(frozen=True)
class Turn:
    """An assistant turn as rendered.

    text: the conversation up to the turn's end. start: where in the text the turn starts. prompt: what generation would start from.
    tags: parts of the text inside generation tags; None where the text is not what the template wrote. message: what it says.
    """

    text: str
    start: int
    prompt: str
    tags: Sequence[tuple[int, int]] | None
    message: Mapping[str, Any]

    def ended(self, chat: Chat, following: Messages) -> Turn:
        """The turn with the header of the message that follows it, where that is what ends turns; else itself."""
        text = self.text.rstrip()
        header = chat.header_after(following[0]["role"]) if following and not text.endswith(chat.specials) else ""
        return replace(self, text=text + header) if header else self

    def span(self, end: int | None = None) -> Span:
        """The turn up to `end`, or without the white space after its last token: nobody has to write that."""
        return Span(self.start, len(self.text.rstrip()) if end is None else end, float(self.message.get("weight", 1.0)))

    def end_in(self, whole: str, chat: Chat, *, open_ends: bool = False) -> int | None:
        """Where the turn ends in the whole conversation; None where that shows the turn differently, or, unless `open_ends`, without a
        token that ends it."""
        own = self.text.rstrip()
        if whole.startswith(own):
            return len(own) if open_ends else _closed(own, whole[len(own) :], chat)
        # A template may close the conversation with more than it closes a turn with.
        shared = common(whole, self.text)
        end = max((shared.rfind(special) + len(special) for special in chat.specials if special in shared), default=0)
        return end if end > self.start and not missing(self.message, shared[self.start : end]) else None


def _closed(own: str, after: str, chat: Chat) -> int | None:
    """The place behind the token that ends a turn, in front of `after`; None where EOS has to end it, in a sequence of its own."""
    gap = len(after) - len(after.lstrip())
    if own.endswith(chat.specials) or gap == len(after):
        return len(own)
    header = chat.ending_header(after[gap:])
    return len(own) + gap + len(header) if header else None


def find_turn(chat: Chat, messages: Messages, k: int, tools: Tools, known: Rendering | None) -> Turn:
    """Turn k of a conversation; `known`: the rendering of messages[:k + 1], where the caller has it. Raises RowError."""
    messages = messages[: k + 1]
    turn = _located(chat, messages, tools, known or chat.render_tagged(messages, tools))
    if lost := missing(turn.message, turn.text[turn.start :]):
        raise RowError(
            f"the chat template leaves out of assistant turn {k + 1}: {', '.join(lost)}; set model.chat_template to one that writes it"
        )
    return turn


def _located(chat: Chat, messages: Messages, tools: Tools, rendering: Rendering) -> Turn:
    (text, tags), k, message = rendering, len(messages) - 1, messages[-1]
    if k == 0:
        start = _first_start(chat, text)
        return Turn(text, start, text[:start], tags, message)
    prompt = chat.render(messages[:k], tools, prompt=True)
    if text.startswith(prompt):
        return Turn(text, len(prompt), prompt, tags, message)
    if prompt.rstrip().endswith(THINK) and text.startswith(header := prompt[: prompt.rindex(THINK)]):
        return Turn(_with_thought(prompt, text[len(header) :].removeprefix(THINK), message), len(prompt), prompt, None, message)
    shared, before = common(prompt, text), chat.render(messages[:k], tools)
    if len(shared) < len(before.rstrip()):
        earlier = chat.render(messages[: k - 1], tools) if k > 1 else ""
        said = _behind(text, prompt.removeprefix(before), before[len(common(earlier, before)) :].rstrip(), message)
        if said is None or not prompt.startswith(before):
            raise RowError(f"the chat template hides where assistant turn {k + 1} starts")
        return Turn(prompt + said, len(prompt), prompt, None, message)
    # Some generation prompts hold more than a finished turn shows; what both share is the context.
    return Turn(text, len(shared), prompt, tags, message)


def _behind(text: str, header: str, last: str, message: Mapping[str, Any]) -> str | None:
    """What a template that forgets earlier reasoning once this turn is there writes of it: all behind the header that follows `last`.

    text: up to the turn's end. header: what the generation prompt adds. last: how the message before the turn ends. None where no such
    place has all of the turn behind it.
    """
    if not header.strip() or not last.strip():
        return None
    places = [match.end() for match in re.finditer(re.escape(header), text) if text[: match.start()].rstrip().endswith(last)]
    return next((text[place:] for place in reversed(places) if not missing(message, text[place:])), None)


def _first_start(chat: Chat, text: str) -> int:
    """Where the turn starts in a conversation that the assistant opens: after the header that the generation prompt shows elsewhere."""
    probe = [{"role": "user", "content": "x"}]
    header = chat.render(probe, (), prompt=True).removeprefix(chat.render(probe, ()))
    place = text.find(header.rstrip())
    if not header.strip() or place < 0:
        raise RowError("the chat template hides where the first assistant turn starts")
    return place + len(header if text.startswith(header, place) else header.rstrip())


def _with_thought(prompt: str, turn: str, message: Mapping[str, Any]) -> str:
    """Templates whose generation prompt opens a thought that finished turns do not show: the turn as the model has to write it.

    turn: what the template wrote of it. The thought is the template's, else the message's, else empty.
    """
    thought, mark, said = turn.partition(END_THINK)
    if not mark:
        inside, closed, _ = str(message.get("content", "")).partition(END_THINK)
        thought, said = inside.replace(THINK, "", 1) if closed else thought_of(message), turn
    lead = "" if prompt.endswith("\n") else "\n"
    return f"{prompt}{lead}{thought.strip()}\n{END_THINK}\n\n{said.lstrip()}"


def common(a: str, b: str) -> str:
    """What both texts begin with."""
    return os.path.commonprefix([a, b])  # noqa: RUF071 (characters are what is meant)


def missing(message: Mapping[str, Any], text: str) -> list[str]:
    """What a message says and a text does not, or only before the reasoning that led to it: reasoning, content, tool calls."""
    thought, *rest = _pieces(message)
    if thought[1] not in text:
        return [thought[0]]
    behind = text[text.index(thought[1]) + len(thought[1]) :]
    return [f"the reasoning before {name}" if piece in text else name for name, piece in rest if piece not in behind]


def _pieces(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The reasoning first, which may be empty."""
    thought, content = thought_of(message), str(message.get("content", ""))
    yield "its reasoning", thought
    said = content.partition(END_THINK)[2] if thought and content.lstrip().startswith(THINK) else content
    yield from (("its content", piece.strip()) for piece in _THOUGHT_TAGS.split(said))
    yield from ((f"the call of {call['function']['name']}", str(call["function"]["name"])) for call in message.get("tool_calls", ()))


def narrowed(chat: Chat, text: str, tags: Sequence[tuple[int, int]] | None, turns: Sequence[Span]) -> tuple[Span, ...]:
    """The turns narrowed to what {% generation %} marks, each with the special token that ends it. Raises RowError."""
    if not chat.tagged or tags is None:
        return tuple(turns)
    spans = [_within(chat, text, turn, tags) for turn in turns]
    if not all(spans):
        raise RowError("the chat template's {% generation %} tags leave out an assistant turn")
    return tuple(span for turn in spans for span in turn)


def _within(chat: Chat, text: str, turn: Span, tags: Sequence[tuple[int, int]]) -> list[Span]:
    parts = [(max(start, turn.start), min(end, turn.end)) for start, end in tags if start < turn.end and end > turn.start]
    if not parts:
        return []
    start, end = parts[-1]
    after = text[end : turn.end]
    gap = len(after) - len(after.lstrip())
    closing = next((special for special in chat.specials if after.startswith(special, gap)), "")
    parts[-1] = (start, end + gap + len(closing) if closing else end)
    return [Span(start, end, turn.weight) for start, end in parts]
