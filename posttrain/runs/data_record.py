"""The contents of what a run trains on and from, kept in its folder: data, tokenizer, weights. A run goes on with the same ones only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.data.readers import is_hub_id
from posttrain.data.settings import SourceSpec, read_settings
from posttrain.data.sources import content_digest, find_files, origin_of
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.runs.files import write_atomic
from posttrain.runs.resume import ELSEWHERE, has_begun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.prepare import Prepared

FILE = "data.json"
TOKENIZER, MODEL = "tokenizer", "model"
# The key to look at, what is wrong, and what to do.
KEYS = {
    "train": ("data.train", "{} has other contents", "put them back"),
    "val": ("data.val", "{} has other contents", "put them back"),
    TOKENIZER: ("model.tokenizer", "the tokenizer or its chat template ({}) makes other tokens", "put the earlier one back"),
    MODEL: ("model.path", "{} holds other weights", "put them back"),
}


class Contents(NamedTuple):
    """Of one source. part: train, val, tokenizer or model. origin: where it was read from. digest: of its contents."""

    part: str
    origin: str
    digest: str


def keep_data(
    folder: Path, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any], *, leads: bool = True
) -> None:
    """Write down what a run trains on, if it leads, or compare with what was written when it began.

    model: the configuration's. A run that began before this was written down goes on. Raises ConfigError where the contents are others.
    """
    now = [Contents(source.part, source.origin, source.digest) for source in prepared.report.sources]
    now += _of_model(tokenizer, model)
    before = _read(folder) if has_begun(folder) else None
    if before is not None and (problems := list(_changed(before, now))):
        raise ConfigError(problems)
    if leads and before is None:
        write_atomic(folder / FILE, json.dumps([item._asdict() for item in now], indent=1) + "\n")


def _of_model(tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any]) -> Iterator[Contents]:
    """The tokenizer with its chat template, and weights that lie in a folder: adapters and references are nothing without theirs."""
    from posttrain.data.prepare import tokenizer_digest
    from posttrain.models.hub import is_local, local_or_id
    from posttrain.models.integrity import weights_digest

    path = model.get("path")
    yield Contents(TOKENIZER, str(model.get("tokenizer") or path or model["name"]), tokenizer_digest(tokenizer))
    if model["weights"] == "pretrained" and is_local(path):
        yield Contents(MODEL, str(path), weights_digest(Path(local_or_id(str(path)))))


def check_held_out(folder: Path, prepared: Prepared) -> None:
    """Raises ConfigError where what a run held out comes from data that are others by now: it may have trained on some of them."""
    before = _read(folder) if has_begun(folder) else None
    if before is None:
        return
    pairs = list(zip(before, prepared.report.sources, strict=False))  # the same sources, since the configuration is the same
    apart = [pair for pair in pairs if pair[0].part == "val"]
    for old, new in apart or pairs:
        if old.digest != new.digest:
            message = f"{old.origin} has other contents than when the run trained, so what it held out is not known"
            raise ConfigError(Problem("data", message, "put them back, or name examples that it was not trained on: data=FILE"))


def data_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Sources of a run whose contents are others by now than when it began. Of local files only, which are quickly compared."""
    before = _read(Path(config["output_dir"]))
    if before is None:
        return []
    settings = read_settings(config["data"])
    now = [_of_files(part, spec) for part in ("train", "val") for spec in getattr(settings, part)]
    return [problem for old, new in zip(before, now, strict=False) if new is not None for problem in _changed([old], [new])]


def _of_files(part: str, spec: SourceSpec) -> Contents | None:
    """A source as it is now; None where it is not of local files, or they are gone: the run has finished without them."""
    if not spec.path or any(map(is_hub_id, spec.path)):
        return None
    try:
        files = [file for place in spec.path for file in find_files(place)]
    except DataError:
        return None
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return Contents(part, origin_of(spec), _digest(json.dumps(asdict(spec)), stamps))


@lru_cache(maxsize=64)
def _digest(spec: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Of a source as JSON; read once for the runs of a sweep. stamps: path, size and time of change of each file."""
    return content_digest(SourceSpec(**json.loads(spec)))


def _read(folder: Path) -> list[Contents] | None:
    try:
        return [Contents(**item) for item in json.loads((folder / FILE).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return None


def _changed(before: Sequence[Contents], now: Sequence[Contents]) -> Iterator[Problem]:
    """before, now: the same sources, since the configurations are the same."""
    for old, new in zip(before, now, strict=False):
        if (old.part, old.digest) != (new.part, new.digest):
            key, message, hint = KEYS[new.part]
            yield Problem(key, f"{message.format(new.origin)} than when the run in output_dir began", f"{hint} to continue it, {ELSEWHERE}")
