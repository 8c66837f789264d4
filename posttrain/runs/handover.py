"""The artifact a finished run hands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.methods.base import Method
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.integrity import config_hash
from posttrain.models.lineage import parents_of
from posttrain.models.sharding import Replicated, bit_sum
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
        tags=dict(config["tracking"].get("tags") or {}),
        parents=parents_of(config),
    )
    folder = job.folder / "artifact"
    with writing(folder):
        return whole.hand_on(job.tokenizer, folder, record=record)


def unsharded(job: Job, method: Method) -> Method | None:
    """On the leading rank a method of the same kind with the trained weights, whole, on the CPU; None on the others.

    Raises RuntimeError where a weight is missing, of another shape, or not, bit for bit, what lies on the ranks.
    """
    state: dict[str, Tensor] = {}
    sums: dict[str, int] = {}
    for name, child in _handed_on(method):
        state |= {f"{name}.{key}": value for key, value in method.sharding.full_state_dict(child).items()}
        sums |= {f"{name}.{key}": value for key, value in method.sharding.bit_sums(child).items()}
    if not job.ranks.leads:
        return None
    whole = build_method(replace(job, distribution=Distribution("auto", Replicated()), device=torch.device("cpu")), trains=False)
    whole.configure_model()
    shapes = {f"{child}.{name}": value.shape for child, part in _handed_on(whole) for name, value in part.state_dict().items()}
    wrong = {name for name in shapes.keys() | state.keys() if name not in state or shapes.get(name) != state[name].shape}
    if wrong:
        raise RuntimeError(f"{len(wrong)} of the gathered weights are not the method's, or of another shape, such as {min(wrong)}")
    whole.load_state_dict(state, strict=False)  # running means and the like are not handed on
    del state
    written = whole.state_dict()
    if changed := [name for name, bits in sums.items() if int(bit_sum(written[name])) != bits]:
        raise RuntimeError(f"{len(changed)} of the gathered weights are not those that lie on the ranks, such as {changed[0]}")
    return whole.eval()


def _handed_on(method: Method) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a method with weights that go into an artifact, by name."""
    for name, child in method.named_children():
        if name != "reference" and any(True for _ in child.parameters()):
            yield name, child
