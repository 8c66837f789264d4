"""The artifact a finished run hands on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from posttrain.methods.base import Method
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.integrity import config_hash
from posttrain.models.sharding import Replicated
from posttrain.runs.files import writing
from posttrain.runs.records import versions
from posttrain.runs.strategies import Distribution
from posttrain.runs.train import Job, build_method


def save_run_artifact(job: Job, method: Method, metrics: Mapping[str, float]) -> Path | None:
    """Write the policy to `artifact/` with its lineage; returns the folder, None on other ranks than the leading one.

    All ranks take part. Raises OSError that says what to do on a full disk.
    """
    whole = method if method.sharding.whole else unsharded(job, method)
    if whole is None or not job.ranks.leads:
        return None
    config = job.config
    record = ArtifactRecord(
        method=config["method"]["name"],
        parent=config["model"]["path"] if config["model"]["weights"] == "pretrained" else None,
        data={source.name: source.digest for source in job.prepared.report.sources},
        config_hash=config_hash({key: value for key, value in config.items() if key != "output_dir"}),
        metrics=dict(metrics),
        versions=versions(),
    )
    folder = job.folder / "artifact"
    with writing(folder):
        return whole.hand_on(job.tokenizer, folder, record=record)


def unsharded(job: Job, method: Method) -> Method | None:
    """On the leading rank a method of the same kind with the trained weights, whole, on the CPU; None on the others.

    Raises RuntimeError where a weight is missing, of another shape, or not as the ranks hold it.
    """
    state: dict[str, Tensor] = {}
    for name, child in method.named_children():
        if name != "reference":
            state |= {f"{name}.{key}": value for key, value in method.sharding.full_state_dict(child).items()}
    if not job.ranks.leads:
        return None
    whole = build_method(replace(job, distribution=Distribution("auto", Replicated()), device=torch.device("cpu")), trains=False)
    whole.configure_model()
    own = {name: tensor.shape for child, module in whole.named_children() for name, tensor in module.state_dict(prefix=f"{child}.").items()}
    wrong = {name for name in own.keys() | state.keys() if name not in state or own.get(name) != state[name].shape}
    if wrong:
        raise RuntimeError(f"{len(wrong)} of the gathered weights are not the method's, or of another shape, such as {min(wrong)}")
    whole.load_state_dict(state, strict=False)  # its own buffers are no part of what is handed on
    if digest({name: tensor for name, tensor in whole.state_dict().items() if name in own}) != digest(state):
        raise RuntimeError("the weights to be written are not those that the ranks hold")
    return whole.eval()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits of tensors."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
