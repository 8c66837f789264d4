"""The order of an epoch is made once, however many prompts are asked for."""

import numpy as np

from posttrain.rollout.plan import make_experience_plan


def test_an_epochs_order_is_made_once():
    made = []

    def order(epoch):
        made.append(epoch)
        return np.arange(10)

    plan = make_experience_plan(
        order, longest_prompt=5, group_size=2, max_new_tokens=6, global_batch=4, minibatches=1, rollout_epochs=1, max_tokens=30, ranks=1,
        max_steps=9, epochs=None, seed=0,
    )  # fmt: skip
    assert [plan.prompt_at(place) for place in range(20)] == [*range(10), *range(10)]
    assert made == [0, 1]
