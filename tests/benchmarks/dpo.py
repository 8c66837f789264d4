"""DPO beside TRL on the common workload, in one run: pairs per second and peak memory.

    python tests/benchmarks/dpo.py [--peers ../shared/peers] [--rounds 3] [--long-answers]

Both keep a frozen copy of the model as reference and see 8 pairs a step. --long-answers: the other way round than the workload, answers
ten times longer than their prompts, so that sharing the prompt hardly helps. Each measurement is a process of its own; the two take turns.
Needs the dev extra (trl).
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

from peers import Contest, arguments, compare, workload

DPO = Contest(
    task="dpo", kind="dpo", batch=8, unit="examples_per_second", words="pairs/s",
    overrides=("method=dpo", "global_batch=8", "max_tokens=2048", "method.reference=copy"), steps=(4, 8),
    variants=(("model.compile=true",), ("hardware=2xcpu",)),
)  # fmt: skip


def long_answers(peers: Path, folder: Path, vocab: int) -> None:
    """The workload's model and tokenizer, with prompts of 5 to 15 words and answers of about 100."""
    workload(peers, folder, task="dpo", vocab=vocab)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    words = sorted({word for row in rows for word in row["prompt"][0]["content"].split()})
    rng = random.Random(0)

    def turn(role: str, low: int, high: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choices(words, k=rng.randint(low, high)))}]

    made = [{"prompt": turn("user", 5, 15), "chosen": turn("assistant", 70, 130), "rejected": turn("assistant", 70, 130)} for _ in rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--long-answers", action="store_true")
    given = parser.parse_args()
    prepare = (
        partial(long_answers, given.peers, vocab=given.vocab)
        if given.long_answers
        else partial(workload, given.peers, task="dpo", vocab=given.vocab)
    )
    title = "DPO, answers ten times longer than prompts" if given.long_answers else "DPO, long prompts"
    compare(DPO, title, prepare, given.peers, given.rounds, given.overrides)


if __name__ == "__main__":
    main()
