"""The decoder: one prefill a prompt, keys and values of a prompt shared by its answers, and a batch that is always full of live answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.functional.head import compute_dtype, finished_logits, head_logits
from posttrain.models.decoding import decoding_mode
from posttrain.models.packed import Product, packed_linears, packed_product
from posttrain.models.policy import PolicyModel, dense_head, head_bias
from posttrain.rollout import attention
from posttrain.rollout.answers import Answers
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.rollout.batch import Batch
from posttrain.rollout.cache import Cohort
from posttrain.rollout.fixed import FixedStep
from posttrain.rollout.sampling import draw_operations, sample
from posttrain.rollout.stops import Stops
from posttrain.types import Completion

log = logging.getLogger(__name__)

PREFILL_TOKENS = 8192  # most tokens of the prompts in one forward; one prompt is always taken
ENTRY_SHARE = 1 / 8  # of the cache that must be free before waiting prompts enter: few, large cohorts instead of many small ones
ALIKE = 1 / 3  # of the longest prompt of a cohort, how long the others are at least: padding costs less than many small cohorts


class Decoder:
    """One run over some requests. cache_tokens: most tokens of keys and values, answers counted at their full length; a request that
    alone needs more is answered alone. fixed: decode by steps of fixed shapes (see `fixed`), which CUDA graphs replay; None: on CUDA."""

    def __init__(self, policy: PolicyModel, sampling: Sampling, stops: Stops, cache_tokens: int, *, fixed: bool | None = None) -> None:
        self.policy, self.sampling, self.stops, self.cache_tokens = policy, sampling, stops, cache_tokens
        self.body = policy.causal_lm.base_model
        self.device: torch.device = next(policy.parameters()).device
        self.head = replace(policy.head, temperature=1.0)
        self.project: Product | None = None
        self.fixed = self.device.type == "cuda" if fixed is None else fixed
        self.step: FixedStep | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool = torch.cuda.graph_pool_handle() if self.fixed and self.device.type == "cuda" else None

    @torch.no_grad()
    def run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`samples` completions for each request. The longest prompts go first, next to those of like length.

        Raises DataError for an empty prompt, FloatingPointError for logits that are not finite.
        """
        answers = Answers(requests, self.sampling.max_new_tokens, self.stops, steered=self.sampling.steers)
        waiting = deque(sorted((i for i, r in enumerate(requests) if r.samples), key=lambda i: -len(requests[i].prompt)))
        live = Batch.empty(self.device)
        try:
            with decoding_mode(self.policy.model, attention.register()), packed_linears(self.body):
                while waiting or len(live):
                    for entered in self._entrants(answers, waiting, live.reserved()):
                        live.join(self._prefill(answers, entered))
                    if len(live):
                        self._step(answers, live)
        finally:
            self.project = self.step = self.graph = None  # made of weights that may change before the next run
        return answers.completions()

    def _entrants(self, answers: Answers, waiting: deque[int], reserved: int) -> Iterator[list[int]]:
        """Requests that enter now, in groups of at most PREFILL_TOKENS."""
        free = self.cache_tokens - reserved
        if reserved and free < self.cache_tokens * ENTRY_SHARE:
            return
        group: list[int] = []
        size, nothing = 0, reserved == 0
        while waiting:
            request = answers.requests[waiting[0]]
            cost = len(request.prompt) + request.samples * self.sampling.max_new_tokens
            if cost > free and not nothing:
                break
            if group and size + len(request.prompt) > PREFILL_TOKENS:
                yield group
                group, size = [], 0
            group.append(waiting.popleft())
            size, free, nothing = size + len(request.prompt), free - cost, False
        if group:
            yield group

    def _prefill(self, answers: Answers, entered: Sequence[int]) -> Batch:
        """Run the prompts of the requests `entered`, the longest first, and draw the first token of each answer."""
        requests = [answers.requests[i] for i in entered]
        lengths = [len(request.prompt) for request in requests]
        cohorts = [self._cohort(requests[part]) for part in alike(lengths)]
        ids = self._to_device(np.concatenate([request.prompt for request in requests]).astype(np.int64))
        positions = self._to_device(np.concatenate([np.arange(length) for length in lengths]))
        hidden = self._forward(ids[None], positions[None], attention.Prefill(cohorts, positions))[0]
        of_row = self._to_device(np.repeat(np.arange(len(requests)), [request.samples for request in requests]))
        ends = self._to_device(np.cumsum(lengths))
        logits = self._logits(hidden[ends - 1])[of_row]
        seen = None
        if self.sampling.penalises:
            seen = torch.zeros(len(requests), logits.shape[1], dtype=torch.bool, device=self.device)
            seen[self._to_device(np.repeat(np.arange(len(requests)), lengths)), ids] = True
            seen = seen[of_row]
        rows = np.concatenate([answers.rows_of(i) for i in entered])
        batch = Batch(cohorts, rows, ids[:0], self._to_device(np.array(lengths))[of_row], seen)
        self._draw(answers, batch, logits)
        return batch

    def _step(self, answers: Answers, batch: Batch) -> None:
        """One more token of every live answer."""
        for cohort in batch.cohorts:
            cohort.grow()
        drawn = self._fixed_step(answers, batch) if self.fixed else None
        if drawn is None:
            batch.drop()
            logits = self._next_logits(batch.tokens[:, None], batch.positions[:, None], attention.Decode(batch.cohorts))
            batch.positions = batch.positions + 1
        for cohort in batch.cohorts:
            cohort.used += 1
        if drawn is None:
            self._draw(answers, batch, logits)
        else:
            batch.settle(answers.add(batch.rows[batch.alive], *_tokens_and_logps(drawn[:, batch.alive])))

    def _fixed_step(self, answers: Answers, batch: Batch) -> np.ndarray | None:
        """Tokens and log-probabilities [3, B]; None, from then on, where the model's forward cannot be captured."""
        if self.step is None or not self.step.fits(batch):
            self.step = FixedStep(batch, self._next_logits, self.sampling, self.pool)
        try:
            drawn = self.step(answers.uniforms(batch.rows))
            # The last graph lives until there is another: a pool of memory without a graph cannot be captured into again while anything
            # lies in it, as the workspace does that the first capture made.
            self.graph = self.step.graph or self.graph
            return drawn
        except RuntimeError as reason:
            if self.step.calls != 1 or self.pool is None:
                raise
            log.warning("decoding without CUDA graphs: this model's forward cannot be captured (%s)", str(reason).splitlines()[0])
            self.fixed, self.step = False, None
            return None

    def _next_logits(self, ids: Tensor, positions: Tensor, decoding: attention.Pass) -> Tensor:
        """[B, V] of ids [B, 1]."""
        return self._logits(self._forward(ids, positions, decoding)[:, 0])

    def _draw(self, answers: Answers, batch: Batch, logits: Tensor) -> None:
        uniform = self._to_device(answers.uniforms(batch.rows))
        tokens, *logps = sample(logits, uniform, self.sampling, batch.seen)
        found = torch.stack([tokens.double(), *(part.double() for part in logps)])
        drawn = found.cpu().numpy()  # the one time a step that the host waits for the device
        batch.advance(tokens, answers.add(batch.rows, *_tokens_and_logps(drawn)))

    def _cohort(self, requests: Sequence[Request]) -> Cohort:
        group = np.repeat(np.arange(len(requests)), [request.samples for request in requests])
        return Cohort([len(request.prompt) for request in requests], group, self.sampling.max_new_tokens, self.device)

    def _forward(self, ids: Tensor, positions: Tensor, decoding: attention.Pass) -> Tensor:
        """Final hidden states [B, L, H] of ids [B, L]."""
        hidden = self.body(input_ids=ids, position_ids=positions, use_cache=False, decoding=decoding).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Final logits [N, V] of hidden [N, H], as the policy's log-probabilities have them."""
        if self.project is None:
            self.project = self._projection(compute_dtype(hidden))
        return self.project(hidden)

    def _projection(self, dtype: torch.dtype) -> Product:
        """The head in a type, packed where it can be."""
        output: Any = self.policy.causal_lm.get_output_embeddings()
        weight, bias = dense_head(output).to(dtype), head_bias(output)
        product = packed_product(weight)
        if product is None:
            return lambda hidden: head_logits(hidden.to(dtype), weight, bias, self.head)
        return lambda hidden: finished_logits(product(hidden.to(dtype)).float(), bias, self.head)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _tokens_and_logps(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return drawn[0].astype(np.int64), drawn[1].astype(np.float32), drawn[2].astype(np.float32)


def alike(lengths: Sequence[int]) -> list[slice]:
    """Cut prompts, the longest first, into stretches whose lengths differ little."""
    cuts = [0]
    for place, length in enumerate(lengths):
        if length < ALIKE * lengths[cuts[-1]]:
            cuts.append(place)
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(lengths)], strict=True)]


