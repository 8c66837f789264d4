"""rollout=vllm against a server of our own: tokens, log-probabilities, seeds, ends of answers, and what goes wrong on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from vllm_cases import PROMPTS, REQUESTS, free_port, same, tiny
from vllm_server import serving

from posttrain.errors import ConfigError, DataError
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import NativeGenerator
from posttrain.rollout.remote.answers import body_of, completions_of, logprobs_problem
from posttrain.rollout.remote.http import NoConnection, NoReplyInTime, Server, ServerError
from posttrain.rollout.serves import plain_logps
from posttrain.rollout.stops import Stops
from posttrain.rollout.vllm import VLLMGenerator


@pytest.fixture
def policy() -> PolicyModel:
    return tiny()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


Start = Callable[..., tuple[VLLMGenerator, Any]]


@pytest.fixture
def start(policy: PolicyModel, tokenizer: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts a server on the policy's weights and attaches a generator to it."""
    with ExitStack() as stack:

        def begin(mode: str = "raw_logprobs", **keys: Any) -> tuple[VLLMGenerator, Any]:
            policy.causal_lm.save_pretrained(tmp_path / "base")
            url, server = stack.enter_context(serving(tmp_path / "base", tokenizer, mode=mode))
            keys = {"max_new_tokens": 8, "pause": 0.01, "wait": 5.0, "timeout": 20.0} | keys
            generator = VLLMGenerator(url=url, folder=str(tmp_path / "handover"), **keys)
            generator.attach(policy, tokenizer)
            generator.refresh()
            return generator, server

        yield begin


# -- tokens and log-probabilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("raw_logprobs", {}),
        ("processed_logprobs", {"temperature": 0.7}),
        ("raw_logprobs", {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}),
    ],
)
@torch.no_grad()
def test_log_probabilities_are_the_models(start: Start, policy: PolicyModel, mode: str, keys: dict[str, Any]) -> None:
    generator, _ = start(mode, **keys)
    for request, answers in zip(REQUESTS, generator.generate(REQUESTS), strict=True):
        assert len(answers) == 3
        for answer in answers:
            want = plain_logps(policy.causal_lm, request.prompt, answer, keys.get("temperature", 1.0))
            np.testing.assert_allclose(answer.logps, want, atol=2e-5)
            assert answer.tokens.dtype == np.int32
            assert answer.logps.dtype == np.float32
    assert generator.measures()["sampler/mismatch"] < 1e-5


def test_greedy_answers_are_those_of_the_native_decoder(start: Start, policy: PolicyModel, tokenizer: Any) -> None:
    generator, _ = start()
    native = NativeGenerator(max_new_tokens=8)
    native.attach(policy, tokenizer)
    greedy = Sampling(8, temperature=0.0)
    found, want = generator.generate(REQUESTS, sampling=greedy), native.generate(REQUESTS, sampling=greedy)
    assert same(found, want)
    np.testing.assert_allclose(found[0][0].logps, want[0][0].logps, atol=2e-5)
    assert [len(answers) for answers in found] == [3, 3, 3]  # asked for once, given to all


def test_a_sample_is_a_function_of_its_request(start: Start) -> None:
    generator, _ = start()
    whole = generator.generate(REQUESTS)
    assert same(whole[1:2], generator.generate(REQUESTS[1:2]))
    assert len({tuple(answer.tokens) for answer in whole[0]}) > 1
    assert generator.generate([]) == []


def test_prompts_and_settings_are_sent_whole(start: Start) -> None:
    generator, server = start(temperature=1.0, top_k=7, top_p=0.5, min_p=0.1, repetition_penalty=1.1)
    generator.generate(REQUESTS[:1])
    body = server.seen[-1][1]
    assert body["prompt"] == PROMPTS[0].tolist()
    sent = {key: body[key] for key in ("n", "seed", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "ignore_eos")}
    assert sent == {
        "n": 3, "seed": 0, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "max_tokens": 8, "ignore_eos": True
    }  # fmt: skip
    plain = body_of("nano", REQUESTS[1], Sampling(), Stops([1]))
    assert (plain["top_k"], plain["top_p"], plain["min_p"], plain["seed"]) == (-1, 1.0, 0.0, 100)  # never left to the server


def test_no_more_requests_at_a_time_than_asked_for(start: Start) -> None:
    generator, server = start(concurrency=2, max_new_tokens=1)
    server.delay, server.busiest = 0.05, 0
    generator.generate([Request(PROMPTS[2], 1, seed) for seed in range(8)])
    assert server.busiest == 2


def test_a_prompt_without_tokens_is_refused(start: Start) -> None:
    generator, _ = start()
    with pytest.raises(DataError, match="prompt 1: has no tokens"):
        generator.generate([REQUESTS[0], Request(PROMPTS[0][:0], 1, 0)])


# -- ends of answers ---------------------------------------------------------------------------------------------------------------------


