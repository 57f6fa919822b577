"""One model with a key/value cache for many traces at once, each row rolled back on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tracefactory.core.errors import UserError

_GRAIN = 128  # positions a cache grows by: growing copies it


@dataclass(frozen=True)
class Feed:
    """Tokens to append to a row; the logits behind the last `wanted` of them are asked for."""

    row: int
    tokens: Sequence[int]
    wanted: int


class Lane:
    """A causal language model and the keys and values of up to `rows` traces.

    Row r holds `lengths[r]` tokens in positions 0.. of the cache; new tokens are written behind them. Batches are
    padded on the right: what padding writes lies behind a row's length, where no query of that row looks, and the next
    tokens overwrite it. So going back is nothing but a smaller length, and no row depends on its neighbours.

    Memory: rows * longest row * layers * key/value heads * head size * 2 numbers, and the logits that are asked for.
    """

    def __init__(self, model: Any, rows: int, name: str = "model") -> None:
        _check_attention(model, name)
        self.lengths = [0] * rows
        self.passes = 0
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._device, self._dtype = model.device, model.dtype
        self._slots = _Slots(rows)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def run(self, feeds: Sequence[Feed]) -> Any:
        """Append tokens to rows and return the logits asked for [sum of wanted, vocabulary], in the order of `feeds`.

        Half precision logits are returned in float32.
        """
        longest = max(len(feed.tokens) for feed in feeds)
        rows = [feed.row for feed in feeds]
        before = torch.tensor([self.lengths[row] for row in rows], device=self._device)
        ids = np.zeros((len(feeds), longest), dtype=np.int64)
        for index, feed in enumerate(feeds):
            ids[index, : len(feed.tokens)] = feed.tokens
        positions = before[:, None] + torch.arange(longest, device=self._device)
        width = max(self.lengths[row] for row in rows) + longest
        self._slots.aim(rows, positions, width)
        with torch.inference_mode():
            hidden = self._body(
                input_ids=torch.from_numpy(ids).to(self._device),
                attention_mask=self._mask(positions, width),
                position_ids=positions,
                past_key_values=self._slots,
                use_cache=True,
            ).last_hidden_state
            wanted = [(i, len(f.tokens) - f.wanted + j) for i, f in enumerate(feeds) for j in range(f.wanted)]
            for feed in feeds:
                self.lengths[feed.row] += len(feed.tokens)
            self.passes += 1
            if not wanted:
                return None
            which, where = torch.tensor(wanted, device=self._device).T
            logits = self._head(hidden[which, where])
        return logits if logits.dtype == torch.float64 else logits.float()

    def keep(self, row: int, length: int) -> None:
        """Forget what a row holds behind its first `length` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a row begin with the first `length` tokens of another."""
        with torch.inference_mode():
            self._slots.copy(source, target, length)
        self.lengths[target] = length

    def _mask(self, positions: Any, width: int) -> Any:
        """Return the additive mask [rows, 1, queries, width]: a query sees the keys up to its own position."""
        hidden = torch.arange(width, device=self._device)[None, None, :] > positions[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, torch.finfo(self._dtype).min)[:, None]


class _Slots:
    """The cache as transformers sees it: `update` writes at each row's own positions and returns the rows asked for."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._layers: dict[int, list[Any]] = {}
        self._chosen: Any = slice(0)
        self._index: Any = None
        self._positions: Any = None
        self._width = 0

    def aim(self, rows: Sequence[int], positions: Any, width: int) -> None:
        """Say which rows the next pass writes, where, and how many positions it can look at."""
        in_order = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        self._index = torch.tensor(rows, device=positions.device)
        # a slice is a view; any other choice of rows is a copy of their whole cache
        self._chosen = slice(rows[0], rows[0] + len(rows)) if in_order else self._index
        self._positions, self._width = positions, width

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        held = self._layers.setdefault(layer, [])
        for place, new in enumerate((keys, values)):
            if place == len(held):
                held.append(new.new_zeros((self._rows, new.shape[1], 0, new.shape[3])))
            if held[place].shape[2] < self._width:
                size = -(-self._width // _GRAIN) * _GRAIN
                grown = new.new_zeros((self._rows, new.shape[1], size, new.shape[3]))
                grown[:, :, : held[place].shape[2]] = held[place]
                held[place] = grown
            held[place][self._index[:, None], :, self._positions] = new.transpose(1, 2)
        found = [one[self._chosen][:, :, : self._width] for one in held]
        return found[0], found[1]

    def copy(self, source: int, target: int, length: int) -> None:
        for held in self._layers.values():
            for one in held:
                one[target, :, :length] = one[source, :, :length]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._width


def _check_attention(model: Any, name: str) -> None:
    """Refuse a model whose layers keep something besides the keys and values of all tokens."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    other = {"sliding_attention"} if slides else set(kinds or ()) - {"full_attention"}
    if other:
        raise UserError(f"{name}: a model with {', '.join(sorted(other))} layers cannot be decoded in process")
