"""Handing a policy's weights to a server through a folder, and proving that the server computes with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from posttrain.models.quantisation import is_quantised
from posttrain.rollout.remote.prints import Print, prints_of

ROUNDING = 1e-12  # of sums in float64 that are taken in another order, relative to the sum of magnitudes
LEAST_COVERED = 0.5  # share of the numbers that must be found again on the server
FUSED = (
    (re.compile(r"\.(q|k|v)_proj\."), ".qkv_proj."),
    (re.compile(r"\.(gate|up)_proj\."), ".gate_up_proj."),
    (re.compile(r"\.experts\.\d+\.(gate_proj|up_proj|w1|w3)\.weight$"), ".experts.w13_weight"),
    (re.compile(r"\.experts\.\d+\.(down_proj|w2)\.weight$"), ".experts.w2_weight"),
)
ADAPTED = re.compile(r"\.lora_|\.modules_to_save\.")  # tensors that adapters add
PADDED = ("embed_tokens.weight", "lm_head.weight")  # vLLM adds rows of zeros to these


class StaleWeightsError(RuntimeError):
    """After an update the server does not have the weights that it was sent."""


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A model's state dict with its shards put together; every rank must call it. keep: whether this rank wants it; else {}.

    Raises ValueError where the parameters are not there at all (ZeRO stage 3).
    """
    if any(parameter.numel() == 0 for parameter in model.parameters()):
        raise ValueError("the weights are partitioned by ZeRO stage 3, whose shards rollout=vllm cannot put together: use FSDP2 or stage 2")
    return {name: tensor for name, tensor in _whole(model.state_dict()) if keep}


def _whole(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        yield name, tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def print_of_trained(model: nn.Module) -> list[tuple[float, float]]:
    """Sums of this rank's part of every trained parameter: differ when any changed, whatever wrote to it."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    local = ((name, p.to_local() if isinstance(p, DTensor) else p) for name, p in trained)
    return [(found.total, found.magnitude) for found in prints_of(local, digests=False).values()]


def write_weights(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> dict[str, Print]:
    """Write a checkpoint with Hugging Face names, in the server's dtype; returns the fingerprints of what was written.

    Tied weights are written once, under the first of their names.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in revert_weight_conversion(model, dict(state)).items():
        place = (tensor.data_ptr(), tensor.shape)
        if place in seen:
            continue
        seen.add(place)
        tensors[name] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return prints_of(tensors.items())


def is_whole(model: nn.Module) -> bool:
    """Whether this process holds all of the weights, unrounded."""
    return not is_quantised(model) and not any(isinstance(p, DTensor) or p.numel() == 0 for p in model.parameters())


def write_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model folder that a server can be started on: the weights under any adapters, and the tokenizer."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if not ADAPTED.search(name)}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Compared:
    """wrong: the server's parameters that differ. covered: share of the numbers that were compared."""

    wrong: tuple[str, ...]
    covered: float


def compare(sent: Mapping[str, Print], workers: Sequence[Mapping[str, Print]]) -> Compared:
    """What was sent beside what the server's workers hold, by the names of the server.

    vLLM fuses some tensors (q, k and v; gate and up; experts): the sums of their parts add up. Workers hold shards or copies: their sums
    must add up to a whole multiple. Vocabularies are padded with zeros. What fits none of these is not compared.
    """
    held = _by_name(workers)
    groups: dict[str, list[Print]] = {}
    for name, found in sent.items():
        groups.setdefault(_server_name(name, held), []).append(found)
    pairs = {name: (parts, held[name]) for name, parts in groups.items() if name in held}
    copies = _copies(pairs)
    wrong = tuple(sorted(name for name, count in copies.items() if not _agree(*pairs[name], count)))
    compared = sum(part.numel for name in copies for part in groups[name])
    return Compared(wrong, compared / max(1, sum(part.numel for part in sent.values())))


def check_arrival(sent: Mapping[str, Print], workers: Sequence[Mapping[str, Print]]) -> float:
    """The share of the numbers that was compared. Raises StaleWeightsError where any differs, or where too few could be compared."""
    found = compare(sent, workers)
    if found.wrong:
        some = ", ".join(found.wrong[:3]) + (", ..." if len(found.wrong) > 3 else "")
        raise StaleWeightsError(
            f"the server did not take the weights that it was sent: {len(found.wrong)} of its parameters differ ({some}). Restart it, "
            "unquantised, with the model that is trained"
        )
    if found.covered < LEAST_COVERED:
        raise StaleWeightsError(
            f"only {found.covered:.0%} of the weights could be found on the server under known names, so nothing is proven: is it the same "
            "model, without --enable-lora and unquantised? rollout.checksum=false leaves the proof to the log-probabilities"
        )
    return found.covered


def _by_name(workers: Iterable[Mapping[str, Print]]) -> dict[str, list[Print]]:
    held: dict[str, list[Print]] = {}
    for worker in workers:
        for name, found in worker.items():
            held.setdefault(name, []).append(found)
    return held


def _server_name(name: str, held: Mapping[str, object]) -> str:
    """The server's parameter that a checkpoint's tensor is part of; its own name if none is known."""
    names = [name, *(pattern.sub(fused, name) for pattern, fused in FUSED)]
    return next((candidate for candidate in names if candidate in held), name)


def _copies(pairs: Mapping[str, tuple[Sequence[Print], Sequence[Print]]]) -> dict[str, int]:
    """How often the workers hold each parameter, all together; without those of which sizes do not tell."""
    sizes = {name: (sum(part.numel for part in parts), sum(part.numel for part in held)) for name, (parts, held) in pairs.items()}
    whole = {name: there // wanted for name, (wanted, there) in sizes.items() if wanted and there and there % wanted == 0}
    replicas = min(whole.values(), default=1)  # of the model: what is cut over a replica's workers is there once in each
    padded = {name: replicas for name, (wanted, there) in sizes.items() if name.endswith(PADDED) and there > wanted * replicas}
    return {**whole, **padded}


def _agree(parts: Sequence[Print], held: Sequence[Print], copies: int) -> bool:
    magnitude = math.fsum(part.magnitude for part in parts)
    close = copies * magnitude * ROUNDING
    sums = abs(math.fsum(part.total for part in held) - copies * math.fsum(part.total for part in parts)) <= close
    sizes = abs(math.fsum(part.magnitude for part in held) - copies * magnitude) <= close
    return sums and sizes and _same_digests(parts, held)


def _same_digests(parts: Sequence[Print], held: Sequence[Print]) -> bool:
    """Of a tensor that is small and whole on every worker."""
    if len(parts) != 1 or any(part.numel != parts[0].numel for part in held):
        return True
    return all(part.digest == parts[0].digest for part in held)
