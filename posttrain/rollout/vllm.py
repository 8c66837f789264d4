"""Answers from a vLLM server: tokens in, tokens out, and weights that are sent to it, and proven to be there, before each rollout.

Not yet run against a real vLLM: tested against a small server of our own (`tests/rollout/vllm_server.py`). What is assumed of vLLM, from
its sources (V1 engine, 0.10.2 and later):
* `/v1/completions` takes a list of token ids as prompt, and with `return_token_ids` returns `prompt_token_ids` and `token_ids`, the token
  that ended the answer included; `logprobs: 0` returns the sampled token's log-probability in `logprobs.token_logprobs`; `prompt_logprobs:
  0` those of the prompt's tokens, before any temperature; sample j of n draws with seed + j; `ignore_eos` leaves `stop_token_ids` in force.
* `--logprobs-mode`: `raw_logprobs` (vLLM's default) are before temperature, penalties and truncation, `processed_logprobs` after all of
  them. Ours are at the temperature and before the others, so one of the two fits unless temperature and truncation are both used, which is
  refused.
* With VLLM_SERVER_DEV_MODE=1 there are `/collective_rpc` (keyword arguments that are strings; results that are dicts) and
  `/reset_prefix_cache`; `--worker-extension-cls` mixes `posttrain.rollout.vllm_worker.PosttrainWorker` into the workers.
* With VLLM_ALLOW_RUNTIME_LORA_UPDATING=True there are `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`; a request names its adapter
  as its model.
Where it differs from rollout=native: min-p comes before top-k and top-p, ties and random numbers are vLLM's own, and a sample may depend
on its batch by rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.decoding import refuse_empty
from posttrain.models.policy import PolicyModel
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.rollout.remote.answers import body_of, completions_of, logprobs_problem
from posttrain.rollout.remote.http import NoConnection, NoReplyInTime, Server, ServerError
from posttrain.rollout.remote.ranks import from_first
from posttrain.rollout.remote.sync import WeightSync, adapter_problems, require, served_names
from posttrain.rollout.remote.weights import is_whole, write_base
from posttrain.rollout.stops import Stops
from posttrain.rollout.vllm_worker import PROTOCOL, PosttrainWorker
from posttrain.types import Completion

log = logging.getLogger(__name__)

EXTENSION = f"{PosttrainWorker.__module__}.{PosttrainWorker.__qualname__}"


class VLLMGenerator(Generator):
    """A client of one vLLM server, which is started by hand; the trainer does not import vLLM.

    url: of the server, without /v1. model: its name there; None for the first it serves. folder: where weights are handed over, on a disk
    that trainer and server share. key_variable: environment variable with the API key; None for none. concurrency: requests at a time, of
    each rank. timeout: seconds of one request, or of one update of the weights. wait: seconds that a server may need to come up. retries,
    pause: see Server. checksum: compare the weights on the server with those sent. tolerance: largest mean difference, in nats a token,
    between the server's log-probabilities of a fixed text and the policy's. The other options: see Sampling.

    Raises ServerError where the server fails, StaleWeightsError where the weights did not arrive. Only rank 0 updates the weights; the
    others wait for it, at most as long as the process group's timeout.
    """

    runs_policy: ClassVar[bool] = False

    def __init__(
        self,
        *,
        url: str = "http://localhost:8000",
        model: str | None = None,
        folder: str = "outputs/handover",
        key_variable: str | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        wait: float = 30.0,
        retries: int = 3,
        pause: float = 1.0,
        checksum: bool = True,
        tolerance: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require(_wrong_values(url, concurrency=concurrency, timeout=timeout, tolerance=tolerance))
        self.server = Server(url, key_variable=key_variable, timeout=timeout, retries=retries, pause=pause)
        self.model, self.folder, self.wait = model, Path(folder).absolute(), wait
        self.concurrency, self.checksum, self.tolerance = concurrency, checksum, tolerance
        self.sync: WeightSync | None = None

    def attach(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Also asks the server whether it is there and fits. Raises ConfigError where not, with the command that starts one."""
        super().attach(policy, tokenizer)
        about, model = from_first(self._meet)
        self.sync = WeightSync(self.server, policy, tokenizer, about, model, self.folder, self.checksum, self.tolerance)

    def refresh(self) -> None:
        """Sends the weights if they changed since they were sent last."""
        assert self.sync is not None, "attach comes first"
        self.sync.update()

    def measures(self) -> Mapping[str, float]:
        """`sampler/mismatch`: mean difference between the server's log-probabilities of a fixed text and the policy's, nats a token."""
        return {} if self.sync is None else self.sync.measures

    def generate(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[list[Completion]]:
        """See Generator. Raises ServerError, DataError for an empty prompt, ConfigError for sampling that the server cannot report on."""
        assert self.sync is not None, "attach comes first"
        assert self.sync.serving, "refresh comes first"
        asked = sampling or self.sampling
        refuse_empty([request.prompt for request in requests])
        self._require_logprobs(self.sync.about, asked)
        stops, serving = self.stops(asked), self.sync.serving
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="vllm")
        try:
            return list(pool.map(lambda request: self._answer(request, asked, stops, serving), requests))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: Request, sampling: Sampling, stops: Stops, serving: str) -> list[Completion]:
        if not request.samples:
            return []
        reply = self.server.post("/v1/completions", body_of(serving, request, sampling, stops))
        return completions_of(reply, request, sampling, stops, self.policy.causal_lm.config.get_text_config().vocab_size)

    def _meet(self) -> tuple[Mapping[str, Any], str]:
        """What the server says of itself, and the name of its model."""
        self._await_health()
        names = served_names(self.server)
        if not names or (self.model is not None and self.model not in names):
            raise ConfigError(Problem("rollout.model", f"the server at {self.server.url} serves {', '.join(names) or 'nothing'}"))
        about = self._about()
        if about.get("protocol") != PROTOCOL:
            raise ConfigError(
                Problem("rollout.url", "the server's worker extension is of another version", f"start it anew: {self.command()}")
            )
        require(adapter_problems(self.policy.model, about))
        self._require_logprobs(about, self.sampling)
        if about["quantisation"] is not None:
            log.warning(
                "the server quantises its weights (%s): answers are sampled from another model than is trained", about["quantisation"]
            )
        return about, self.model or names[0]

    def _await_health(self) -> None:
        deadline = time.monotonic() + self.wait
        while True:
            try:
                self.server.get("/health", timeout=max(1.0, min(self.wait, 10.0)), retries=0)
                return
            except ServerError as error:
                if time.monotonic() >= deadline:
                    silent = isinstance(error, NoConnection | NoReplyInTime)
                    message = f"no vLLM server answers at {self.server.url}" if silent else f"the server is not healthy: {error}"
                    raise ConfigError(Problem("rollout.url", message, f"start one: {self.command()}")) from error
            time.sleep(min(0.5, self.wait / 4))

    def _about(self) -> Mapping[str, Any]:
        try:
            about: Mapping[str, Any] = self.server.call("posttrain_about")[0]
        except ServerError as error:
            message = f"the server does not have our worker extension, or is not in development mode ({error})"
            raise ConfigError(Problem("rollout.url", message, f"start it as: {self.command()}")) from error
        return about

    def _require_logprobs(self, about: Mapping[str, Any], sampling: Sampling) -> None:
        problem = logprobs_problem(about["logprobs_mode"], sampling)
        if problem is not None:
            raise ConfigError(problem)

    def command(self) -> str:
        """The line that starts the server that this run needs. It serves the policy's base, which is written out if it is nowhere."""
        adapted = not isinstance(self.policy.model, PreTrainedModel)
        environment = "VLLM_SERVER_DEV_MODE=1" + (" VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" if adapted else "")
        tempered = self.sampling.temperature not in (0.0, 1.0)
        mode = "processed_logprobs" if tempered else "raw_logprobs"
        lora = f" --enable-lora --max-loras 2 --max-lora-rank {max(16, self._rank())}" if adapted else ""
        port = self.server.url.rpartition(":")[2]
        return (
            f"{environment} vllm serve {self._base()} --port {port if port.isdigit() else 80} --generation-config vllm "
            f"--logprobs-mode {mode} --worker-extension-cls {EXTENSION}{lora}"
        )

    def _rank(self) -> int:
        from posttrain.models.peft import adapter_config

        return adapter_config(self.policy.model).r  # type: ignore[arg-type]

    def _base(self) -> str:
        """Hub id or folder of the model that the policy started from; a folder is made where there is none and one can be made."""
        model, folder = self.policy.causal_lm, self.folder / "base"
        if model.config.name_or_path:
            return str(model.config.name_or_path)
        if not is_whole(model):
            return "FOLDER_OF_THE_MODEL"
        write_base(model, self.tokenizer, folder)
        return str(folder)


def _wrong_values(url: str, **positive: float) -> list[Problem]:
    problems = [Problem(f"rollout.{name}", f"expected more than 0, got {value}") for name, value in positive.items() if not value > 0]
    if not url.startswith(("http://", "https://")):
        problems.append(Problem("rollout.url", f"expected http://... or https://..., got {url!r}"))
    return problems
