"""What `posttrain data` prints: examples with their tokens coloured by loss weight, segments, losses, lengths, sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.data.prepare import Prepared
from posttrain.data.report import SourceReport
from posttrain.data.tokenized import TokenizedSet
from posttrain.types import TokenizedExample

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

CONTEXT, TRAINED, TRAINED_OTHER = "dim", "black on green", "black on yellow"
BARS, WIDTH = 12, 40


def show(prepared: Prepared, tokenizer: Any, examples: int = 3, console: Console | None = None) -> None:
    """Print sources, losses, lengths and the first `examples` of the training set."""
    from rich.console import Console

    out = console or Console()
    out.print(source_table(prepared.report.sources))
    for line in (*prepared.report.notes, *loss_lines(prepared.report.sources)):
        out.print(f"  {line}", highlight=False, markup=False)
    out.print(length_table(prepared.train))
    plain = out.color_system is None
    out.print(legend(plain=plain))
    for index in range(min(examples, len(prepared.train))):
        out.print(example_panel(prepared.train, index, tokenizer, plain=plain))
    val = "none" if prepared.val is None else f"{len(prepared.val):,} examples, {len(prepared.val_checkable):,} with a checkable answer"
    out.print(f"train: {len(prepared.train):,} examples  val: {val}", highlight=False)
    out.print(f"cache: {'hit' if prepared.report.cache_hit else 'written'}  fingerprint: {prepared.report.fingerprint}", highlight=False)


def source_table(sources: tuple[SourceReport, ...]) -> Table:
    """One line a source: what was read and what is left of it."""
    from rich.table import Table

    table = Table(title="sources", title_justify="left")
    for name in ("source", "part", "format"):
        table.add_column(name)
    numbers = ("rows", "examples", "tokens", "trained", "truncated", "lost")
    for name in numbers:
        table.add_column(name, justify="right")
    for source in sources:
        table.add_row(source.name, source.part, source.format, *(f"{getattr(source, name):,}" for name in numbers))
    return table


def loss_lines(sources: tuple[SourceReport, ...], most: int = 5) -> list[str]:
    """Why rows were lost, with counts and the first of them."""
    lines = []
    for source in sources:
        filtered = {f"filtered by {name}": count for name, count in source.filtered.items()}
        counts = [("bad rows", source.bad), *source.dropped.items(), *filtered.items()]
        lines += [f"{source.name}: {count:,} rows lost: {reason}" for reason, count in counts if count]
        lines += [f"  {where}: {reason}" for where, reason in source.losses[:most]]
    return lines


def length_table(examples: TokenizedSet) -> Table:
    """A histogram of the examples' tokens."""
    from rich.table import Table

    table = Table(title="tokens an example", title_justify="left")
    table.add_column("tokens", justify="right")
    table.add_column("examples", justify="right")
    table.add_column("")
    counts, edges = histogram(examples.lengths)
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        table.add_row(f"{low:,}-{high - 1:,}", f"{count:,}", "#" * round(WIDTH * count / max(counts.max(), 1)))
    return table


def histogram(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts in at most BARS bins with whole-number edges; the last edge lies above the largest length."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    edges = np.unique(np.linspace(low, high, min(BARS, high - low) + 1).round().astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    return counts, edges


def legend(*, plain: bool = False) -> Text:
    """What the colours mean; plain: what the quotes mean that stand for colours in a file or a pipe."""
    from rich.text import Text

    if plain:
        return Text.assemble("context  ", *_quoted("trained", 1.0), "  ", *_quoted("trained with weight 0.5", 0.5))
    return Text.assemble(("context", CONTEXT), "  ", ("trained", TRAINED), "  ", ("trained with another weight than 1", TRAINED_OTHER))


def example_panel(examples: TokenizedSet, index: int, tokenizer: Any, *, plain: bool = False) -> Panel:
    """One example: its origin, its segments, its tokens."""
    from rich.panel import Panel

    example = examples[index]
    trained = int(np.count_nonzero(example.weights))
    title = f"{examples.value('origin', index)}  {len(example.ids)} tokens, {trained} trained, {len(example.segment_lengths)} segments"
    return Panel(coloured(example, tokenizer, plain=plain), title=title, title_align="left", subtitle=_answer(examples, index))


def _answer(examples: TokenizedSet, index: int) -> str | None:
    answer = examples.value("answer", index)
    return None if answer is None else f"answer: {answer}"


def coloured(example: TokenizedExample, tokenizer: Any, *, plain: bool = False) -> Text:
    """The tokens of an example as text, segment after segment, coloured by loss weight, or quoted where there are no colours."""
    from rich.text import Text

    text = Text()
    start = 0
    for number, (length, parent) in enumerate(zip(example.segment_lengths.tolist(), example.segment_parents.tolist(), strict=True)):
        if len(example.segment_lengths) > 1:
            text.append(f"{'' if number == 0 else chr(10)}[segment {number}{'' if parent < 0 else f', continues {parent}'}]\n", "bold cyan")
        for piece, weight in stretches(example.ids[start : start + length], example.weights[start : start + length]):
            written = tokenizer.decode(piece.tolist(), skip_special_tokens=False)
            for part in _quoted(written, weight) if plain else [written]:
                text.append(part, None if plain else _style(weight))
        start += length
        text.append(_marks(example, start - length, start), "bold magenta")
    return text


def _marks(example: TokenizedExample, start: int, end: int) -> str:
    """What is known of the tokens from `start` to `end`: number and value of each mark; of pairs, mark 1 is the chosen answer."""
    here = [number for number, place in enumerate(example.marks.tolist()) if start <= place < end]
    if len(example.marks) < 2 and np.isnan(example.values).all():
        return ""
    return "".join(f" [{number + 1}{'' if np.isnan(example.values[number]) else f': {example.values[number]:g}'}]" for number in here)


def stretches(ids: np.ndarray, weights: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Neighbouring tokens of equal weight, with that weight."""
    cuts = np.flatnonzero(weights[1:] != weights[:-1]) + 1
    return [(piece, float(weight[0])) for piece, weight in zip(np.split(ids, cuts), np.split(weights, cuts), strict=True) if len(piece)]


def _quoted(text: str, weight: float) -> list[str]:
    """Trained text in guillemets, its weight in front where that is not 1; context as it is."""
    if weight == 0:
        return [text]
    return ["«" if weight == 1 else f"{weight:g}«", text, "»"]


def _style(weight: float) -> str:
    if weight == 0:
        return CONTEXT
    return TRAINED if weight == 1 else TRAINED_OTHER