def test_stop_strings_stop_tokens_and_length(start: Start, tokenizer: Any) -> None:
    generator, server = start(max_new_tokens=12)
    request = Request(PROMPTS[0], 1, 5)
    free = generator.generate([request])[0][0]
    assert (free.finish, len(free.tokens)) == ("length", 12)
    place = next(i for i in range(2, 11) if free.tokens[i] < 128 and free.tokens[i] not in free.tokens[:i])
    text = tokenizer.decode([int(free.tokens[place])])
    stopped = generator.generate([request], sampling=Sampling(12, stop=(text,)))[0][0]
    assert stopped.finish == "stop"
    np.testing.assert_array_equal(stopped.tokens, free.tokens[: place + 1])  # with what ended it
    assert len(stopped.logps) == place + 1
    server.faults["extra"] = None
    np.testing.assert_array_equal(generator.generate([request], sampling=Sampling(14, stop=(text,)))[0][0].tokens, stopped.tokens)


def test_an_end_token_ends_an_answer(start: Start) -> None:
    generator, _ = start(max_new_tokens=12)
    request = Request(PROMPTS[0], 1, 5)
    free = generator.generate([request])[0][0]
    generator._stops[next(iter(generator._stops))] = Stops([int(free.tokens[4])])
    ended = generator.generate([request])[0][0]
    assert ended.finish == "stop"
    assert ended.tokens[-1] == free.tokens[4]
    assert len(ended.tokens) <= 5


# -- faults ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["error", "drop", "cut"])
def test_failures_that_pass_are_tried_again(start: Start, fault: str) -> None:
    generator, server = start(max_new_tokens=2)
    want = generator.generate(REQUESTS[:1])
    server.faults[fault] = 2
    assert same(generator.generate(REQUESTS[:1]), want)
    server.faults[fault] = 4  # one more than there are retries
    with pytest.raises(ServerError):
        generator.generate(REQUESTS[:1])
    assert server.faults[fault] == 0


def test_what_the_server_refuses_is_not_sent_again(start: Start) -> None:
    generator, server = start()
    before = len(server.seen)
    with pytest.raises(ServerError, match=r"HTTP 404: .*does not exist"):
        generator.server.post("/v1/completions", {"model": "other", "temperature": 1.0})
    assert len(server.seen) == before + 1


def test_a_server_that_hangs_is_left_after_its_time(start: Start) -> None:
    generator, server = start(timeout=0.4)
    server.faults["hang"] = None
    began = time.monotonic()
    with pytest.raises(NoReplyInTime, match=r"no reply within 0\.4 s"):
        generator.generate(REQUESTS[:1])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("count", "returned 7 tokens and 8 log-probabilities"),
        ("prompt", "other prompt tokens than those it was sent"),
        ("nan", "the log-probability .*: are its logits finite"),
        ("extra", "returned 10 tokens"),
    ],
)
def test_replies_that_are_not_what_was_asked_for(start: Start, fault: str, says: str) -> None:
    generator, server = start()
    server.faults[fault] = 1
    with pytest.raises(ServerError, match=says):
        generator.generate([Request(PROMPTS[0], 1, 5)])


CHOICE: dict[str, Any] = {"index": 0, "token_ids": [5, 6, 9], "logprobs": {"token_logprobs": [-1.0, 0.0, -2.0]}, "finish_reason": "stop"}


def choice(**changed: Any) -> dict[str, Any]:
    return {**CHOICE, **changed}


def logps(*values: Any) -> dict[str, Any]:
    return {"token_logprobs": list(values)}


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ([None], r"numbers them \[\]"),
        ([choice(index=1)], r"numbers them \[1\]"),
        ([choice(token_ids="abc")], "has no token ids"),
        ([choice(logprobs=[-1.0])], "has no log-probabilities"),
        ([choice(token_ids=[5, 6, 12])], "returned the token 12, and the policy has ids below 12"),
        ([choice(token_ids=[5, -1, 9])], "returned the token -1"),
        ([choice(token_ids=[5, 6.5, 9])], r"returned the token 6\.5"),
        ([choice(logprobs=logps(-1.0, 0.5, -2.0))], r"the log-probability 0\.5"),
        ([choice(logprobs=logps(-1.0, float("inf"), -2.0))], "the log-probability inf"),
        ([choice(logprobs=logps(-1.0, "a", -2.0))], "the log-probability 'a'"),
        ([choice(token_ids=[5, 6, 7])], "ended an answer at the token 7, at which it was not to stop"),
        ([choice(token_ids=[5, 6, 7], finish_reason="length")], "cut an answer off after 3 of 4 tokens"),
    ],
)
def test_choices_that_no_policy_could_have_made(choices: list[Any], says: str) -> None:
    with pytest.raises(ServerError, match=says):
        completions_of({"choices": choices}, Request(PROMPTS[0], 1, 5), Sampling(4), Stops([9]), 12)


