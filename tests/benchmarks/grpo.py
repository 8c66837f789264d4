"""GRPO beside TRL on the common workload, in one run: prompts per second of full steps (sampling, reference, update) and peak memory.

    python tests/benchmarks/grpo.py [--peers ../shared/peers] [--rounds 3]

A step sees 4 prompts with 8 answers each of 128 tokens; both keep a frozen copy of the model as reference, with a divergence of weight
0.04 in the loss, and pay for the same sum of characters. Each measurement is a process of its own; the two take turns. Needs the dev extra.
"""

from __future__ import annotations

from pathlib import Path

from peers import Contest, arguments, compare, workload

REWARD = """
def score(prompt, completion, answer, meta):
    return float(sum(map(ord, completion)) % 7)
"""


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--vocab", type=int, default=8192)
    given = parser.parse_args()

    def prepare(folder: Path) -> None:
        workload(given.peers, folder, task="grpo", vocab=given.vocab)
        (folder / "score.py").write_text(REWARD)

    def contest(folder: Path) -> Contest:
        return Contest(
            task="grpo", kind="grpo", batch=4, unit="examples_per_second", words="prompts/s", steps=(3, 5),
            overrides=(
                "method=grpo", "method.loss=dapo", "method.kl.coef=0.04", "method.reference=copy", "global_batch=4", "max_tokens=4096",
                "max_length=1024", "rollout.max_new_tokens=128", "reward=function", f"reward.function.path={folder / 'score.py'}:score",
                "log.samples_every=null",
            ),
            variants=(("hardware=2xcpu",),),
        )  # fmt: skip

    compare(contest, "GRPO, 4 prompts x 8 answers x 128 tokens a step", prepare, given.peers, given.rounds, given.overrides)


if __name__ == "__main__":
    main()
