"""From a data node to tokenized sets: truncation, drops, errors, cache, split, text."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import BOS, CHATML, END, EOS, THINKING, byte_level, real
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from posttrain.data import tokenise
from posttrain.data.encoders import example_of
from posttrain.data.encoders import get as get_encoder
from posttrain.data.encoders.text import chunks
from posttrain.data.guard import GUARD
from posttrain.data.prepare import Prepared, prepare, tokenizer_digest
from posttrain.data.rows import Row
from posttrain.data.show import histogram, show, stretches
from posttrain.data.spans import encode_ids, encode_texts
from posttrain.data.tree import tree_of
from posttrain.errors import ConfigError, DataError

Node = Callable[..., dict[str, Any]]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def qa(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": f"q{n}", "answer": f"a{n} #### {n}"} for n in range(start, start + count)]


def run(
    data: dict[str, Any], tokenizer: PreTrainedTokenizerFast, kind: str = "conversation", max_length: int = 512, **more: Any
) -> Prepared:
    return prepare(data, tokenizer, kind=kind, max_length=max_length, **more)


def texts(prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(prepared.train[i].ids) for i in range(len(prepared.train))]


def test_question_and_answer_end_to_end(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train, val = write(tmp_path / "t.jsonl", *qa(20)), write(tmp_path / "v.jsonl", *qa(3, 100))
    prepared = run(node(train=train, val=val), chatml)
    assert (len(prepared.train), len(prepared.val or ())) == (20, 3)
    example = prepared.train[7]
    assert chatml.decode(example.ids) == "<|im_start|>user\nq7<|im_end|>\n<|im_start|>assistant\na7 #### 7<|im_end|>"
    assert chatml.decode(example.ids[example.weights > 0]) == "a7 #### 7<|im_end|>"
    assert (example.ids.dtype, example.weights.dtype) == (np.int32, np.float32)
    assert prepared.train.lengths.tolist() == [len(prepared.train[i].ids) for i in range(20)]
    assert prepared.train.targets.tolist() == [prepared.train[i].weights.sum() for i in range(20)]
    check = prepared.val_checkable[1]
    assert (check.answer, check.example_index, len(prepared.val_checkable)) == ("101", 1, 3)
    assert check.prompt_text == "<|im_start|>user\nq101<|im_end|>\n<|im_start|>assistant\n"
    assert check.prompt_ids.dtype == np.int32
    assert chatml.decode(check.prompt_ids) == check.prompt_text
    assert [c.answer for c in prepared.val_checkable[:2]] == ["100", "101"]


def test_sets_pickle_as_their_files(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = run(node(train=write(tmp_path / "t.jsonl", *qa(5))), chatml).train
    copy = pickle.loads(pickle.dumps(train))
    assert copy[3].ids.tolist() == train[3].ids.tolist()
    assert len(pickle.dumps(train)) < 10_000


@pytest.mark.parametrize(("truncation", "expected"), [("right", "a12"), ("auto", "a12"), ("left", "3456789" + "<|im_end|>")])
def test_truncation_of_a_conversation(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast, truncation: str, expected: str):
    train = write(tmp_path / "t.jsonl", {"prompt": "q", "completion": "a123456789"}, {"prompt": "q", "completion": "b"})
    prompt = len("user\nq") + 1 + 1 + 1 + 1 + len("assistant\n")
    size = prompt + 3 if truncation != "left" else 9
    prepared = run(node(train=train, truncation=truncation, val_fraction=0), chatml, max_length=size)
    example = prepared.train[0]
    assert len(example.ids) == size
    assert chatml.decode(example.ids[example.weights > 0]) == expected
    assert prepared.report.sources[0].truncated == (2 if truncation == "left" else 1)


def test_truncation_drop_and_examples_that_keep_no_target(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = write(
        tmp_path / "t.jsonl",
        {"prompt": "q", "completion": "a" * 50},
        {"prompt": "q" * 50, "completion": "b"},
        {"prompt": "q", "completion": "b"},
    )
    kept = run(node(train=train, truncation="drop", val_fraction=0), chatml, max_length=40)
    assert len(kept.train) == 1
    assert dict(kept.report.sources[0].dropped) == {"longer than max_length=40": 2}
    cut = run(node(train=train, truncation="right", val_fraction=0), chatml, max_length=40)
    assert len(cut.train) == 2
    assert dict(cut.report.sources[0].dropped) == {"keeps no trained token after truncation": 1}
    assert cut.report.sources[0].losses[0][0].endswith("t.jsonl:2")
    with pytest.raises(DataError, match=r"nothing is left to train on: of 3 rows 3: keeps no trained token.*truncation=left"):
        run(node(train=train, val_fraction=0), chatml, max_length=5)
    with pytest.raises(ConfigError, match=r"data\.truncation"):
        run(node(train=train, truncation="split"), chatml)


def test_a_rewriting_template_gives_trees(tmp_path: Path, node: Node):
    rows = [{"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]}]
    prepared = run(node(train=write(tmp_path / "t.jsonl", *rows)), byte_level(THINKING))
    example = prepared.train[0]
    assert len(example.segment_lengths) == 3
    assert example.segment_parents.tolist() == [-1, 0, 0]
    assert example.segment_lengths.sum() == len(example.ids) == prepared.train.lengths[0]


BAD = [
    '{"question": "x", "answer": "y"}',
    "{broken",
    '{"question": "x", "answer": ""}',
    '{"question": "x"}',
    '{"question": "x", "answer": "z"}',
]


def test_bad_rows_are_all_named_and_counted(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(BAD))
    with pytest.raises(DataError) as caught:
        run(node(train=str(path)), chatml)
    lines = [str(problem) for problem in caught.value.problems]
    assert [f"{path}:{n}:" in line for n, line in zip((2, 3, 4), lines, strict=False)] == [True] * 3
    assert "data.on_error=skip" in lines[-1]
    path.write_text("\n".join([BAD[0], *["{"] * 100]))
    with pytest.raises(DataError) as caught:
        run(node(train=str(path)), chatml)
    assert len(caught.value.problems) == 21
    assert "100 of 101 rows are bad" in str(caught.value.problems[-1])


def test_a_bad_row_behind_many_dropped_ones_is_named(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    rows = [{"question": "x" * 90, "answer": "a"}] * 1500
    path = write(tmp_path / "t.jsonl", *rows, {"question": "x", "answer": ""})
    with pytest.raises(DataError) as caught:
        run(node(train=path, truncation="drop"), chatml, max_length=64)
    assert str(caught.value.problems[0]).startswith(f"{path}:1501: field 'answer' is empty")
    report = run(
        node(
            train=write(tmp_path / "t.jsonl", *rows, {"question": "x", "answer": ""}, *qa(1)),
            truncation="drop",
            on_error="skip",
            val_fraction=0,
        ),
        chatml,
        max_length=64,
    ).report.sources[0]
    assert (report.bad, len(report.losses), report.losses[0][0]) == (1, 1000, f"{path}:1501")


def test_bad_rows_can_be_skipped_and_are_listed(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(BAD))
    for _ in range(2):  # built, then read from the cache
        report = run(node(train=str(path), on_error="skip", val_fraction=0), chatml).report.sources[0]
        assert (report.rows, report.kept, report.bad) == (5, 2, 3)
        assert [where for where, _ in report.losses] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert report.cached


def test_rows_without_an_assistant_turn_and_text_for_sft(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = write(tmp_path / "t.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    with pytest.raises(DataError, match=r"t\.jsonl:1: has no assistant turn"):
        run(node(train=train), chatml)
    with pytest.raises(DataError, match="method=pretrain"):
        run(node(train=write(tmp_path / "u.jsonl", {"text": "abc"})), chatml)


def test_no_template_is_a_config_error_and_leaves_no_cache(tmp_path: Path, node: Node):
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        run(node(train=write(tmp_path / "t.jsonl", *qa(2))), byte_level(None))
    assert not [p for p in (tmp_path / "cache" / "tokens").iterdir() if p.is_dir()]


def test_unknown_kind_and_limit(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = write(tmp_path / "t.jsonl", *qa(10))
    with pytest.raises(ConfigError, match="kind 'dance'"):
        run(node(train=train), chatml, kind="dance")
    assert get_encoder("text")
    assert len(run(node(train=train, val_fraction=0), chatml, limit=4).train) == 4


# --- text ---


def test_documents_are_framed_split_and_trained_once(tmp_path: Path, node: Node):
    tokenizer = byte_level(None, bos=True)
    path = tmp_path / "t.txt"
    path.write_text("abcdefghij")
    prepared = run(node(train=str(path), val_fraction=0), tokenizer, kind="text", max_length=5)
    pieces = [prepared.train[i].ids.tolist() for i in range(len(prepared.train))]
    assert pieces == [[BOS, *b"abcd"], [*b"defgh"], [*b"hij", EOS]]
    assert prepared.report.sources[0].trained == len("abcdefghij") + 1
    assert all(prepared.train[i].weights.tolist() == [0, *[1] * (len(p) - 1)] for i, p in enumerate(pieces))


@given(st.integers(2, 200), st.integers(2, 50))
def test_chunks_train_every_token_once(count: int, size: int):
    pieces = chunks(np.arange(count), size)
    assert np.concatenate([piece[1:] for piece in pieces]).tolist() == list(range(1, count))
    assert all(2 <= len(piece) <= size for piece in pieces)


def test_bos_and_eos_that_are_there_are_not_doubled(tmp_path: Path, node: Node):
    train = write(tmp_path / "t.jsonl", {"text": "<s>ab</s>"}, {"text": "ab"})
    prepared = run(node(train=train, val_fraction=0), byte_level(None, bos=True), kind="text")
    assert prepared.train[0].ids.tolist() == prepared.train[1].ids.tolist() == [BOS, *b"ab", EOS]


def test_a_text_of_one_token_has_nothing_to_predict(tmp_path: Path, node: Node):
    with pytest.raises(ConfigError, match=r"max_length: of a single token"):
        run(node(train=write(tmp_path / "t.jsonl", {"text": "abcdef"})), byte_level(None), "text", 1)


@pytest.mark.parametrize(("truncation", "pieces"), [("right", [b"abc"]), ("left", [b"ij"]), ("drop", [])])
def test_other_truncations_of_text(tmp_path: Path, node: Node, truncation: str, pieces: list[bytes]):
    train = write(tmp_path / "t.jsonl", {"text": "abcdefghij"}, {"text": "x"})
    prepared = run(node(train=train, truncation=truncation, val_fraction=0), byte_level(None), kind="text", max_length=3)
    expected = [[*piece, EOS] if truncation == "left" else [*piece] for piece in pieces]
    assert [prepared.train[i].ids.tolist() for i in range(len(prepared.train))] == [*expected, [*b"x", EOS]]


def test_a_single_document_validates_on_its_end(tmp_path: Path, node: Node):
    path = tmp_path / "t.txt"
    path.write_text("".join(chr(97 + n % 26) for n in range(1000)))
    prepared = run(node(train=str(path), val_fraction=0.2), byte_level(None), kind="text", max_length=11)
    assert (len(prepared.train), len(prepared.val or ())) == (80, 20)
    assert prepared.train[79].ids[-1] == (prepared.val or {})[0].ids[0]
    assert "the last 20 of 100 pieces of the only document" in prepared.report.notes[0]


def test_conversations_can_be_pretrained_on(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    prepared = run(node(train=write(tmp_path / "t.jsonl", *qa(4)), val_fraction=0), chatml, kind="text")
    assert prepared.train[0].weights.tolist() == [0, *[1] * (len(prepared.train[0].ids) - 1)]


# --- split ---


def test_the_split_is_seeded_disjoint_and_by_row(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = write(tmp_path / "t.jsonl", *qa(40))
    halves = []
    for seed in (0, 0, 1):
        prepared = run(node(train=train, val_fraction=0.25, split_seed=seed), chatml)
        assert prepared.val is not None
        val = {prepared.val.value("origin", i) for i in range(len(prepared.val))}
        assert len(val) == 10
        assert not val & {prepared.train.value("origin", i) for i in range(len(prepared.train))}
        halves.append(val)
    assert halves[0] == halves[1] != halves[2]
    assert run(node(train=train, val_fraction=0), chatml).val is None


def test_a_val_split_that_cannot_be_used_is_said(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    prepared = run(node(train=write(tmp_path / "t.jsonl", *qa(4)), val_split="test"), chatml)
    assert any("data.val_split=test is not used" in note for note in prepared.report.notes)


def test_documents_stay_whole_in_the_split(tmp_path: Path, node: Node):
    train = write(tmp_path / "t.jsonl", *({"text": f"{n}" * 30} for n in range(10)))
    prepared = run(node(train=train, val_fraction=0.3), byte_level(None), kind="text", max_length=7)
    assert prepared.val is not None
    origins = [{s.value("origin", i) for i in range(len(s))} for s in (prepared.train, prepared.val)]
    assert [len(o) for o in origins] == [7, 3]
    assert not origins[0] & origins[1]


# --- cache ---


def folders(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "tokens").iterdir() if p.is_dir())


def test_the_cache_is_hit_and_follows_everything_that_matters(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    train = write(tmp_path / "t.jsonl", *qa(6))
    base = {"train": train, "val_fraction": 0}
    assert not run(node(**base), chatml).report.cache_hit
    again = run(node(**base), chatml)
    assert again.report.cache_hit
    for changed in ({"train_on": "all"}, {"truncation": "left"}, {"system": "s"}, {"template_kwargs": {"a": 1}}, {"on_error": "skip"}):
        assert not run(node(**base, **changed), chatml).report.cache_hit, changed
    assert not run(node(**base), chatml, max_length=400).report.cache_hit
    assert not run(node(**base), chatml, limit=3).report.cache_hit
    assert not run(node(**base), byte_level(CHATML + " ", eos="<|im_end|>")).report.cache_hit
    assert run(node(**base, exhaustion="repeat", workers=2), chatml).report.cache_hit
    write(tmp_path / "t.jsonl", *qa(7))
    changed_rows = run(node(**base), chatml)
    assert not changed_rows.report.cache_hit
    assert changed_rows.report.fingerprint != again.report.fingerprint


def test_a_renamed_file_is_told_by_its_new_name(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    write(old, *qa(2), {"question": "x", "answer": ""})
    write(tmp_path / "b.jsonl", *qa(1, 9))
    for path in (old, new):
        if path == new:
            old.rename(new)
        data = node(train=[str(path), str(tmp_path / "b.jsonl")], on_error="skip", val_fraction=0)
        prepared = pickle.loads(pickle.dumps(run(data, chatml)))
        assert [prepared.train.value("origin", i) for i in range(3)] == [f"{path}:1", f"{path}:2", f"{tmp_path / 'b.jsonl'}:1"]
        assert [where for where, _ in prepared.report.sources[0].losses] == [f"{path}:3"]
        assert (prepared.report.sources[0].origin, prepared.report.cache_hit) == (", ".join(data["train"]), path == new)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty meta", "no meta", "no examples"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast, damage: str):
    data = node(train=write(tmp_path / "t.jsonl", *qa(6)), val_fraction=0)
    before = texts(run(data, chatml), chatml)
    (folder,) = folders(tmp_path)
    arrow, meta = folder / "examples.arrow", folder / "meta.json"
    content = bytearray(arrow.read_bytes())
    if damage == "cut":
        arrow.write_bytes(content[:-100])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        arrow.write_bytes(content)
    elif damage == "empty meta":
        meta.write_text("")
    else:
        (meta if damage == "no meta" else arrow).unlink()
    prepared = run(data, chatml)
    assert not prepared.report.cache_hit
    assert texts(prepared, chatml) == before
    assert run(data, chatml).report.cache_hit


def test_what_a_killed_build_left_is_removed(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    data = node(train=write(tmp_path / "t.jsonl", *qa(6)), val_fraction=0)
    run(data, chatml)
    (folder,) = folders(tmp_path)
    folder.rename(folder.with_name(f".{folder.name}.12345"))
    assert not run(data, chatml).report.cache_hit
    assert folders(tmp_path) == [folder]


BUILDER = """
    import json, sys
    sys.path.insert(0, {here!r})
    from data_helpers import CHATML, byte_level
    from posttrain.data import prepare as module
    built = []
    whole = module._Job._build
    module._Job._build = lambda *args: built.append(1) or whole(*args)
    print("ready", flush=True)
    sys.stdin.readline()
    prepared = module.prepare(json.loads({data!r}), byte_level(CHATML), kind="conversation", max_length=512)
    print(len(built), len(prepared.train), prepared.train[5].ids.tolist())
