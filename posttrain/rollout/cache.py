"""Keys and values of prompts that are answered together: each prompt's once for its whole group, each answer's own behind it.

A cohort is what entered the batch at the same time. Its answers are all equally long, so their keys need no mask; its prompts are aligned
at their ends, so that a sliding window cuts them all at the same place.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

FIRST_ROOM = 64  # tokens of an answer that there is room for at first; doubled when full


class Pair:
    """Keys and values of one layer. prefix: [P, Hk, L, D] and [P, Hk, L, E]. suffix: [N, Hk, room, D] and [N, Hk, room, E]."""

    def __init__(self, prefix: tuple[Tensor, Tensor], rows: int, room: int) -> None:
        self.prefix = prefix
        self.suffix = self._empty(rows, room)

    def _empty(self, rows: int, room: int) -> tuple[Tensor, Tensor]:
        keys, values = (x.new_zeros(rows, x.shape[1], room, x.shape[3]) for x in self.prefix)  # where nothing is yet, 0 times it is 0
        return keys, values

    def resize(self, rows: int, room: int, used: int) -> None:
        """Room for `rows` answers of `room` tokens; the first `used` tokens of the first rows are kept."""
        old, self.suffix = self.suffix, self._empty(rows, room)
        kept = min(rows, len(old[0]))
        for new, was in zip(self.suffix, old, strict=True):
            new[:kept, :, :used] = was[:kept, :, :used]

    def move(self, target: Tensor, source: Tensor, used: int) -> None:
        """Put the answers of rows `source` into rows `target`."""
        for x in self.suffix:
            x[target, :, :used] = x[source, :, :used]

    def keep_prompts(self, prompts: Tensor, longest: int) -> None:
        """Drop the other prompts' keys and values, and padding before the `longest` of those that stay."""
        keys, values = (x[prompts, :, -longest:] for x in self.prefix)
        self.prefix = keys, values


class Cohort:
    """P prompts and the N live answers to them.

    lengths: tokens of each prompt. group: int64 [N] on the host, the prompt of each live row. used: tokens of every answer in the cache.
    limit: most tokens of an answer.
    """

    def __init__(self, lengths: Sequence[int], group: np.ndarray, limit: int, device: torch.device) -> None:
        self.lengths = np.asarray(lengths)
        self.group = group
        self.limit = limit
        self.device = device
        self.used = 0
        self.rows, self.room = len(group), min(FIRST_ROOM, limit)
        self.layers: dict[Hashable, Pair] = {}
        self._arrange()

    def __len__(self) -> int:
        return len(self.group)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.lengths.max())

    def reserved(self) -> int:
        """Tokens that the cache may come to hold, its prompts' padding included."""
        return self.longest * len(self.lengths) + self.limit * self.rows

    def store(self, layer: Hashable, keys: Tensor, values: Tensor, starts: Sequence[int], window: int | None) -> None:
        """Take the prompts' keys [1, Hk, T, D] and values [1, Hk, T, E] from a packed row in which they begin at `starts`.

        Of a layer with a sliding window only what later tokens can see is kept.
        """
        longest = self.longest if window is None else max(1, min(self.longest, window - 1))
        packed = [x.new_zeros(len(starts), x.shape[1], longest, x.shape[3]) for x in (keys, values)]
        for place, (start, length) in enumerate(zip(starts, self.lengths, strict=True)):
            seen = min(int(length), longest)
            for row, x in zip(packed, (keys, values), strict=True):
                row[place, :, longest - seen :] = x[0, :, start + length - seen : start + length]
        self.layers[layer] = Pair((packed[0], packed[1]), self.rows, self.room)

    def padding_of(self, keys: int) -> Tensor | None:
        """Of the last `keys` places of the prompts, as it is added to scores [P, Hk, M, keys]; None where all have something there."""
        return None if self.padding is None else self.padding[:, None, None, self.longest - keys :]

    def append(self, layer: Hashable, keys: Tensor, values: Tensor) -> Pair:
        """Put the newest token's keys [N, Hk, 1, D] and values [N, Hk, 1, E] behind each answer's; `grow` has made room."""
        pair = self.layers[layer]
        for cache, new in zip(pair.suffix, (keys, values), strict=True):
            cache[: len(self), :, self.used] = new[:, :, 0]
        return pair

    def append_at(self, layer: Hashable, keys: Tensor, values: Tensor, place: Tensor) -> Pair:
        """As `append`, at a place that only the device knows: int64 [1]."""
        pair = self.layers[layer]
        for cache, new in zip(pair.suffix, (keys, values), strict=True):
            cache[: len(self)].index_copy_(2, place, new)
        return pair

    def grow(self) -> None:
        """Make room for one more token of every answer."""
        if self.used == self.room:
            self.room = min(2 * self.room, self.limit)
            self._resize()

    def keep(self, alive: np.ndarray) -> np.ndarray:
        """Drop the rows that are not `alive`, bool [N]; returns the new order: int64 [n], the former places of the rows that stay.

        The last rows move into the gaps, so that what stays in the cache is not copied; a cache that is a quarter empty is made smaller.
        """
        count = int(alive.sum())
        order = np.arange(count)
        gaps = np.flatnonzero(~alive[:count])
        if len(gaps):
            order[gaps] = count + np.flatnonzero(alive[count:])
            target, source = (torch.from_numpy(x).to(self.device) for x in (gaps, order[gaps]))
            for pair in self.layers.values():
                pair.move(target, source, self.used)
        self.group = self.group[order]
        self._shrink()
        self._arrange()
        return order

    def _shrink(self) -> None:
        living = np.unique(self.group)
        if 0 < 4 * len(self) <= 3 * self.rows:
            self.rows = len(self)
            self._resize()
        if 0 < len(living) < len(self.lengths):
            prompts = torch.from_numpy(living).to(self.device)
            self.lengths, self.group = self.lengths[living], np.searchsorted(living, self.group)
            for pair in self.layers.values():
                pair.keep_prompts(prompts, self.longest)

    def _resize(self) -> None:
        for pair in self.layers.values():
            pair.resize(self.rows, self.room, self.used)

    def _arrange(self) -> None:
        """How rows lie by prompt: `slots` [P * G], the row of each place of a prompt's group (0 where it is empty), `home` [N], the place
        of each row; both None where rows already lie so. `padding` float32 [P, longest], added to scores: -inf where a prompt shorter than
        the longest has nothing; None where all are equally long."""
        counts = np.bincount(self.group, minlength=len(self.lengths))
        self.width = int(counts.max(initial=0))
        order = np.argsort(self.group, kind="stable")
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        home = np.empty(len(order), np.int64)
        home[order] = self.group[order] * self.width + rank
        self.slots = self.home = None
        if len(home) != len(counts) * self.width or (home != np.arange(len(home))).any():
            slots = np.zeros(len(counts) * self.width, np.int64)
            slots[home] = np.arange(len(home))
            self.slots, self.home = (torch.from_numpy(x).to(self.device) for x in (slots, home))
        short = self.longest - self.lengths
        self.padding = None
        if short.any():
            nothing = np.arange(self.longest)[None] < short[:, None]
            self.padding = torch.from_numpy(np.where(nothing, np.float32(-np.inf), np.float32(0))).to(self.device)
