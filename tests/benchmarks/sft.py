"""SFT beside TRL (packed) on the common workload, in one run: real tokens per second, peak memory, share of the matmul rate.

    python tests/benchmarks/sft.py [--peers ../shared/peers] [--rounds 3] [--vocab 8192 65536]

Each measurement is a process of its own; the two frameworks take turns. Needs the dev extra (trl). Prints one table a vocabulary.
"""

from __future__ import annotations

from functools import partial

from peers import Contest, arguments, compare, workload

# TRL: 2 packed rows of 1,024 tokens a step; ours: 8 conversations, about as many
SFT = Contest(
    task="sft", kind="sft", batch=2, unit="tokens_per_second", words="tokens/s",
    overrides=("method=sft", "global_batch=8", "max_tokens=2048"), steps=(8, 14),
    variants=(("model.compile=true",), ("hardware=2xcpu",)),
)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 65536])
    given = parser.parse_args()
    for vocab in given.vocab:
        prepare = partial(workload, given.peers, task="sft", vocab=vocab)
        compare(SFT, f"SFT (TRL packed), vocabulary {vocab:,}", prepare, given.peers, given.rounds, given.overrides)


if __name__ == "__main__":
    main()