"""


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path, node: Node):
    data = node(train=write(tmp_path / "t.jsonl", *qa(3000)), val_fraction=0)
    code = textwrap.dedent(BUILDER.format(here=str(Path(__file__).parent), data=json.dumps(data)))
    both = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    out = [process.communicate(timeout=120)[0].split(" ", 1) for process in both]
    assert sorted(built for built, _ in out) == ["0", "1"]
    assert out[0][1] == out[1][1]


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    (tmp_path / "file").write_text("")
    data = node(train=write(tmp_path / "t.jsonl", *qa(2))) | {"cache_dir": str(tmp_path / "file")}
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        run(data, chatml)


@pytest.mark.slow
def test_several_processes_give_what_one_gives(
    tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenise, "PARALLEL_AFTER", 512)
    path = tmp_path / "t.jsonl"
    rows = [json.dumps(row) for row in qa(1500)]
    for place in (10, 800, 1499):
        rows[place] = "{"
    path.write_text("\n".join(rows))
    results = []
    for workers in (1, 2):
        data = node(train=str(path), on_error="skip", val_fraction=0, workers=workers) | {"cache_dir": str(tmp_path / f"cache{workers}")}
        prepared = run(data, chatml)
        results.append((texts(prepared, chatml), prepared.report.sources[0].losses))
    assert results[0] == results[1]
    assert [where.rsplit(":", 1)[1] for where, _ in results[1][1]] == ["11", "801", "1500"]
    with pytest.raises(DataError) as caught:
        run(node(train=str(path), workers=2), chatml)
    assert len(caught.value.problems) == 3
    assert not multiprocessing.active_children()


# --- mixtures and showing ---


def test_mixtures_state_how_an_epoch_uses_them(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    sources = [
        {"path": write(tmp_path / "a.jsonl", *qa(100)), "weight": 3, "name": "a"},
        {"path": write(tmp_path / "b.jsonl", *({"instruction": "x", "output": f"{n}"} for n in range(100))), "weight": 1},
    ]
    prepared = run(node(sources=sources, val_fraction=0.1), chatml)
    assert prepared.train.sizes == [90, 90]
    assert prepared.train.source_weights.tolist() == [0.75, 0.25]
    assert prepared.train.exhaustion == "stop"
    assert "a: an epoch sees 90 of its 90 examples (75.0%)" in prepared.report.notes
    assert [source.format for source in prepared.report.sources] == ["question_answer", "alpaca"]
    repeated = run(node(sources=sources, val_fraction=0.1, exhaustion="repeat"), chatml)
    assert "a: an epoch sees its 90 examples and 180 repetitions (75.0%)" in repeated.report.notes
    assert repeated.report.cache_hit


def test_missing_files_of_all_sources_are_named_at_once(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    sources = [{"path": str(tmp_path / "x.jsonl")}, {"path": str(tmp_path / "y.jsonl")}]
    with pytest.raises(DataError) as caught:
        run(node(sources=sources), chatml)
    assert len(caught.value.problems) == 2


def test_show_prints_tokens_losses_and_lengths(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*map(json.dumps, qa(9)), "{"]))
    prepared = run(node(train=str(path), on_error="skip"), chatml)
    console = Console(record=True, width=140, force_terminal=True, color_system="truecolor", file=io.StringIO())
    show(prepared, chatml, examples=2, console=console)
    styled = console.export_text(styles=True, clear=False)
    plain = console.export_text()
    quoted = Console(record=True, width=140, color_system=None, file=io.StringIO())
    show(prepared, chatml, examples=1, console=quoted)
    assert re.search(r"assistant *│?\n│ «a\d #### \d<\|im_end\|>»", quoted.export_text())
    assert re.search(r"\x1b\[30;42ma\d #### \d<\|im_end\|>\x1b\[0m", styled)
    for words in (
        "question_answer",
        "t.jsonl:10: broken JSON",
        "1 rows lost: bad rows",
        "answer: ",
        "tokens an example",
        "validation set: 1 of 9 rows",
    ):
        assert words in plain, words


@given(st.lists(st.integers(1, 10_000), min_size=1))
def test_every_length_is_in_the_histogram(lengths: list[int]):
    counts, edges = histogram(np.array(lengths))
    assert counts.sum() == len(lengths)
    assert len(counts) <= 12
    assert edges[-1] > max(lengths)


def test_stretches_join_tokens_of_equal_weight():
    pieces = stretches(np.arange(5), np.array([0, 0, 1, 1, 0.5]))
    assert [(ids.tolist(), weight) for ids, weight in pieces] == [([0, 1], 0.0), ([2, 3], 1.0), ([4], 0.5)]


@pytest.mark.parametrize(
    ("file", "kind", "least"),
    [
        ("gsm8k_test.jsonl", "conversation", 1250),
        ("mts_dialog_val.csv", "conversation", 90),
        ("humaneval.jsonl.gz", "conversation", 155),
        ("tinyshakespeare.txt", "text", 500),
    ],
)
def test_real_files_become_examples(node: Node, chatml: PreTrainedTokenizerFast, file: str, kind: str, least: int):
    prepared = run(node(train=real(file)), chatml, kind=kind, max_length=2048)
    assert len(prepared.train) >= least
    assert prepared.val is not None
    example = prepared.train[int(np.argmin(prepared.train.lengths))]
    assert 0 < np.count_nonzero(example.weights) < len(example.ids) <= 2048
    assert kind == "text" or example.ids[-1] == END


def test_one_sequence_is_the_tree_of_one_sequence():
    ids, weights = np.arange(5), np.array([1.0, 0, 1, 0.5, 0])
    ours, theirs = vars(example_of([(ids, weights)])), vars(tree_of([(ids, weights)]))
    assert ours.pop("reference") is theirs.pop("reference") is None
    assert ours.pop("columns") == theirs.pop("columns") == {}
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_array_equal(one, other)  # NaN equals NaN
        assert one.dtype == other.dtype


def test_tokenizing_does_not_load_torch(tmp_path: Path, node: Node):
    data = node(train=write(tmp_path / "t.jsonl", *qa(5)))
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from data_helpers import CHATML, byte_level
        from posttrain.data.prepare import prepare
        prepare({data!r}, byte_level(CHATML), kind="conversation", max_length=99)
        print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


PEAK = """
    import json, sys, threading, time
    sys.path.insert(0, {here!r})
    from data_helpers import byte_level
    from posttrain.data.prepare import prepare

    def anonymous():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

    def watch():
        while True:
            peaks.append(anonymous())
            time.sleep(0.05)

    peaks = []
    threading.Thread(target=watch, daemon=True).start()
    prepare(json.loads({data!r}), byte_level(None), kind="text", max_length=512)
    print(max(peaks) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, node: Node):
    peaks = []
    for count in (25_000, 90_000):  # the first fills what the allocator and the tokenizer keep
        data = node(train=write(tmp_path / "t.jsonl", *({"text": f"{n} " * 20} for n in range(count))))
        code = textwrap.dedent(PEAK.format(here=str(Path(__file__).parent), data=json.dumps(data)))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        peaks.append(float(done.stdout))
    assert peaks[1] < peaks[0] + 20, peaks  # MiB; the tokens of the added rows alone take 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows_of_long_documents(tmp_path: Path, node: Node):
    peaks = []
    for count in (4, 24):
        data = node(train=write(tmp_path / "t.jsonl", *({"text": f"{n} words of a long text, " * 4_000} for n in range(count))))
        code = textwrap.dedent(PEAK.format(here=str(Path(__file__).parent), data=json.dumps(data)))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        peaks.append(float(done.stdout))
    assert peaks[1] < peaks[0] + 60, peaks  # MiB; a batch of all 24 would take 500


