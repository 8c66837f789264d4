"""`posttrain constitution`: prompts in, revised answers and pairs out, resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.errors import ConfigError, Problem
from posttrain.runs import targets
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.compose import compose
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.journal import Journal
from posttrain.runs.options import config_dir, options
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.suggest import hint

BACKENDS = {
    "local": "posttrain.rewards.backends.local.Local",
    "openai": "posttrain.rewards.backends.openai.OpenAI",
    "scripted": "posttrain.rewards.backends.writer.Writer",
}
FREE = ("url", "key_variable", "concurrency", "timeout", "retries", "pause", "patience", "device", "batch_tokens")  # change no answer
AGAIN = "no reply"  # kind of failure that another try may mend
Row = dict[str, Any]


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises UserError for wrong arguments and missing data, before any model is loaded."""
    given = dict(args)
    if "run" in given:
        if clash := sorted(given.keys() & {"backend", "path"}):
            raise ConfigError(Problem(f"{clash[0]}={given[clash[0]]}", "run=DIR already says who writes", "give one of them"))
        given |= {"backend": "local", "path": str(find_artifact(str(given.pop("run"))))}
    name = str(given.pop("backend", "local"))
    if name not in BACKENDS:
        raise ConfigError(Problem(f"backend={name}", "there is no such backend", hint(name, BACKENDS)))
    writer, own = parameters_of(BACKENDS[name]), parameters_of("posttrain.runs.constitution.constitution")
    bound = bind(given, own | writer, command="constitution")
    backend = {"_target_": BACKENDS[name], **{key: bound.pop(key) for key in list(bound) if key in writer}}
    return constitution(backend, **bound)


def constitution(
    backend: Mapping[str, Any],
    *,
    data: str | list[str],
    to: str,
    principles: str | list[str] | None = None,
    rounds: int = 1,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 16,
) -> int:
    """Write TO/sft.jsonl and TO/pairs.jsonl. data: an option of the group `data`, or files. principles: a YAML file with a list of texts,
    or the texts. rounds: of critique and revision. limit: most rows read of each source. batch: prompts asked at a time.

    Returns the exit code: 1 where no prompt came to an answer.
    """
    for key, value, least in (("rounds", rounds, 1), ("batch", batch, 1), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ConfigError(Problem(f"{key}={value}", f"expected an integer >= {least}"))
    quiet_libraries()
    folder = Path(to).expanduser()
    texts = _principles(principles)
    prompts, unread = _prompts(data, limit)
    writer = {key: value for key, value in backend.items() if key not in FREE}
    made = {"backend": writer, "principles": texts, "rounds": rounds, "seed": seed}
    prepare_folder(folder, key="to")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(Problem(f"to={to}", "another process is writing there", "wait for it or choose another")) from None
    with lock:
        journal = Journal(folder / "journal.jsonl", made)
        rows = _of_these(prompts, _latest(journal.open()), folder)
        left = [number for number in range(len(prompts)) if _unfinished(rows.get(number))]
        print(f"{len(prompts)} prompts, {len(prompts) - len(left)} of them done before")
        if left:
            _write(backend, texts, prompts, left, journal=journal, rows=rows, rounds=rounds, seed=seed, batch=batch)
        return _finish(folder, [rows[number] for number in sorted(rows)], unread)


def _principles(source: str | list[str] | None) -> list[str]:
    from posttrain.rewards.constitution import read_principles

    try:
        return read_principles(source)
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(f"principles={source}", str(error), "a YAML file that is a list of texts")) from error


def _prompts(data: str | list[str], limit: int | None) -> tuple[list[tuple[Mapping[str, Any], ...]], Counter[str]]:
    """The prompts, and how many rows ask nothing, by reason."""
    from posttrain.data.asked import read_prompts
    from posttrain.data.formats import RowError

    named = isinstance(data, str) and data in {option.name for option in options((config_dir(),), "data")}
    node = compose([f"data={data}"] if named else ["data=files"])["data"]
    found = list(read_prompts(node if named else {**node, "train": data}, limit=limit))
    prompts = [prompt for prompt in found if not isinstance(prompt, RowError)]
    if not prompts:
        raise ConfigError(Problem(f"data={data}", f"no row asks anything: {found[0]}" if found else "has no rows"))
    return prompts, Counter(str(row) for row in found if isinstance(row, RowError))


def _of_these(prompts: Sequence[Any], rows: Mapping[int, Row], folder: Path) -> dict[int, Row]:
    """The rows of these prompts; `limit` may differ from that of an earlier call. Raises ConfigError where the prompts are others."""
    found = {number: row for number, row in rows.items() if number < len(prompts)}
    other = [number for number, row in found.items() if row["prompt"] != json.loads(json.dumps(prompts[number], default=str))]
    if other:
        raise ConfigError(
            Problem("data", f"{folder} was made from other prompts; the first that differs is number {min(other)}", "another to=")
        )
    return found


def _latest(rows: Sequence[Row]) -> dict[int, Row]:
    """By prompt; a prompt that was tried again has several."""
    return {row["index"]: row for row in rows}


def _unfinished(row: Row | None) -> bool:
    return row is None or (row["failure"] or "").startswith(AGAIN)


def _write(
    backend: Mapping[str, Any],
    principles: Sequence[str],
    prompts: Sequence[tuple[Mapping[str, Any], ...]],
    left: Sequence[int],
    *,
    journal: Journal,
    rows: dict[int, Row],
    rounds: int,
    seed: int,
    batch: int,
) -> None:
    """Ask about the prompts `left`, some at a time; each batch is in the journal before the next is asked."""
    from posttrain.rewards.constitution import Constitution

    writer = targets.build(dict(backend))
    writer.start()
    maker = Constitution(writer, principles, rounds, seed)
    for start in range(0, len(left), batch):
        made = [asdict(one) for one in maker.revise([(number, prompts[number]) for number in left[start : start + batch]])]
        journal.add(made)
        rows |= _latest(made)
        print(f"{min(start + batch, len(left))}/{len(left)}", flush=True)


def _finish(folder: Path, rows: Sequence[Row], unread: Mapping[str, int]) -> int:
    """Write the two files from the journal's rows, and say what there is."""
    whole = [row for row in rows if row["failure"] is None]
    answers = [(row["prompt"], row["first"], row["rounds"][-1]["answer"]) for row in whole]
    pairs = [(prompt, first, last) for prompt, first, last in answers if first != last]
    _dump(folder / "sft.jsonl", [{"messages": [*prompt, _said(last)]} for prompt, _, last in answers])
    _dump(
        folder / "pairs.jsonl", [{"prompt": prompt, "chosen": [_said(last)], "rejected": [_said(first)]} for prompt, first, last in pairs]
    )
    print(f"{folder / 'sft.jsonl'}: {len(answers)} answers")
    print(f"{folder / 'pairs.jsonl'}: {len(pairs)} pairs; {len(answers) - len(pairs)} answers were left as they were")
    failures = Counter(row["failure"].split(":")[0] for row in rows if row["failure"] is not None)
    for reason, count in {**unread, **failures}.items():
        again = "; the same command tries again" if reason == AGAIN else ""
        print(f"left out: {count} ({reason}{again})")
    return 0 if answers else 1


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _dump(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
