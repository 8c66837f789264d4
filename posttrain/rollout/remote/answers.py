"""Requests and replies of `/v1/completions` with tokens on both sides: nothing that was sampled is ever tokenised again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.errors import Problem
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.remote.http import ServerError
from posttrain.rollout.stops import Stops
from posttrain.types import Completion

SEEDS = 2**62  # so that the seeds of all samples are 64-bit integers with a sign
LOWEST_LOGP = -9998.0  # vLLM writes -9999 for what is not finite
ROUNDING = 1e-3  # of a log-probability of 0, in half precision


def body_of(model: str, request: Request, sampling: Sampling, stops: Stops) -> dict[str, Any]:
    """What is asked for a request. Every sampling key is sent: what is left out the server takes from the model's generation config.

    The server's own end tokens are ignored; `stops` has them and more. Sample j draws with seed + j. A greedy answer is asked for once.
    """
    greedy = sampling.temperature == 0
    return {
        "model": model,
        "prompt": [int(token) for token in request.prompt],
        "n": 1 if greedy else request.samples,
        "seed": request.seed % SEEDS,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": -1 if greedy or sampling.top_k is None else sampling.top_k,
        "top_p": 1.0 if greedy else sampling.top_p,
        "min_p": 0.0 if greedy else sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(sampling.stop),
        "stop_token_ids": stops.tokens.tolist(),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stream": False,
    }


def completions_of(reply: Any, request: Request, sampling: Sampling, stops: Stops, vocabulary: int) -> list[Completion]:
    """The answers in a reply. vocabulary: of the policy. Raises ServerError where it is not what was asked for."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    wanted = 1 if sampling.temperature == 0 else request.samples
    if not isinstance(choices, list) or len(choices) != wanted:
        raise ServerError(f"asked the server for {wanted} answers, got {len(choices) if isinstance(choices, list) else 'none'}")
    placed = {choice.get("index"): choice for choice in choices if isinstance(choice, dict)}
    if set(placed) != set(range(wanted)):
        raise ServerError(f"asked the server for answers 0 to {wanted - 1}, and it numbers them {list(placed)}")
    answers = [_completion(placed[place], request, sampling, stops, vocabulary) for place in range(wanted)]
    return answers * request.samples if sampling.temperature == 0 else answers


def _completion(choice: Mapping[str, Any], request: Request, sampling: Sampling, stops: Stops, vocabulary: int) -> Completion:
    prompt, ids, logprobs = choice.get("prompt_token_ids"), choice.get("token_ids"), choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(ids, list) or not isinstance(values, list):
        missing = "log-probabilities" if isinstance(ids, list) else "token ids (return_token_ids, vLLM 0.10.2 and later)"
        raise ServerError(f"the server's reply has no {missing}")
    if prompt is not None and prompt != [int(token) for token in request.prompt]:
        raise ServerError("the server answered other prompt tokens than those it was sent")
    if len(ids) != len(values) or not 0 < len(ids) <= sampling.max_new_tokens:
        limit = sampling.max_new_tokens
        raise ServerError(f"the server returned {len(ids)} tokens and {len(values)} log-probabilities, of at most {limit} asked for")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise ServerError(f"an answer ended with finish_reason={choice.get('finish_reason')!r}, expected stop or length")
    if strange := [token for token in ids if type(token) is not int or not 0 <= token < vocabulary]:
        raise ServerError(f"the server returned the token {strange[0]!r}, and the policy has ids below {vocabulary}")
    if wrong := [value for value in values if not isinstance(value, (int, float)) or not LOWEST_LOGP < value <= ROUNDING]:
        raise ServerError(f"the server returned the log-probability {wrong[0]!r}: are its logits finite?")
    return _until_stop(np.array(ids, np.int32), np.array(values, np.float32), choice["finish_reason"], sampling, stops)


def _until_stop(tokens: np.ndarray, logps: np.ndarray, finish: str, sampling: Sampling, stops: Stops) -> Completion:
    """The answer up to and with what ends it: a server that looks for stop strings in batches of tokens may return more.

    Raises ServerError for an answer that nothing ended: one that was cut short, or stopped at a token that it was not to stop at.
    """
    count = len(tokens)
    ends = np.flatnonzero(stops.reached(tokens, tokens[None], np.zeros(count, np.int64), np.arange(1, count + 1)))
    if len(ends):
        return Completion(tokens[: ends[0] + 1], logps[: ends[0] + 1], "stop")
    if finish == "length" and count < sampling.max_new_tokens:
        raise ServerError(
            f"the server cut an answer off after {count} of {sampling.max_new_tokens} tokens: is its --max-model-len too small?"
        )
    if finish == "stop" and not sampling.stop:  # strings are found in its text, which may differ by a space from ours
        raise ServerError(f"the server ended an answer at the token {int(tokens[-1])}, at which it was not to stop")
    return Completion(tokens, logps, "length" if finish == "length" else "stop")


def logprobs_problem(mode: str, sampling: Sampling) -> Problem | None:
    """What is wrong with the server's `--logprobs-mode` for this sampling: log-probabilities must be those at the sampling temperature,
    before penalties and truncation, which is what the trainer computes.

    raw_logprobs are before the temperature, processed_logprobs after temperature, penalties and truncation.
    """
    steered = sampling.penalises or (
        sampling.temperature > 0 and (sampling.top_k is not None or sampling.top_p < 1.0 or sampling.min_p > 0.0)
    )
    tempered = sampling.temperature not in (0.0, 1.0)
    if (mode == "raw_logprobs" and not tempered) or (mode == "processed_logprobs" and not steered):
        return None
    if tempered and steered:
        message = "vLLM returns no log-probabilities at a temperature other than 1 from before truncation and penalties"
        return Problem("rollout.temperature", message, "temperature=1, or no top_k, top_p, min_p and repetition_penalty; or rollout=native")
    fitting = "raw_logprobs" if steered else "processed_logprobs"
    return Problem("rollout.url", f"the server runs with --logprobs-mode {mode}", f"this sampling needs --logprobs-mode {fitting}")


def prompt_logps_of(reply: Any, prompt: Sequence[int]) -> np.ndarray:
    """Log-probabilities of a prompt's tokens after the first, float64 [P - 1]. Raises ServerError where the reply has none."""
    try:
        places = reply["choices"][0]["prompt_logprobs"][1:]
        values = [place[str(token)]["logprob"] for place, token in zip(places, prompt[1:], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerError(f"the server's reply has no log-probabilities of the prompt: {error!r}") from error
    return np.array(values, np.float64)