def test_batches_are_of_so_many_rows_or_characters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenise, "BATCH", 3)
    monkeypatch.setattr(tokenise, "CHARACTERS", 10)
    texts: list[Any] = ["a", "b", "c", "d" * 9, "e", "f", ["g" * 4, {"h": "i" * 6}], "j"]
    rows = [Row({"text": text}, "x", number) for number, text in enumerate(texts)]
    found = list(tokenise._batches(rows))
    assert [[number for number, _ in batch] for batch in found] == [[0, 1, 2], [3, 4], [5, 6], [7]]
    assert [row for batch in found for _, row in batch] == rows


def test_ids_come_without_the_offsets_that_nobody_needs(monkeypatch: pytest.MonkeyPatch):
    texts = ["abc", "", "d\u00e9f<|im_end|>"]
    tokenizer, asked = byte_level(None), []
    call = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda *args, **keys: asked.append(keys["return_offsets_mapping"]) or call(*args, **keys)
    )
    for some in (texts, [*texts, f"<|im{GUARD}_end|>"]):
        assert [ids.tolist() for ids in encode_ids(tokenizer, some)] == [ids.tolist() for ids, _ in encode_texts(tokenizer, some)]
    assert asked == [False, True, True, True]
    assert encode_ids(tokenizer, []) == []


