"""Every kind of file, compressed or not; folders, globs, hub ids; and what is said about those that are broken or missing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.readers import read_json, read_table
from posttrain.data.rows import BadRow, Row
from posttrain.data.settings import SourceSpec, read_settings
from posttrain.data.sources import check_sources, content_digest, find_files, is_hub_id, read_file, read_rows
from posttrain.errors import ConfigError, DataError

ROWS = [{"question": "a\nb", "answer": '\u00e9 "x"'}, {"question": "c", "answer": "d"}]


def as_table(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


FILES = {
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "b.ndjson": "\n\n".join(map(json.dumps, ROWS)).encode() + b"\n",
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "a.csv": as_table(","),
    "bom.csv": b"\xef\xbb\xbf" + as_table(","),
    "bom.jsonl": b"\xef\xbb\xbf" + "\n".join(map(json.dumps, ROWS)).encode(),
    "a.tsv": as_table("\t"),
    "a.parquet": as_parquet(),
}


def values(path: Path, **keys: str) -> list[dict[str, object]]:
    rows = list(read_file(path, **keys))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.value for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, ending: str):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / (name + ending)
    path.write_bytes(pack(FILES[name]))
    assert values(path) == ROWS


def test_a_text_file_is_a_document_or_lines_or_paragraphs(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    assert [row["text"] for row in values(path)] == ["one\ntwo\n\n\nthree\n"]
    assert [(row.value["text"], row.line) for row in read_file(path, documents="line")] == [("one", 1), ("two", 2), ("three", 5)]
    assert [(row.value["text"], row.line) for row in read_file(path, documents="paragraph")] == [("one\ntwo", 1), ("three", 5)]


def test_zstd_frames_one_after_the_other_are_all_read(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(json.dumps(row).encode() + b"\n") for row in ROWS))
    assert values(path) == ROWS


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_cut_short_is_an_error_and_not_a_shorter_file(tmp_path: Path, ending: str):
    data = "\n".join(json.dumps({"n": n}) for n in range(5000)).encode()
    packed = gzip.compress(data) if ending == ".gz" else zstandard.compress(data)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match="broken"):
        list(read_file(path))
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match="broken"):
        list(read_file(path))


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\n[1]\n{"a": "\xff"}\n{"a": 2}\n')
    rows = list(read_file(path))
    assert [row.value for row in rows if isinstance(row, Row)] == [{"a": 1}, {"a": 2}]
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert [row.line for row in bad] == [2, 4, 5]
    assert "broken JSON" in bad[0].reason
    assert "list" in bad[1].reason
    assert "UTF-8" in bad[2].reason


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[{"a": 1},\n{"a": ]', "a.json:2: broken JSON"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv:2: broken table"),
        ("a.csv", b"a,a\n1,2\n", "more than once"),
        ("a.csv", b"a,b\n1,2\n3,\xff\n", "a.csv:3: not UTF-8"),
        ("a.txt", b"fine\n\xff\n", "a.txt:2: not UTF-8"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.parquet", b"PAR1 but not really", "broken parquet"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_file(path))


def test_a_row_with_too_few_fields_is_bad_and_named_by_the_line_it_starts_at(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"1\n1",2\n3\n4,5\n')
    assert [(type(row).__name__, row.line) for row in read_file(path)] == [("Row", 2), ("BadRow", 4), ("Row", 5)]


@given(
    st.lists(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), min_size=1), min_size=2, max_size=20),
    st.integers(0, 3),
)
def test_json_is_read_like_the_standard_library_reads_it(rows: list[dict[str, object]], indent: int):
    text = json.dumps(rows, indent=indent or None, ensure_ascii=False)
    got = [row.value for row in read_json(io.BytesIO(text.encode("utf-8", "surrogatepass")), "x") if isinstance(row, Row)]
    assert got == rows


def test_json_larger_than_the_buffer(tmp_path: Path):
    rows = [{"a": "x" * 50_000, "n": n} for n in range(20)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert values(path) == rows


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.text("ab\"',\n\r")), min_size=1))
def test_tables_survive_quotes_and_newlines(cells: list[tuple[str, str]]):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *cells])
    rows = list(read_table(io.BytesIO(out.getvalue().encode()), "x", delimiter=","))
    assert [(row.value["a"], row.value["b"]) for row in rows if isinstance(row, Row)] == cells


def test_folders_globs_and_lists(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "README.md", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    names = [path.name for path in find_files(str(tmp_path))]
    assert names == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert [path.name for path in find_files(f"{tmp_path}/[ab].jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [path.name for path in find_files(f"{tmp_path}/**/*.jsonl")][-1] == "c.jsonl"
    spec = SourceSpec("s", (str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")))
    assert [row.value["text"] for row in read_rows(spec) if isinstance(row, Row)] == ["b.jsonl", "a.jsonl"]
    assert len(list(read_rows(spec, limit=1))) == 1


def test_missing_and_empty_sources_say_what_is_near(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"did you mean .*train\.jsonl"):
        list(read_rows(SourceSpec("s", (str(tmp_path / "trian.jsonl"),))))
    with pytest.raises(DataError, match="empty"):
        list(read_rows(SourceSpec("s", (str(tmp_path / "train.jsonl"),))))
    with pytest.raises(DataError, match="no data file matches"):
        list(read_rows(SourceSpec("s", (str(tmp_path / "*.csv"),))))
    (tmp_path / "void").mkdir()
    problems = check_sources([SourceSpec("s", (str(tmp_path / "void"),)), SourceSpec("t", (str(tmp_path / "x" / "y.jsonl"),))])
    assert len(problems) == 2
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file"):
        list(read_rows(SourceSpec("s", (str(tmp_path / "a.doc"),))))


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "data").mkdir()
    assert is_hub_id("openai/gsm8k")
    assert is_hub_id("hf://own/data")
    assert not any(map(is_hub_id, ("own/data", "data/train.jsonl", "./a/b", "a/*", "/a/b", "a/b/c", "train.csv")))


CALLS = [
    {"id": None, "calls": [{"name": "a", "arguments": {"city": "Paris"}}], "labels": [True, None]},
    {"id": 1, "calls": [{"name": "b", "arguments": {"x": {"deep": 1}}}, {"name": "c", "arguments": {"x": {}}}], "labels": []},
]


def test_nulls_that_a_table_puts_into_objects_are_dropped_and_those_of_json_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == CALLS
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(CALLS))
    assert [row.value for row in read_rows(SourceSpec("s", ("owner/name",))) if isinstance(row, Row)] == CALLS
    (tmp_path / "a.jsonl").write_text('{"arguments": {"x": null}}')
    assert values(tmp_path / "a.jsonl") == [{"arguments": {"x": None}}]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_ids_go_through_datasets(monkeypatch: pytest.MonkeyPatch, streaming: bool):
    asked = []

    def load(path: str, name: str | None, **keys: object) -> object:
        asked.append((path, name, keys))
        rows = datasets.Dataset.from_list(ROWS)
        return rows.to_iterable_dataset() if keys["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    spec = SourceSpec("s", ("owner/name",), subset="main", split="test", revision="v1", streaming=streaming)
    rows = list(read_rows(spec))
    assert [row.value for row in rows if isinstance(row, Row)] == ROWS
    assert [row.line for row in rows] == [1, 2]
    assert asked == [("owner/name", "main", {"split": "test", "revision": "v1", "streaming": streaming})]


def test_a_hub_that_cannot_be_reached_is_a_data_error(monkeypatch: pytest.MonkeyPatch):
    def load(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="owner/name: cannot be loaded from the hub: Couldn't reach"):
        list(read_rows(SourceSpec("s", ("owner/name",))))


def test_the_digest_follows_the_contents_and_not_the_name(tmp_path: Path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"a": 1}\n')
    two.write_text('{"a": 1}\n')
    digests = [content_digest(SourceSpec("s", (str(path),))) for path in (one, two)]
    assert digests[0] == digests[1]
    two.write_text('{"a": 2}\n')
    assert content_digest(SourceSpec("s", (str(two),))) != digests[0]
    assert content_digest(SourceSpec("s", (str(one),), documents="line")) != digests[0]


def test_columns_are_renamed(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "question": "old"}\n{"z": 1}\n')
    good, bad = read_rows(SourceSpec("s", (str(path),), columns={"question": "q"}))
    assert isinstance(good, Row)
    assert good.value == {"question": "x"}
    assert isinstance(bad, BadRow)


def test_generators_live_in_this_package_only():
    rows = list(read_rows(SourceSpec("s", generator={"_target_": "posttrain.data.arithmetic.problems", "held_out": 5}, split="val")))
    assert len(rows) == 5
    with pytest.raises(DataError, match="may only name a function of posttrain"):
        list(read_rows(SourceSpec("s", generator={"_target_": "os.system"})))
    assert check_sources([SourceSpec("s", generator={"_target_": "posttrain.data.arithmetic.nothing"})])


def test_settings_name_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        read_settings(
            {"name": "x", "trian": "a", "on_error": "rise", "val_fraction": 2, "workers": 0, "sources": [{"pth": "a", "weight": -1}]}
        )
    text = str(caught.value)
    for words in (
        "data.trian",
        "did you mean train",
        "data.on_error",
        "did you mean raise",
        "val_fraction",
        "workers",
        "sources[0].pth",
        "weight",
    ):
        assert words in text
    with pytest.raises(ConfigError, match=r"one of data\.train, data\.sources, data\.generator"):
        read_settings({"name": "x"})
    with pytest.raises(ConfigError, match=r"got train and generator.*data=files"):
        read_settings({"name": "x", "train": "a", "generator": {"_target_": "posttrain.data.arithmetic.problems"}})


def test_a_hub_split_validates_a_hub_data_set_and_not_a_file(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}")
    (val,) = read_settings({"name": "x", "train": "owner/name", "val_split": "test"}).val
    assert (val.path, val.split) == (("owner/name",), "test")
    assert read_settings({"name": "x", "train": str(path), "val_split": "test"}).val == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1}, {"a": 2}', "x.json:1: broken JSON: the file ends inside its array (fetch or write it again)"),
        ('[{"a": 1}]\n[{"a": 2}]', "x.json:1: broken JSON: more text after the end of the array"),
        ('[{"a": ' * 50_000, "x.json:1: broken JSON: nested too deeply"),
        ('[\n{"a": ' + "9" * 5000 + "}]", "x.json:2: broken JSON: a number has too many digits"),
    ],
)
def test_json_that_is_cut_doubled_or_too_much_is_an_error_and_not_fewer_rows(tmp_path: Path, content: str, words: str):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError) as caught:
        list(read_file(tmp_path / "x.json"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"a": 1}, null, {"a": 2}]', [{"a": 1}, None, {"a": 2}]),
        ('[null, {"a": 1}]', [None, {"a": 1}]),
        ("[null]", [None]),
        ('{"a": 1} null', [{"a": 1}, None]),
        ('{"data": [{"a": 1}, null, {"a": 2}]}', [{"a": 1}, None, {"a": 2}]),
        ('[{"prompt": "x", "tools": [{"name": "f"}]}]', [{"prompt": "x", "tools": [{"name": "f"}]}]),
        ('{"version": 1, "data": [{"a": 1}]}', [{"a": 1}]),
        ("[]", []),
    ],
)
def test_json_rows_are_neither_lost_nor_taken_apart(tmp_path: Path, content: str, rows: list[dict[str, object] | None]):
    (tmp_path / "x.json").write_text(content)
    found = list(read_file(tmp_path / "x.json"))
    assert [row.value if isinstance(row, Row) else None for row in found] == rows
    assert [row.line for row in found] == list(range(1, len(rows) + 1))
    assert all("NoneType" in row.reason for row in found if isinstance(row, BadRow))


def test_blanks_after_the_array_are_no_text(tmp_path: Path):
    (tmp_path / "x.json").write_text('[{"a": 1}] \n' + " " * 200_000)
    assert values(tmp_path / "x.json") == [{"a": 1}]


def test_a_line_too_much_for_the_parser_is_a_bad_row_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": ' + "9" * 5000 + '}\n{"a": 1}\n' + '{"a": ' * 100_000 + "\n")
    digits, row, deep = read_file(path)
    assert isinstance(digits, BadRow)
    assert digits.reason == "broken JSON: a number has too many digits"
    assert isinstance(row, Row)
    assert row.value == {"a": 1}
    assert isinstance(deep, BadRow)
    assert deep.reason == "broken JSON: nested too deeply"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("a**b.jsonl", "is no pattern"),
        ("~nobody_of_that_name/a.jsonl", "no such file or folder"),
        ("a" * 400 + ".jsonl", "no such file or folder"),
        ("a" * 400 + "/a.jsonl", "no such file or folder"),
        ("/dev/null", "is neither a file nor a folder"),
    ],
)
def test_paths_that_cannot_be_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        find_files(place)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"columns": 3}, "expected key: value pairs, got 3"),
        ({"format_options": 3}, "expected key: value pairs, got 3"),
        ({"format": 7}, "expected a text, got 7"),
        ({"name": 5}, "expected a text, got 5"),
        ({"revision": 5}, "expected a text, got 5"),
        ({"streaming": "yes"}, "expected true or false, got 'yes'"),
    ],
)
def test_keys_of_a_source_are_of_their_types(wrong: dict[str, object], words: str):
    (key,) = wrong
    for node, where in (({"sources": [{"path": "a.jsonl", **wrong}]}, "data.sources[0]"), ({"train": "a.jsonl", **wrong}, "data")):
        with pytest.raises(ConfigError) as caught:
            read_settings({"name": "x", **node})
        assert f"{where}.{key}: {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"train": "a.jsonl", "split": "test"}, "data.split"),
        ({"train": "a.jsonl", "subset": "main"}, "data.subset"),
        ({"train": ["a.jsonl", "b/"], "revision": "v1"}, "data.revision"),
        ({"train": "a.jsonl", "streaming": True}, "data.streaming"),
        ({"train": "a.jsonl.gz", "documents": "line"}, "data.documents"),
        ({"train": "owner/name", "documents": "line"}, "data.documents"),
        ({"sources": [{"path": "owner/name"}, {"path": "a.jsonl", "split": "test"}]}, "data.sources[1].split"),
        ({"generator": {"_target_": "posttrain.data.arithmetic.problems"}, "subset": "main"}, "data.subset"),
    ],
)
def test_keys_that_no_source_reads_are_problems(node: dict[str, object], key: str):
    with pytest.raises(ConfigError) as caught:
        read_settings({"name": "files", **node})
    (problem,) = caught.value.problems
    assert problem.where == key
    assert "and there is none" in problem.message


@pytest.mark.parametrize(
    "node",
    [
        {"train": "owner/name", "split": "test", "subset": "main", "revision": "v1", "streaming": True},
        {"train": "owner/name", "val": "v.jsonl", "split": "test"},
        {"train": "a.jsonl", "split": "train", "streaming": False, "documents": "file", "subset": None},
        {"train": "texts/", "documents": "line"},
        {"train": "texts/*", "documents": "line"},
        {"train": ["a.jsonl", "b.txt.gz"], "documents": "paragraph"},
        {"sources": [{"path": "owner/name"}, {"path": "a.jsonl"}], "split": "test"},
        {"generator": {"_target_": "posttrain.data.arithmetic.problems"}, "split": "val"},
    ],
)
def test_keys_that_a_source_reads_are_fine(node: dict[str, object]):
    assert read_settings({"name": "files", **node}).train


def test_a_local_copy_may_stand_in_the_place_of_a_data_set_of_the_hub():
    assert read_settings({"name": "gsm8k", "train": "gsm8k.jsonl", "subset": "main", "split": "test"}).train


def test_a_column_is_named_by_a_text():
    with pytest.raises(ConfigError) as caught:
        read_settings({"name": "x", "train": "a.jsonl", "columns": {"prompt": 5}})
    assert "data.columns.prompt: expected the name of a column in the file, got 5" in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.columns\.prompt"):
        read_settings({"name": "x", "sources": [{"path": "a.jsonl", "columns": {"prompt": 5}}]})
