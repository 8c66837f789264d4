"""`posttrain export run=DIR to=DIR [merge=true]`: an artifact as a plain Hugging Face folder, proven to load without this package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem
from posttrain.models.integrity import REWARD_FILE, has_record, read_record, verify
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.files import prepare_folder, writing
from posttrain.runs.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
RECORD_FILE = "artifact.json"
PROBE_TOKENS = 24
MERGED_TOLERANCE = 1e-3  # relative: an adapter beside its base adds up in another order than one inside its weights
ROUNDED_TOLERANCE = 5e-2  # the same in 16 bits, where what is added to a weight is rounded to it


@dataclass(frozen=True)
class Expected:
    """What an export is held to: the logits that the artifact computes, the relative difference that is allowed, and how the base of an
    adapter was rounded in training (None: not at all)."""

    logits: torch.Tensor
    tolerance: float
    quantised: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Rounded:
    """The base that an exported adapter was trained on. off: relative difference of logits on the unrounded base, which others load."""

    kind: str
    off: float


class ExportError(RuntimeError):
    """What was written does not load as plain transformers, or computes something else."""


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises ConfigError for wrong arguments, before the model is loaded."""
    options = bind(args, parameters_of("posttrain.runs.export.export"), command="export")
    target, rounded = _export(**options)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if (target / REWARD_FILE).is_file():
        print(f"{target}: {size / 1e6:,.1f} MB, a copy with the same checksums. It scores answers:")
        print(f"  posttrain.evaluation.reward.load_reward_model({str(target)!r}), or plain transformers where its head is one linear map")
        return 0
    if rounded is not None:
        print(
            f"{target}: {size / 1e6:,.1f} MB. An adapter, trained on a base rounded to {rounded.kind}: there it computes the same logits."
        )
        print(f"  Plain transformers adds it to the unrounded base, where logits are off by up to {rounded.off:.1%} of the largest one.")
        print("  merge=true exports the rounded base with the adapter in its weights, which computes what was trained.")
    else:
        print(f"{target}: {size / 1e6:,.1f} MB. Plain transformers loads it and computes the same logits.")
    print(f"  AutoModelForCausalLM.from_pretrained({str(target)!r})")
    return 0


def export(*, run: str, to: str, merge: bool = False) -> Path:
    """Write the artifact of `run` to the new folder `to`; returns that folder.

    merge: put an adapter into its base's weights. Without it an adapter stays an adapter, which names its base; an artifact that is no
    adapter is complete either way. An adapter whose base was rounded in training is compared on the base so rounded.

    Raises:
        ConfigError: there is no artifact, or `to` is not a new or empty folder.
        ExportError: the folder would not have computed what the artifact does; nothing is left at `to`.
    """
    return _export(run=run, to=to, merge=merge)[0]


def _export(*, run: str, to: str, merge: bool = False) -> tuple[Path, Rounded | None]:
    target = Path(os.path.expanduser(to)).absolute()
    _check_target(target, to)
    folder = find_artifact(run)
    quiet_libraries()
    draft = target.with_name(f".{target.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    prepare_folder(draft, key="to", need_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    try:
        with writing(target):
            if (folder / REWARD_FILE).is_file():
                shutil.copytree(folder, draft, dirs_exist_ok=True)  # its head and its record are what makes it judge
                verify(draft)
                expected = None
            else:
                expected = _write(folder, draft, merge=merge)
        rounded = None if expected is None else _verify(draft, expected)
        if target.exists():
            target.rmdir()
        os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target, rounded


def _check_target(target: Path, to: str) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(Problem(f"to={to}", "is a file, expected a new folder"))
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(
            Problem(f"to={to}", "the folder is not empty, and nothing in it is overwritten", "give a new folder, or empty it")
        )


def _write(folder: Path, draft: Path, *, merge: bool) -> Expected:
    """Fill `draft`."""
    import torch

    from posttrain.runs.loaded import load, load_beside

    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    model, tokenizer = load(folder, device="cpu", dtype=torch.float32 if is_adapter and not merge else None)
    if is_adapter and merge:
        tolerance = MERGED_TOLERANCE if model.dtype == torch.float32 else ROUNDED_TOLERANCE
        _compare(probe_logits(model), probe_logits(load_beside(folder)), tolerance)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    else:
        _copy(folder, draft)
    if not is_adapter or merge:
        return Expected(probe_logits(model), 0.0)
    _name_base_absolutely(draft / ADAPTER_CONFIG)
    quantised = read_record(folder).get("quantised") if has_record(folder) else None
    return Expected(probe_logits(model), MERGED_TOLERANCE, quantised)


def _copy(folder: Path, draft: Path) -> None:
    """The files that transformers reads: all but this package's own record and the subfolders."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != RECORD_FILE:
            shutil.copyfile(file, draft / file.name)


def _name_base_absolutely(adapter_config: Path) -> None:
    """An exported adapter must find a local base from any working directory."""
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    base = Path(os.path.expanduser(config["base_model_name_or_path"]))
    if base.is_dir():
        config["base_model_name_or_path"] = str(base.absolute())
        adapter_config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def probe_logits(model: Any) -> torch.Tensor:
    """Logits [1, L, V] of a causal LM for a fixed sequence of token ids."""
    import torch

    size = model.config.get_text_config().vocab_size
    ids = torch.arange(1, PROBE_TOKENS + 1).mul(7919).remainder(size)[None]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def _verify(folder: Path, expected: Expected) -> Rounded | None:
    """Load the folder as anybody would, without this package's loading code, and compare logits; those of an adapter whose base was
    rounded on the base so rounded, which transformers cannot do."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    exact = expected.tolerance == 0.0
    plain = probe_logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if exact else torch.float32).eval())
    if expected.quantised is None:
        _compare(plain, expected.logits, expected.tolerance)
        return None
    from posttrain.models.loading import adapted_model
    from posttrain.runs.loaded import model_keys

    on_rounded = adapted_model(model_keys(folder), dtype=torch.float32, quantised=expected.quantised)
    _compare(probe_logits(on_rounded), expected.logits, expected.tolerance)
    return Rounded(expected.quantised["kind"], _difference(plain, expected.logits))


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest one, relative to the largest expected logit."""
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _compare(logits: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = _difference(logits, expected)
    if not error <= tolerance:
        raise ExportError(f"the exported folder computes other logits than the artifact: relative difference {error:.2e}")
