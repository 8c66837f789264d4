"""Checkpoints in shards: a folder in which every rank has written its part of each tensor, and a file with all that is no weight.

The tensors lie in a distributed checkpoint (`torch.distributed.checkpoint`) as `state_dict.NAME` and `optimizer_states.I.PLACE.KEY`;
PLACE is a parameter's number in the optimizer. So any number of ranks reads what any other number has written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future
from torch.optim import Optimizer

from posttrain.runs.checkpoint import is_corrupt

REST = "rest.pt"
READERS = 8  # threads that compare checksums
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Live:
    """What a checkpoint is loaded into. weights: a module's state dict. optimized: of each optimizer the parameters by their numbers."""

    weights: Mapping[str, Tensor]
    optimized: Sequence[Sequence[Tensor]]

    def like(self, name: str) -> Tensor | None:
        """The live tensor that lies over the ranks as the tensor `name` of a checkpoint does; None where there is none."""
        kind, _, rest = name.partition(".")
        if kind == "state_dict":
            return self.weights.get(rest)
        optimizer, place, _ = rest.split(".", 2)
        return self.optimized[int(optimizer)][int(place)]


class _Writer(dcp.FileSystemWriter):
    """Says what the disk said."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Raises OSError where a file cannot be written in full."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # torch closes its archive on the way out of a failed write, and complains of the archive instead of the disk
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is not None:
                raise cause from error
            raise


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """An optimizer's parameters by the numbers that its state dict gives them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint lies in shards."""
    return path.is_dir()


def save(checkpoint: dict[str, Any], path: Path, *, leads: bool) -> None:
    """Write a checkpoint as Lightning has it into the folder `path`; every rank calls. Raises OSError where a rank cannot write."""
    rest, tensors = split(checkpoint)
    path.mkdir(exist_ok=True)
    if leads:
        torch.save(rest, path / REST)
    try:
        dcp.save(tensors, storage_writer=_Writer(path))
    except CheckpointException as error:
        cause = next((failure[0] for failure in error.failures.values() if isinstance(failure[0], OSError)), None)
        if cause is not None:
            raise cause from error
        raise


def load(path: Path, live: Live) -> dict[str, Any]:
    """A checkpoint as Lightning has it, its tensors over the ranks as the live ones are; every rank calls. path: a folder or a file."""
    if not is_sharded(path):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        rest, tensors = split(checkpoint)
        return joined(rest, {name: _spread(tensor, live.like(name)) for name, tensor in tensors.items()})
    targets = {name: _target(about, live.like(name)) for name, about in _stored(path).items()}
    dcp.load(targets, checkpoint_id=path)
    return joined(_rest(path), targets)


def load_whole(path: Path) -> dict[str, Any]:
    """The same with whole tensors on the CPU; no other rank has to take part."""
    targets = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in _stored(path).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.load(targets, checkpoint_id=path, no_dist=True)
    return joined(_rest(path), targets)


def corrupt_files(path: Path) -> list[str]:
    """Names of a checkpoint's files that have other contents than were written, by the checksums in them. Reads all of them."""
    stored: dict[Any, Any] = dcp.FileSystemReader(path).read_metadata().storage_data
    pieces = sorted({(place.relative_path, place.offset, place.length) for place in stored.values()})
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda piece: _is_corrupt_piece(path / piece[0], *piece[1:]), pieces)
        wrong = dict.fromkeys(name for (name, _, _), corrupt in zip(pieces, found, strict=True) if corrupt)
    return [*([REST] if is_corrupt(path / REST) else []), *wrong]


def _is_corrupt_piece(file: Path, offset: int, length: int) -> bool:
    with open(file, "rb") as whole:
        whole.seek(offset)
        return is_corrupt(BytesIO(whole.read(length)))


class Stored:
    """A checkpoint, a folder or a file, of which each rank reads what it needs, when it needs it; no other rank has to take part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Tensors = {}
        self.about: dict[str, TensorStorageMetadata] = {}
        if is_sharded(path):
            self.rest, self.about = _rest(path), _stored(path)
        else:
            self.rest, self.file = split(torch.load(path, map_location="cpu", weights_only=True, mmap=True))

    def without_moments(self) -> dict[str, Any]:
        """The checkpoint, with whole weights on the CPU, without the optimizers' tensors."""
        names = [name for name in self.about or self.file if name.startswith("state_dict.")]
        return joined(self.rest, self._read(names))

    def moments(self, place: int) -> Tensors:
        """The tensors of the first optimizer's state, by key, for the parameter with the number `place`: whole, on the CPU."""
        prefix = f"optimizer_states.0.{place}."
        found = self._read([name for name in self.about or self.file if name.startswith(prefix)])
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def _read(self, names: Sequence[str]) -> Tensors:
        if not self.about:
            return {name: self.file[name] for name in names}
        targets = {name: torch.empty(self.about[name].size, dtype=self.about[name].properties.dtype) for name in names}
        if targets:
            dcp.load(targets, checkpoint_id=self.path, no_dist=True)
        return targets


def _rest(path: Path) -> dict[str, Any]:
    rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    return rest


def _stored(path: Path) -> dict[str, TensorStorageMetadata]:
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: about for name, about in metadata.items() if isinstance(about, TensorStorageMetadata)}


def _target(about: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """Room for a stored tensor."""
    if isinstance(like, DTensor) and like.shape == about.size:
        return torch.zeros_like(like, dtype=about.properties.dtype, requires_grad=False)
    return torch.empty(about.size, dtype=about.properties.dtype)


def _spread(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor."""
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """A checkpoint without its weights' and optimizers' tensors, and these by name."""
    tensors: Tensors = {f"state_dict.{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    bare = []
    for number, state in enumerate(checkpoint["optimizer_states"]):
        found = dict(_of_optimizer(number, state["state"]))
        tensors |= found
        bare.append({**state, "state": {place: _without_tensors(known) for place, known in state["state"].items()}})
    return {**checkpoint, "state_dict": {}, "optimizer_states": bare}, tensors


def _without_tensors(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in known.items() if not isinstance(value, Tensor)}


def _of_optimizer(number: int, state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for place, known in state.items():
        yield from ((f"optimizer_states.{number}.{place}.{key}", value) for key, value in known.items() if isinstance(value, Tensor))


def joined(rest: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What `split` was called on."""
    weights: Tensors = {}
    states = [{**state, "state": {place: dict(known) for place, known in state["state"].items()}} for state in rest["optimizer_states"]]
    for name, tensor in tensors.items():
        kind, _, below = name.partition(".")
        if kind == "state_dict":
            weights[below] = tensor
        else:
            number, place, key = below.split(".", 2)
            states[int(number)]["state"][int(place)][key] = tensor
    return {**rest, "state_dict": weights, "optimizer_states": states}