class NativeGenerator(Generator):
    """Samples with `Decoder` where the model's family can be served by it, else with transformers' `generate`, and says so once.

    cache_tokens: see Decoder. cuda_graphs: whether CUDA graphs replay the steps on CUDA. The other options: see Sampling. A sample depends
    on its request's seed and its own number only; across batches the model's logits differ by rounding, which moves a draw only where its
    random number falls within that rounding of the boundary between two tokens. Runs in the caller's autocast; leaves the model's mode,
    attention and random state as they were.
    """

    def __init__(self, *, cache_tokens: int = 131072, cuda_graphs: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.cache_tokens, self.cuda_graphs = cache_tokens, cuda_graphs
        self.fallback: Generator | None = None

    def attach(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Also finds out whether the family can be served."""
        from posttrain.rollout.plain import TransformersGenerator
        from posttrain.rollout.serves import serves

        super().attach(policy, tokenizer)
        reason = serves(policy.causal_lm)
        if reason is not None:
            log.warning("rollout=native cannot serve this model (%s): sampling as rollout=transformers does.", reason)
            self.fallback = TransformersGenerator(group_size=self.group_size)
            self.fallback.attach(policy, tokenizer)

    def drawing(self, tokens: int) -> float:
        """See Generator."""
        return tokens * draw_operations(int(self.policy.causal_lm.config.get_text_config().vocab_size))

    def generate(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[list[Completion]]:
        """See Generator and `Decoder.run`."""
        asked = sampling or self.sampling
        if self.fallback is not None:
            return self.fallback.generate(requests, sampling=asked)
        fixed = None if self.cuda_graphs else False
        return Decoder(self.policy, asked, self.stops(asked), self.cache_tokens, fixed=fixed).run(requests)
