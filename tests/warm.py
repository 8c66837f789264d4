"""What every run of this package imports or builds once in its process, done once for all that are forked from one that has done it.

No tensor is computed here: the threads and locks of such work would not survive a fork.
"""

from __future__ import annotations

import importlib
import os

from posttrain.runs.threads import spin_briefly

spin_briefly()
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}  # read while importing; processes get an environment of their own

IMPORTED = [
    "datasets",
    "deepspeed",  # by accelerate, when weights are written, where it is installed; seconds, since it imports mlflow
    "matplotlib.backends.backend_agg",
    "pandas",
    "peft",
    "posttrain.__main__",
    "posttrain.runs.commands.train",
    "posttrain.runs.session",
    "posttrain.runs.worker",
    "transformers.models.qwen3.modeling_qwen3",
]
for name in IMPORTED:
    importlib.import_module(name)

from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

from posttrain.runs.compose import compose  # noqa: E402
from posttrain.runs.pipeline.identity import code_digest  # noqa: E402

get_checkpoint_conversion_mapping("qwen3")  # compiles the patterns of all families
compose(["method=sft", "model=nano"])  # fills the caches of Hydra's parser
code_digest()