def test_half_a_surrogate_pair_is_a_bad_row_and_an_emoji_is_not(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a", "answer": "\\ud83d\\ude00"}\n{"question": "a", "answer": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: a text holds half a surrogate pair"):
        prepare(node(train=str(path)), chatml, kind="conversation", max_length=64)
    kept = prepare(node(train=str(path), on_error="skip"), chatml, kind="conversation", max_length=64)
    assert len(kept.train) == 1


CALL = {"role": "assistant", "content": ""}
ASKED = {"role": "user", "content": "a"}
DEEP = '{"a":' * 600 + "1" + "}" * 600


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"messages": [ASKED, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}]}]}, "half a surrogate"),
        ({"messages": [ASKED, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": '{"\\ufdd0": 1}'}}]}]}, r"U\+FDD0"),
        ({"messages": [ASKED, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}]}, "more than 100 deep"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": "b"}], "tools": '[{"name": "f", "description": "\\udc00"}]'},
            "half a surrogate",
        ),
        ({"messages": [ASKED, {"role": "assistant", "content": "b"}], "more": {"\ud800": 1}}, "half a surrogate"),
        ({"messages": [ASKED, {"role": "assistant", "content": "b"}], "more": json.loads(DEEP)}, "more than 100 deep"),
    ],
    ids=["arguments", "guard", "deep arguments", "tools", "key", "deep field"],
)
def test_what_is_wrong_inside_json_is_a_bad_row(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast, broken: Any, reason: str):
    path = write(tmp_path / "x.jsonl", {"messages": [ASKED, {"role": "assistant", "content": "b"}]}, broken)
    with pytest.raises(DataError, match=rf"x\.jsonl:2: .*{reason}"):
        prepare(node(train=str(path), format="messages"), chatml, kind="conversation", max_length=4096)
    kept = prepare(node(train=str(path), format="messages", on_error="skip"), chatml, kind="conversation", max_length=4096)
    assert len(kept.train) == 1


