"""Keeping a server's weights those of the policy: full weights through a folder, adapters by name."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.decoding import decoding_mode
from posttrain.models.integrity import sha256_of
from posttrain.models.policy import PolicyModel
from posttrain.rollout.remote.answers import prompt_logps_of
from posttrain.rollout.remote.http import Server, ServerError
from posttrain.rollout.remote.prints import Print
from posttrain.rollout.remote.ranks import anybody, first_rank, from_first
from posttrain.rollout.remote.weights import StaleWeightsError, check_arrival, print_of_trained, whole_state, write_weights

log = logging.getLogger(__name__)

PROBE = "The weights of this model are those that were sent. 1 + 1 = 2"
PROBE_TOKENS = 32
MOVED = 1e-3  # nats a token: so much does not come from rounding


@dataclass(frozen=True)
class Arrived:
    """What rank 0 tells the others of an update. serving: the name that requests go to. probed: the server's log-probabilities."""

    serving: str
    probed: np.ndarray


@dataclass
class WeightSync:
    """Sends a policy's weights to a server when they changed.

    about: what the server's first worker says of itself. model: the name of the served model. folder: on a disk that trainer and server
    share. checksum: whether the server's weights are compared with those sent. tolerance: mean difference, in nats a token, of the log-
    probabilities of a short text between server and policy.
    """

    server: Server
    policy: PolicyModel
    tokenizer: PreTrainedTokenizerBase
    about: Mapping[str, Any]
    model: str
    folder: Path
    checksum: bool
    tolerance: float
    serving: str = ""
    version: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _sent: list[tuple[float, float]] | None = None
    _ours: np.ndarray | None = None
    _theirs: np.ndarray | None = None

    def update(self) -> None:
        """Every rank calls it. Raises StaleWeightsError where the weights did not arrive, ServerError where the server fails."""
        present = print_of_trained(self.policy.model)
        if not anybody(present != self._sent):
            return
        adapted = not isinstance(self.policy.model, PreTrainedModel)
        state = whole_state(self.policy.model, keep=first_rank())
        ours = self._own_logps()
        self.version += 1
        began = time.perf_counter()
        arrived = from_first(lambda: self._send_adapter(state) if adapted else self._send_weights(state))
        self.serving = arrived.serving
        self._judge(ours, arrived.probed, proven=self.checksum and not adapted)
        self._sent, self._ours, self._theirs = present, ours, arrived.probed
        log.debug("weights %d are on the server after %.2f s", self.version, time.perf_counter() - began)

    def _send_weights(self, state: Mapping[str, Tensor]) -> Arrived:
        folder = self._place(self.version)
        dtype = getattr(torch, self.about["dtype"])
        sent = write_weights(cast("PreTrainedModel", self.policy.model), state, folder, dtype)
        self.server.call("posttrain_load", folder=str(folder))
        self.server.post("/reset_prefix_cache")  # keys and values of the old weights
        if self.checksum:
            workers = self.server.call("posttrain_prints")
            share = check_arrival(sent, [{name: Print.unpacked(found) for name, found in worker.items()} for worker in workers])
            log.debug("%.1f%% of the weights compared", 100 * share)
        shutil.rmtree(folder)
        return Arrived(self.model, self._probe(self.model))

    def _send_adapter(self, state: Mapping[str, Tensor]) -> Arrived:
        from posttrain.models.adapter_artifact import write_adapter

        folder, name = self._place(self.version), f"posttrain-{self._token}-{self.version}"
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(cast("Any", self.policy.model), folder, state)
        if self.checksum:
            self._same_file(folder / "adapter_model.safetensors")
        self._load_adapter(name, folder)
        probed = self._probe(name)
        if self.serving:  # the one before
            self.server.post("/v1/unload_lora_adapter", {"lora_name": self.serving})
            shutil.rmtree(self._place(int(self.serving.rpartition("-")[2])))
        return Arrived(name, probed)

    def _load_adapter(self, name: str, folder: Path) -> None:
        try:
            self.server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerError:
            if name not in served_names(self.server):  # it is there where the reply to a first try was lost
                raise

    def _same_file(self, file: Path) -> None:
        digest = sha256_of(file)
        if any(worker.get("sha256") != digest for worker in self.server.call("posttrain_digest", path=str(file))):
            raise StaleWeightsError(f"the server reads another {file} than was written: rollout.folder must be on a disk that both share")

    def _place(self, version: int) -> Path:
        return self.folder / self._token / f"{version:06d}"

    def _judge(self, ours: np.ndarray, theirs: np.ndarray, *, proven: bool) -> None:
        """Raises StaleWeightsError where the server's log-probabilities are not those of the policy, or, unless its weights are proven to
        be new, have not changed with the policy's."""
        mismatch = float(np.abs(ours - theirs).mean())
        self.measures = {"sampler/mismatch": mismatch}
        if not mismatch <= self.tolerance:
            raise StaleWeightsError(
                f"after update {self.version} server and policy differ by {mismatch:.3g} nats a token on a fixed text, more than "
                f"rollout.tolerance={self.tolerance:g}: the server has other weights, or another precision or quantisation"
            )
        if proven or self._ours is None or self._theirs is None:
            return
        moved = float(np.abs(ours - self._ours).mean())
        if moved > MOVED and np.array_equal(theirs, self._theirs):
            raise StaleWeightsError(
                f"update {self.version} moved the policy's log-probabilities of a fixed text by {moved:.2g} nats a token and the server's "
                "not at all: it still has the old weights"
            )

    def _probe(self, model: str) -> np.ndarray:
        prompt = self._probe_ids()
        asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "ignore_eos": True}
        return prompt_logps_of(self.server.post("/v1/completions", asked), prompt)

    @torch.no_grad()
    def _own_logps(self) -> np.ndarray:
        """The policy's log-probabilities of the probe's tokens after the first, float64 [P - 1]; every rank calls it."""
        model = self.policy.causal_lm
        device = next(model.parameters()).device
        ids = torch.tensor([self._probe_ids()], device=device)
        with decoding_mode(self.policy.model):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        found: np.ndarray = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].double().cpu().numpy()
        return found

    def _probe_ids(self) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(PROBE, add_special_tokens=False)][:PROBE_TOKENS]


