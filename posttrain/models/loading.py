"""Causal language models: pretrained from a folder or the hub, or with random weights from an architecture."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.architectures import model_config
from posttrain.models.hub import commit_of, hub_errors, is_local, local_or_id, source_options
from posttrain.models.integrity import REWARD_FILE, has_record, read_record, verify
from posttrain.models.quantisation import dequantise, quantise

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")  # ends of transformers' class names
DEFAULT_SEED = 0
# what these values of a generation config are where nothing is sampled
GREEDY = {"temperature": (None, 1.0), "top_p": (None, 1.0), "top_k": (None, 0, 50), "min_p": (None,), "typical_p": (None, 1.0)}
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "bf16_true": torch.bfloat16}


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype weights are kept in: `bf16` computes in bfloat16 over float32 weights, `bf16_true` keeps bfloat16 weights."""
    return DTYPES[precision]


def build_model(model: Mapping[str, Any], *, dtype: torch.dtype, seed: int | None = None) -> PreTrainedModel:
    """The causal LM of a model config on the CPU, in evaluation mode, weights in `dtype`.

    Random weights are a function of the architecture and `seed` (None: 0) alone; the global random state stays as it was.
    Pretrained weights come from safetensors, or from a torch file read with ``weights_only=True``. A folder with an adapter is
    loaded as its base with the adapter merged, so that it is a starting point like any other model.
    Raises ConfigError when the source cannot be read, or its weights do not fill the model.
    """
    if model["weights"] == "random":
        return _random_model(model, dtype, DEFAULT_SEED if seed is None else seed)
    path = model.get("path")
    if path is not None and is_local(path) and (Path(os.path.expanduser(path)) / ADAPTER_CONFIG).is_file():
        return _adapter_model(model, dtype)
    return _pretrained_model(model, dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """CPU random numbers from `seed` inside; outside the global state is undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _random_model(model: Mapping[str, Any], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    config = model_config(model)
    # The family's default ids belong to its own tokenizer: as padding_idx one would freeze an unrelated row of the embedding.
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    with seeded(seed):
        built = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=bool(model.get("trust_remote_code")))
    return built.eval()


def _pretrained_model(model: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    path = model.get("path")
    if path is None:
        raise ConfigError(Problem("model.path", "is needed for pretrained weights", "model.path=DIR_OR_HUB_ID, or model.weights=random"))
    _require_language_model(model, path)
    options = source_options(path, model.get("revision"))
    if is_local(path) and has_record(Path(os.path.expanduser(path))):
        verify(Path(os.path.expanduser(path)))
    with hub_errors(path), _weight_errors(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            local_or_id(path),
            dtype=dtype,
            weights_only=True,
            trust_remote_code=bool(model.get("trust_remote_code")),
            output_loading_info=True,
            **options,
        )
    built: PreTrainedModel = loaded[0]
    _require_complete(path, loaded[1])
    _sample_where_asked(built)
    built.config.name_or_path = str(Path(os.path.expanduser(path)).absolute()) if is_local(path) else path
    if not is_local(path):
        built.config._commit_hash = commit_of(path, model.get("revision"))  # what an adapter on it must name; never written
    return built.eval()


def _sample_where_asked(model: PreTrainedModel) -> None:
    """Sampling values without `do_sample` mean sampling; transformers reads such a generation config, but refuses to write it.

    Beside a `do_sample` of false, or a temperature of 0, they have no effect, and are dropped.
    """
    config = model.generation_config
    values = [name for name, plain in GREEDY.items() if getattr(config, name) not in plain]
    if config.do_sample is None and values and config.temperature != 0:
        config.do_sample = True
    elif not config.do_sample:
        for name in values:
            setattr(config, name, None)


def _require_language_model(model: Mapping[str, Any], path: str) -> None:
    """A classifier's body would load, with the embedding as its output head where they are tied, and write nonsense."""
    ours = is_local(path) and (Path(os.path.expanduser(path)) / REWARD_FILE).is_file()
    names = model_config(model).architectures or []
    if ours or any(name.endswith(CLASSIFIERS) for name in names):
        message = f"{path} is a reward model or classifier: it scores answers and writes none"
        raise ConfigError(
            Problem("model.path", message, "posttrain.evaluation.reward.load_reward_model scores with it; to write, name a language model")
        )


def _require_complete(path: str, report: Mapping[str, Any]) -> None:
    """transformers fills absent weights with random numbers and logs it; here that is an error."""
    problems = [Problem("model.path", f"{path} lacks the weight {name}") for name in sorted(report["missing_keys"])]
    problems += [Problem("model.path", f"{path} has another shape for {item[0]}") for item in sorted(report["mismatched_keys"])]
    if problems:
        raise ConfigError(problems[:20])


@contextmanager
def _weight_errors(path: str) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        message = f"the safetensors file in {path} is damaged: {error}"
        raise ConfigError(Problem("model.path", message, "fetch or write it again")) from error
    except pickle.UnpicklingError as error:
        message = f"the torch file in {path} holds more than tensors and was not opened"
        raise ConfigError(Problem("model.path", message, "only safetensors, or torch files that load with weights_only=True")) from error


def _adapter_model(model: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """The base named in the adapter's config, rounded as it was in training, with the adapter merged into its weights, which all train."""
    from posttrain.models.adapters import merge_adapter  # peft takes seconds to import

    merged = merge_adapter(adapted_model(model, dtype=dtype))
    forget_source(merged)
    return merged.requires_grad_(True).eval()  # peft froze what it adapts


def adapted_model(model: Mapping[str, Any], *, dtype: torch.dtype, quantised: Mapping[str, Any] | None = None) -> PeftModel:
    """The same with the adapter beside the weights, not merged, in evaluation mode; `path` is a folder with an adapter.

    quantised: how the base is rounded where the folder has no record that says so.
    """
    from posttrain.models.adapters import load_adapter  # peft takes seconds to import

    folder = Path(os.path.expanduser(model["path"]))
    record = verify(folder) if has_record(folder) else {}
    source = base_of_adapter(model, folder)
    _require_same_base(folder, record, Path(os.path.expanduser(source["path"])))
    base = _pretrained_model(source, dtype)
    if rounding := record.get("quantised") or quantised:
        dequantise(quantise(base, **rounding), dtype=dtype)
    with hub_errors(str(folder)), _weight_errors(str(folder)):
        return load_adapter(base, folder).eval()


def _require_same_base(folder: Path, record: Mapping[str, Any], base: Path) -> None:
    """Raises ConfigError where the artifact that an adapter was trained on has been replaced by another one since."""
    parent = record.get("parents", {}).get("policy", {})
    if "files" not in parent or not has_record(base) or Path(parent["folder"]).resolve() != base.resolve():
        return
    if read_record(base)["files"] != parent["files"]:
        message = f"the adapter in {folder} was trained on other weights than those that lie in {base} now"
        raise ConfigError(Problem("model.path", message, "put the base back that it was trained on, or train the adapter again"))


def forget_source(model: PreTrainedModel) -> None:
    """Note in the config that these weights lie in no folder or repository, so that an adapter on them is not saved without them."""
    model.config.name_or_path = ""


def base_of_adapter(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The model config of the base an adapter folder was trained on."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise ConfigError(Problem("model.path", f"{folder / ADAPTER_CONFIG} does not name its base model"))
    return {**model, "path": base, "revision": config.get("revision"), "tokenizer": None}


def base_where_adapted(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model config of the base where `path` is a folder with an adapter, which is merged into it; else the config itself."""
    path = model.get("path")
    if model["weights"] == "random" or path is None or not is_local(path):
        return model
    folder = Path(os.path.expanduser(path))
    return base_of_adapter(model, folder) if (folder / ADAPTER_CONFIG).is_file() else model