def test_a_template_that_is_no_jinja_is_one_config_error_and_not_one_a_row(tmp_path: Path, node: Node):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' * 3)
    with pytest.raises(ConfigError, match=r"model\.chat_template: line 1 is no Jinja") as caught:
        prepare(node(train=str(path)), byte_level("{% for m in messages %}{{ m.content"), kind="conversation", max_length=64)
    assert len(caught.value.problems) == 1


def test_a_file_without_a_readable_row_says_what_to_do(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xe4\n" * 100)
    with pytest.raises(DataError) as caught:
        prepare(node(train=str(path)), chatml, kind="conversation", max_length=64)
    assert len(caught.value.problems) <= 20
    assert "none of the first 64 rows can be read" in str(caught.value.problems[-1])
    assert "UTF-8" in caught.value.problems[-1].hint


def test_dropping_every_example_says_how_to_keep_them(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=r"raise max_length, or set data\.truncation=right"):
        prepare(node(train=str(path), truncation="drop"), chatml, kind="conversation", max_length=2)


def test_prompts_that_are_all_too_long_may_lose_their_beginning(tmp_path: Path, node: Node, chatml: PreTrainedTokenizerFast):
    path = write(tmp_path / "x.jsonl", {"prompt": "x" * 99})
    with pytest.raises(DataError, match=r"raise max_length, or set data\.truncation=left"):
        run(node(train=path), chatml, "prompt", 32)
    assert len(run(node(train=path, truncation="left", val_fraction=0), chatml, "prompt", 32).train) == 1


def test_what_a_tokenizers_file_says_of_truncation_is_no_other_tokenizer(chatml: PreTrainedTokenizerFast):
    before = tokenizer_digest(chatml)
    chatml.backend_tokenizer.enable_truncation(max_length=512)
    assert tokenizer_digest(chatml) == before  # its first call resets it
