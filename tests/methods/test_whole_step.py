"""Losses that compare all pairs of a step: whatever the split, the gradients are those of the pairs together."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from posttrain.functional import preference
from posttrain.methods.parts import whole_step
from posttrain.methods.parts.whole_step import step_gradients
from posttrain.types import PairLogps

LOSSES = {
    "aot": partial(preference.aot, beta=0.3),
    "aot_smoothed": partial(preference.aot, beta=0.3, label_smoothing=0.2),
    "aot_unpaired": partial(preference.aot_unpaired, beta=0.3),
    "aot_unpaired_smoothed": partial(preference.aot_unpaired, beta=0.3, label_smoothing=0.2),
    "weighted": partial(preference.weighted, beta=0.3, terms={"aot": 0.5, "aot_unpaired": 0.25, "bco": 0.2}),
}
SPLITS = [[8], [4, 4], [1, 2, 5], [3, 0, 5], [1] * 8]
BASELINE = torch.tensor(0.25, dtype=torch.float64)


def pairs(first=0, last=8):
    """Pairs first .. last - 1 of eight, leaves of a graph of their own."""
    generator = torch.Generator().manual_seed(3)
    numbers = 10 * torch.randn(4, 8, generator=generator, dtype=torch.float64)
    chosen, rejected, *reference = (row[first:last].clone() for row in numbers)
    lengths = torch.arange(1.0, 9.0, dtype=torch.float64)[first:last]
    return PairLogps(chosen.requires_grad_(), rejected.requires_grad_(), lengths, lengths, *reference, BASELINE)


def split(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [pairs(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up_to_the_step(name, sizes):
    whole = pairs()
    losses = LOSSES[name](whole)
    losses.sum().backward()
    parts = split(sizes)
    gradients = step_gradients(LOSSES[name], parts)
    found = [gradients.losses(part, place) for place, part in enumerate(parts)]
    for part in found:  # one after the other, as micro-batches are
        part.sum().backward()
    close(torch.cat(found).detach(), losses.detach())
    close(torch.cat([part.chosen.grad for part in parts]), whole.chosen.grad)
    close(torch.cat([part.rejected.grad for part in parts]), whole.rejected.grad)


def test_pairs_of_other_ranks_count(monkeypatch):
    whole, mine = pairs(), [pairs(3, 5), pairs(5, 8)]
    LOSSES["aot"](whole).sum().backward()
    elsewhere = {name: value.detach()[:3] for name, value in vars(whole).items() if name != "baseline"}
    monkeypatch.setattr(whole_step, "gather", lambda value: [elsewhere, value])
    monkeypatch.setattr(whole_step, "_rank", lambda: 1)
    gradients = step_gradients(LOSSES["aot"], mine)
    close(torch.cat(list(gradients.values)), LOSSES["aot"](pairs())[3:].detach())
    close(torch.cat(list(gradients.chosen)), whole.chosen.grad[3:])
    close(torch.cat(list(gradients.rejected)), whole.rejected.grad[3:])


def test_each_micro_batch_by_itself_would_be_another_loss():
    parts = split([4, 4])
    apart = torch.cat([LOSSES["aot"](part) for part in parts])
    assert (apart.sum() - LOSSES["aot"](pairs()).sum()).abs() > 0.1


def test_a_factor_on_the_losses_scales_the_gradient():
    # what a method does with them: part of the step's mean, times the micro-batches of the step
    parts, plain = split([3, 5]), split([3, 5])
    gradients = step_gradients(LOSSES["aot"], parts)
    (gradients.losses(parts[1], 1).sum() / 8 * 2).backward()
    gradients.losses(plain[1], 1).sum().backward()
    close(parts[1].chosen.grad, plain[1].chosen.grad / 4)


def test_what_was_read_before_is_left_as_it_was():
    parts = [replace(part, chosen=part.chosen.detach(), rejected=part.rejected.detach()) for part in split([3, 5])]
    with torch.no_grad():
        gradients = step_gradients(LOSSES["aot_unpaired"], parts)
    assert not any(part.chosen.requires_grad for part in parts)
    assert not any(part.requires_grad for group in (gradients.values, gradients.chosen, gradients.rejected) for part in group)


def test_pairs_without_a_reference():
    parts = [replace(part, reference_chosen=None, reference_rejected=None, baseline=None) for part in split([3, 5])]
    gradients = step_gradients(preference.cpo, parts)
    for place, part in enumerate(parts):
        want = torch.autograd.grad(preference.cpo(part).sum(), [part.chosen, part.rejected])
        got = torch.autograd.grad(gradients.losses(part, place).sum(), [part.chosen, part.rejected])
        close(torch.stack(got), torch.stack(want))
