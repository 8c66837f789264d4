"""What micro-batches are made from."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from posttrain.types import TokenizedExample


class Examples(Protocol):
    """Tokenised examples by index, with their lengths [N] and summed loss weights [N]."""

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def targets(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TokenizedExample: ...
