"""A server with the part of vLLM's HTTP interface that rollout=vllm uses, for a tiny model on the CPU. It can be told to fail.

Its worker carries the real extension of ours; its parameters are fused and padded as vLLM's are.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from posttrain.rollout.vllm_worker import PosttrainWorker

FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
VOCABULARY_STEP = 64


class FusedModel(nn.Module):
    """A causal LM's weights as vLLM keeps them; `load_weights` takes those of a checkpoint."""

    def __init__(self, hf: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.hf = hf.eval()
        self.slices: dict[str, tuple[str, int, int]] = {}
        self.parts: dict[str, nn.Parameter] = {}
        grouped: dict[str, list[tuple[str, Tensor]]] = {}
        for name, tensor in hf.named_parameters():
            grouped.setdefault(re.sub("|".join(FUSED), lambda found: FUSED[found.group()], name), []).append((name, tensor))
        for name, members in grouped.items():
            start = 0
            for part, tensor in members:
                self.slices[part] = name, start, start + len(tensor)
                start += len(tensor)
            padding = -start % VOCABULARY_STEP if name.endswith(("embed_tokens.weight", "lm_head.weight")) else 0
            whole = torch.cat([tensor.detach() for _, tensor in members])
            self.parts[name] = nn.Parameter(torch.cat([whole, whole.new_zeros(padding, *whole.shape[1:])]).to(dtype))
        self.write_back()

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.parts.items()

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            whole, start, end = self.slices[name]
            self.parts[whole][start:end].copy_(tensor)
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Into the model that computes."""
        for name, parameter in self.hf.named_parameters():
            whole, start, end = self.slices[name]
            parameter.copy_(self.parts[whole][start:end])


class Worker(PosttrainWorker):
    def __init__(self, server: Server, hf: Any, dtype: torch.dtype, mode: str, rank: int | None) -> None:
        model = FusedModel(hf, dtype)
        self.model_runner = SimpleNamespace(model=model, reload_weights=self.reload_weights)
        self.model_config = SimpleNamespace(dtype=dtype, logprobs_mode=mode, quantization=None)
        self.lora_config = None if rank is None else SimpleNamespace(max_lora_rank=rank)
        self.rank, self.server = 0, server

    def reload_weights(self, weights_iterator: Any = None, weights_path: str | None = None, is_checkpoint_format: bool = True) -> None:
        self.server.loads += 1
        if "stale" not in self.server.faults:
            self.model_runner.model.load_weights(weights_iterator)


class Server:
    """faults: what goes wrong, with how many times (None for ever): error, drop, cut, hang, stale, count, prompt, nan, extra."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype, mode: str, lora_rank: int | None) -> None:
        self.tokenizer, self.mode = tokenizer, mode
        self.worker = Worker(self, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), dtype, mode, lora_rank)
        self.adapters: dict[str, Any] = {}
        self.faults: dict[str, int | None] = {}
        self.seen: list[tuple[str, Any]] = []
        self.loads = self.resets = self.busy = self.busiest = 0
        self.delay = 0.0
        self.lock, self.released = threading.RLock(), threading.Event()

    def take(self, fault: str) -> bool:
        """Whether this fault happens now."""
        with self.lock:
            left = self.faults.get(fault, 0)
            if left:
                self.faults[fault] = left - 1
            return left is None or left > 0

    def model(self, name: str) -> Any:
        return self.adapters[name] if name != "nano" else self.worker.model_runner.model.hf

    # -- the endpoints: status and JSON (None: no body) ------------------------------------------------------------------------------

    def handle(self, path: str, body: Any) -> tuple[int, Any]:
        self.seen.append((path, body))
        found = getattr(self, "on_" + path.strip("/").replace("/", "_"), None)
        return (404, {"detail": "Not Found"}) if found is None else found(body)

    def on_health(self, _: Any) -> tuple[int, Any]:
        return 200, None

    def on_v1_models(self, _: Any) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [{"id": name} for name in ("nano", *self.adapters)]}

    def on_reset_prefix_cache(self, _: Any) -> tuple[int, Any]:
        self.resets += 1
        return 200, None

    def on_collective_rpc(self, body: Any) -> tuple[int, Any]:
        method = getattr(self.worker, body["method"], None)
        if method is None:
            return 500, {"error": f"no method {body['method']}"}
        return 200, {"results": [method(*body.get("args", ()), **body.get("kwargs", {}))]}

    def on_v1_load_lora_adapter(self, body: Any) -> tuple[int, Any]:
        if body["lora_name"] in self.adapters:
            return 400, {"message": f"The lora adapter '{body['lora_name']}' has already been loaded."}
        path, last = body["lora_path"], list(self.adapters.values())
        base = copy.deepcopy(self.worker.model_runner.model.hf)
        stale = "stale" in self.faults and last
        self.adapters[body["lora_name"]] = last[-1] if stale else PeftModel.from_pretrained(base, path).eval()
        return 200, None

    def on_v1_unload_lora_adapter(self, body: Any) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"message": "no such adapter"}
        return 200, None

    def on_v1_completions(self, body: Any) -> tuple[int, Any]:
        if body["temperature"] == 0 and body.get("n", 1) > 1:
            return 400, {"message": "n must be 1 when using greedy sampling"}
        if body["model"] not in self.adapters and body["model"] != "nano":
            return 404, {"message": f"The model `{body['model']}` does not exist."}
        with self.lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self.delay)
        with self.lock:
            choices = [self.choice(body, index) for index in range(body.get("n", 1))]
            self.busy -= 1
        return 200, {"object": "text_completion", "choices": choices}

    # -- sampling ----------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choice(self, body: Any, index: int) -> dict[str, Any]:
        model, prompt = self.model(body["model"]), body["prompt"]
        generator = torch.Generator().manual_seed(body.get("seed", 0) + index)
        tokens: list[int] = []
        logps: list[float] = []
        finish = None
        while finish is None:
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
            token, logp = draw(logits, prompt + tokens, body, self.mode, generator)
            tokens.append(token)
            logps.append(logp)
            finish = self.finish(tokens, body)
        return self.reply(body, index, tokens, logps, finish)

    def finish(self, tokens: list[int], body: Any) -> str | None:
        if tokens[-1] in body.get("stop_token_ids", ()):
            return "stop"
        text = self.tokenizer.decode(tokens, skip_special_tokens=body.get("skip_special_tokens", True))
        if any(stop in text for stop in body.get("stop", ())):
            return "stop"
        return "length" if len(tokens) == body["max_tokens"] else None

    def reply(self, body: Any, index: int, tokens: list[int], logps: list[float], finish: str) -> dict[str, Any]:
        if self.take("extra"):  # as a server that finds a stop string a few tokens late
            tokens, logps = [*tokens, 5, 6], [*logps, -1.0, -1.0]
        if self.take("count"):
            tokens = tokens[:-1]
        if self.take("nan"):
            logps = [-9999.0, *logps[1:]]
        choice: dict[str, Any] = {"index": index, "text": "", "finish_reason": finish, "stop_reason": None}
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": logps}
        if body.get("return_token_ids"):
            choice["token_ids"] = tokens
            choice["prompt_token_ids"] = body["prompt"][:-1] if self.take("prompt") else body["prompt"]
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self.prompt_logprobs(body)
        return choice

    def prompt_logprobs(self, body: Any) -> list[Any]:
        ids = torch.tensor(body["prompt"])
        table = self.model(body["model"])(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
        picked = table.gather(1, ids[1:, None])[:, 0].tolist()
        return [None, *({str(int(token)): {"logprob": logp, "rank": 1}} for token, logp in zip(ids[1:], picked, strict=True))]


def draw(logits: Tensor, before: list[int], body: Any, mode: str, generator: torch.Generator) -> tuple[int, float]:
    """One token and its log-probability, in vLLM's order: penalties, temperature, min-p, top-k, top-p."""
    raw = logits.log_softmax(-1)
    logits = logits.clone()
    seen = torch.tensor(sorted(set(before)))
    penalty = body.get("repetition_penalty", 1.0)
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    temperature = body["temperature"]
    if temperature > 0:
        logits = truncated(logits / temperature, body)
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    else:
        token = int(logits.argmax())
    values = raw if mode == "raw_logprobs" else logits.log_softmax(-1)
    return token, float(values[token])


def truncated(logits: Tensor, body: Any) -> Tensor:
    probs = logits.softmax(-1)
    logits = logits.masked_fill(probs < body.get("min_p", 0.0) * probs.max(), -torch.inf)
    if body.get("top_k", -1) > 0:
        logits = logits.masked_fill(logits < logits.topk(body["top_k"]).values[-1], -torch.inf)
    if body.get("top_p", 1.0) < 1.0:
        values, order = logits.sort(descending=True)
        probs = values.softmax(-1)
        logits = logits.index_fill(0, order[probs.cumsum(-1) - probs >= body["top_p"]], -torch.inf)
    return logits


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: Any) -> None:
        owner: Server = self.server.owner
        if owner.take("hang"):
            owner.released.wait()
        if owner.take("drop"):
            self.close_connection = True
            return
        status, reply = (500, {"error": "the engine is dead"}) if owner.take("error") else owner.handle(self.path, body)
        data = b"" if reply is None else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if owner.take("cut") else data)


@contextmanager
def serving(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype = torch.float32, mode: str = "raw_logprobs",
    lora_rank: int | None = None, port: int = 0,
) -> Iterator[tuple[str, Server]]:  # fmt: skip
    """The server's address and the server."""
    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.owner = Server(folder, tokenizer, dtype=dtype, mode=mode, lora_rank=lora_rank)  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", http.owner  # type: ignore[attr-defined]
    finally:
        http.owner.released.set()  # type: ignore[attr-defined]
        http.shutdown()
        http.server_close()
        thread.join()