def served_names(server: Server) -> list[str]:
    """Models and adapters that a server offers."""
    reply = server.get("/v1/models")
    try:
        return [str(model["id"]) for model in reply["data"]]
    except (KeyError, TypeError) as error:
        raise ServerError(f"{server.url}/v1/models: not a list of models: {str(reply)[:200]}") from error


def adapter_problems(model: nn.Module, about: Mapping[str, Any]) -> list[Problem]:
    """What stands against serving this policy by its adapter; nothing for a policy without one."""
    if isinstance(model, PreTrainedModel):
        return []
    from posttrain.models.peft import adapter_config

    config = adapter_config(cast("Any", model))
    problems = []
    for key, wrong in (("kind", "dora" if config.use_dora else "pissa" if config.init_lora_weights == "pissa" else None),
                       ("modules_to_save", config.modules_to_save)):  # fmt: skip
        if wrong:
            problems.append(Problem(f"model.peft.{key}", f"vLLM cannot serve adapters with {key}={wrong}", "use rollout=native"))
    if about["max_lora_rank"] is None:
        problems.append(Problem("rollout.url", "the server was started without adapters", "add --enable-lora"))
    elif about["max_lora_rank"] < config.r:
        problems.append(Problem("model.peft.r", f"{config.r} is more than the server's --max-lora-rank {about['max_lora_rank']}"))
    return problems


def require(problems: list[Problem]) -> None:
    """Raises ConfigError where there are any."""
    if problems:
        raise ConfigError(problems)
