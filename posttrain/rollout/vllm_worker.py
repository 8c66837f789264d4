"""What a vLLM server needs so that its weights can be updated and checked: an extension of its workers.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls posttrain.rollout.vllm_worker.PosttrainWorker ...

vLLM mixes the class into its own worker, whose `model_runner`, `model_config`, `lora_config` and `rank` it reads; its methods are called
through `POST /collective_rpc`. The server's environment needs this package importable (PYTHONPATH is enough: of it only this file and
`rollout/remote/prints.py` are imported, and they need torch and safetensors alone). The trainer never imports vLLM, and neither does this.
In its development mode a server does what anybody who reaches it asks of it: keep it on a network that you trust.

Not yet run within a real vLLM: what is assumed of it is named in `posttrain/rollout/vllm.py`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = 1  # of the methods below; the client refuses another
CHUNK = 1 << 22


class PosttrainWorker:
    """Methods of a worker. The names begin with `posttrain_`, since vLLM refuses those that its worker has."""

    model_runner: Any
    model_config: Any
    lora_config: Any
    rank: int

    def posttrain_about(self) -> dict[str, Any]:
        """What the client must know of the server."""
        config, lora = self.model_config, self.lora_config
        return {
            "protocol": PROTOCOL,
            "rank": self.rank,
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode).rpartition(".")[2].lower(),  # a text, or an enum in vLLM 0.10
            "quantisation": config.quantization,
            "max_lora_rank": None if lora is None else lora.max_lora_rank,
        }

    def posttrain_load(self, folder: str) -> dict[str, Any]:
        """Load the weights in a folder's safetensors files, which have the names of a Hugging Face checkpoint, into the running model."""
        runner = self.model_runner
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no weights here: it must be on a disk that trainer and server share")
        if "weights_iterator" in inspect.signature(runner.reload_weights).parameters:
            runner.reload_weights(weights_iterator=_tensors(files))  # also does what a family needs after loading
        else:  # before vLLM 0.14: right for weights that are served as they are stored
            runner.model.load_weights(_tensors(files))
        return {"files": len(files)}

    def posttrain_prints(self) -> dict[str, dict[str, Any]]:
        """Fingerprints of this worker's part of every parameter, by vLLM's own names."""
        from posttrain.rollout.remote.prints import prints_of

        model = self.model_runner.model
        return {name: found.packed() for name, found in prints_of(model.named_parameters()).items()}

    def posttrain_digest(self, path: str) -> dict[str, Any]:
        """SHA-256 of a file as this worker's machine sees it."""
        digest = hashlib.sha256()
        with Path(path).open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return {"sha256": digest.hexdigest()}


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