def test_a_whole_answer_and_one_at_its_full_length_are_taken() -> None:
    def taken(reply: dict[str, Any], most: int) -> Any:
        return completions_of({"choices": [reply]}, Request(PROMPTS[0], 1, 5), Sampling(most), Stops([9]), 12)[0]

    assert taken(CHOICE, 4).finish == "stop"
    full = taken(choice(token_ids=[5, 6, 7], finish_reason="length"), 3)
    assert (full.finish, full.tokens.tolist()) == ("length", [5, 6, 7])


def test_a_failure_whose_explanation_never_comes_is_tried_again() -> None:
    class Stalling(BaseHTTPRequestHandler):
        seen = 0

        def do_GET(self) -> None:
            type(self).seen += 1
            fails = self.seen < 2
            self.send_response(500 if fails else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            if fails:
                time.sleep(1.0)
            else:
                self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert Server(f"http://127.0.0.1:{server.server_port}", timeout=0.3, pause=0.01).get("/") == {}
        server.shutdown()
    assert Stalling.seen == 2


def test_a_server_that_is_away_says_how_to_start_one(policy: PolicyModel, tokenizer: Any, tmp_path: Path) -> None:
    port = free_port()
    generator = VLLMGenerator(url=f"http://127.0.0.1:{port}", wait=0.3, folder=str(tmp_path), temperature=0.7)
    began = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        generator.attach(policy, tokenizer)
    assert time.monotonic() - began < 5
    (line,) = str(raised.value).splitlines()
    assert line == (
        f"rollout.url: no vLLM server answers at http://127.0.0.1:{port} (start one: VLLM_SERVER_DEV_MODE=1 vllm serve {tmp_path}/base "
        f"--port {port} --generation-config vllm --logprobs-mode processed_logprobs "
        "--worker-extension-cls posttrain.rollout.vllm_worker.PosttrainWorker)"
    )
    with serving(tmp_path / "base", tokenizer, mode="processed_logprobs", port=port):  # the folder that the command names is there
        generator.attach(policy, tokenizer)
        generator.refresh()
    with pytest.raises(NoConnection):
        Server(generator.server.url, retries=1, pause=0.01).get("/health")


def test_a_server_that_comes_up_late_is_waited_for(policy: PolicyModel, tokenizer: Any, tmp_path: Path) -> None:
    policy.causal_lm.save_pretrained(tmp_path / "base")
    with serving(tmp_path / "base", tokenizer) as (url, server):
        server.faults["error"] = 2
        VLLMGenerator(url=url, wait=20.0).attach(policy, tokenizer)
        assert server.faults["error"] == 0


@contextmanager
def refused(says: str) -> Iterator[None]:
    with pytest.raises(ConfigError, match=says):
        yield


def test_servers_that_do_not_fit(start: Start, policy: PolicyModel, tokenizer: Any) -> None:
    generator, server = start()
    with refused(r"rollout\.model: the server at .* serves nano"):
        VLLMGenerator(url=generator.server.url, model="gemma").attach(policy, tokenizer)
    with refused("needs --logprobs-mode processed_logprobs"):
        VLLMGenerator(url=generator.server.url, temperature=0.5).attach(policy, tokenizer)
    with refused("no log-probabilities at a temperature other than 1"):
        generator.generate(REQUESTS, sampling=Sampling(8, temperature=0.5, top_p=0.9))
    server.worker = object()
    with refused("does not have our worker extension.*--worker-extension-cls"):
        VLLMGenerator(url=generator.server.url, retries=0).attach(policy, tokenizer)


def test_keys_out_of_range_are_all_named() -> None:
    with pytest.raises(ConfigError) as raised:
        VLLMGenerator(url="localhost:8000", concurrency=0, timeout=-1.0)
    assert [problem.where for problem in raised.value.problems] == ["rollout.concurrency", "rollout.timeout", "rollout.url"]


@pytest.mark.parametrize(
    ("sampling", "fits"),
    [
        (Sampling(), {"raw_logprobs", "processed_logprobs"}),
        (Sampling(temperature=0.0), {"raw_logprobs", "processed_logprobs"}),
        (Sampling(temperature=0.0, top_k=3), {"raw_logprobs", "processed_logprobs"}),
        (Sampling(temperature=0.0, repetition_penalty=1.1), {"raw_logprobs"}),
        (Sampling(top_k=3), {"raw_logprobs"}),
        (Sampling(temperature=0.7), {"processed_logprobs"}),
        (Sampling(temperature=0.7, top_p=0.9), set()),
    ],
)
def test_modes_in_which_log_probabilities_are_the_trainers(sampling: Sampling, fits: set[str]) -> None:
    modes = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
    assert {mode for mode in modes if logprobs_problem(mode, sampling) is None} == fits
