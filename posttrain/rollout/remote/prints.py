"""Fingerprints of weights: cheap to make where the weights are, small to send, different when a weight is.

Needs torch alone, so that a server's workers can import it where nothing else of this package is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SUMMABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SMALL = 65536  # numbers; up to so many a tensor is hashed as well


@dataclass(frozen=True)
class Print:
    """Of one tensor: how many numbers, their sum and the sum of their magnitudes in float64, and the BLAKE2b of its bytes if it is small.

    Sums can be added up: those of a fused or a sharded tensor are the sums over its parts.
    """

    numel: int
    total: float
    magnitude: float
    digest: str | None = None

    def packed(self) -> dict[str, Any]:
        """As JSON can carry it without loss, also where it is no number."""
        return {"numel": self.numel, "total": self.total.hex(), "magnitude": self.magnitude.hex(), "digest": self.digest}

    @classmethod
    def unpacked(cls, data: Mapping[str, Any]) -> Print:
        """What `packed` made. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(int(data["numel"]), float.fromhex(data["total"]), float.fromhex(data["magnitude"]), data["digest"])


@torch.no_grad()
def prints_of(named: Iterable[tuple[str, Tensor]], *, digests: bool = True) -> dict[str, Print]:
    """Fingerprints by name. The host waits for the device once, and again for every tensor that is hashed."""
    kept = [(name, tensor.detach()) for name, tensor in named]
    if not kept:
        return {}
    device = kept[0][1].device
    sums = torch.stack([sums_of(tensor).to(device) for _, tensor in kept]).cpu().tolist()
    return {
        name: Print(tensor.numel(), total, magnitude, digest_of(tensor) if digests and tensor.numel() <= SMALL else None)
        for (name, tensor), (total, magnitude) in zip(kept, sums, strict=True)
    }


def sums_of(tensor: Tensor) -> Tensor:
    """Sum, and sum of magnitudes; float64 [2]. No copy of the tensor is made, but of formats that cannot be added up (8 bits)."""
    flat = tensor.reshape(-1) if tensor.dtype in SUMMABLE else tensor.reshape(-1).double()
    return torch.stack([flat.sum(dtype=torch.float64), torch.linalg.vector_norm(flat, 1, dtype=torch.float64)])


def digest_of(tensor: Tensor) -> str:
    """BLAKE2b of the numbers as they lie in memory."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
