"""Keeps libraries' remarks about what is not wrong off the user's terminal. Imports none of them."""

from __future__ import annotations

import logging
import os
import warnings

# Remarks made while importing: kernels of other devices, optional packages, progress of Lightning's own set-up.
CHATTY = (
    "torchao", "torch.utils._pytree", "bitsandbytes", "torch.distributed", "lightning", "lightning.pytorch", "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "DeepSpeed",
)  # fmt: skip


class _Raised(logging.Filter):
    """Passes errors only, also where a library sets its own level later."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


_raised = _Raised()


def quiet_libraries() -> None:
    """Call before the heavy imports, and again after them: some set their own level. Errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in CHATTY:
        logging.getLogger(name).addFilter(_raised)
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*", ".*is_gradient_checkpointing.*", ".*torch.jit.script_method.*",
        ".*(all_gather_into_tensor|reduce_scatter_tensor).* is deprecated.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)
