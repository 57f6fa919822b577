"""A model with a batched key/value cache whose rows can be rolled back independently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tracefactory.core.errors import UserError

_GROWTH = 128  # positions by which the cache grows; growing copies it


@dataclass(frozen=True)
class Feed:
    """Tokens to append to a row, and for how many of them (the last ones) to return logits."""

    row: int
    tokens: Sequence[int]
    num_logits: int


class CachedModel:
    """A causal language model with the keys and values of up to `rows` traces.

    Row r holds `lengths[r]` tokens, from position 0 of the cache; new tokens are written after them. Batches are padded
    on the right: padding is written beyond a row's length, where no query of that row attends, and the next tokens
    overwrite it. Rolling back therefore only reduces the length, and rows are independent of each other.

    Memory: rows * longest row * layers * key/value heads * head size * 2 numbers, plus the requested logits.
    """

    def __init__(self, model: Any, rows: int, name: str = "model") -> None:
        _check_attention(model, name)
        self.rows = rows
        self.lengths = [0] * rows
        self.passes = 0
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._device, self._dtype = model.device, model.dtype
        self._cache = _BatchedCache(rows)

    def forward(self, feeds: Sequence[Feed]) -> Any:
        """Append tokens to rows.

        Returns:
            The requested logits [sum of num_logits, vocabulary], in order of `feeds`; None when none were requested.
            Half precision logits are returned as float32.
        """
        longest = max(len(feed.tokens) for feed in feeds)
        rows = [feed.row for feed in feeds]
        before = torch.tensor([self.lengths[row] for row in rows], device=self._device)
        ids = np.zeros((len(feeds), longest), dtype=np.int64)
        for index, feed in enumerate(feeds):
            ids[index, : len(feed.tokens)] = feed.tokens
        positions = before[:, None] + torch.arange(longest, device=self._device)
        width = max(self.lengths[row] for row in rows) + longest
        self._cache.select_rows(rows, positions, width)
        # additive mask [rows, 1, queries, width]: a query attends to the keys up to its own position
        later = torch.arange(width, device=self._device)[None, None, :] > positions[:, :, None]
        mask = torch.zeros(later.shape, dtype=self._dtype, device=self._device)
        mask = mask.masked_fill_(later, torch.finfo(self._dtype).min)[:, None]
        with torch.inference_mode():
            hidden = self._body(
                input_ids=torch.from_numpy(ids).to(self._device),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            requested = [
                (i, len(f.tokens) - f.num_logits + j) for i, f in enumerate(feeds) for j in range(f.num_logits)
            ]
            for feed in feeds:
                self.lengths[feed.row] += len(feed.tokens)
            self.passes += 1
            if not requested:
                return None
            batch_index, token_index = torch.tensor(requested, device=self._device).T
            logits = self._head(hidden[batch_index, token_index])
        return logits if logits.dtype == torch.float64 else logits.float()

    def truncate(self, row: int, length: int) -> None:
        """Discard all but the first `length` tokens of a row."""
        self.lengths[row] = min(self.lengths[row], length)

    def copy_prefixes(self, sources: Mapping[int, tuple[int, int]]) -> None:
        """Replace rows by the first tokens of other rows.

        Args:
            sources: the row to copy from and the number of tokens, by the row to replace; no row is in both places.
        """
        if not sources:
            return
        targets = torch.tensor([*sources], device=self._device)
        rows = torch.tensor([row for row, _ in sources.values()], device=self._device)
        longest = max(length for _, length in sources.values())
        with torch.inference_mode():
            for stored in self._cache.layers.values():
                for tensor in stored:
                    held = tensor[:, :, :longest]
                    held.index_copy_(0, targets, held.index_select(0, rows))
        for target, (_, length) in sources.items():
            self.lengths[target] = length


class _BatchedCache:
    """The cache in the interface of transformers.

    `layers` are the keys and the values of each layer, [rows, key/value heads, positions, head size].
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.layers: dict[int, list[Any]] = {}
        self._chosen: Any = slice(0)
        self._index: Any = None
        self._positions: Any = None
        self._width = 0

    def select_rows(self, rows: Sequence[int], positions: Any, width: int) -> None:
        """Select the rows that the next pass writes, their positions, and the number of positions it can attend to."""
        in_order = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        self._index = torch.tensor(rows, device=positions.device)
        # a slice is a view; indexing with a list of rows copies their whole cache
        self._chosen = slice(rows[0], rows[0] + len(rows)) if in_order else self._index
        self._positions, self._width = positions, width

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write keys and values at each selected row's positions; return those of the rows up to the pass's width."""
        stored = self.layers.setdefault(layer, [])
        for part, new in enumerate((keys, values)):
            if part == len(stored):
                stored.append(new.new_zeros((self._rows, new.shape[1], 0, new.shape[3])))
            if stored[part].shape[2] < self._width:
                size = -(-self._width // _GROWTH) * _GROWTH
                grown = new.new_zeros((self._rows, new.shape[1], size, new.shape[3]))
                grown[:, :, : stored[part].shape[2]] = stored[part]
                stored[part] = grown
            stored[part][self._index[:, None], :, self._positions] = new.transpose(1, 2)
        selected = [tensor[self._chosen][:, :, : self._width] for tensor in stored]
        return selected[0], selected[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of positions that the pass can attend to."""
        return self._width


def _check_attention(model: Any, name: str) -> None:
    """Raise UserError for a model with layers other than full attention; the cache stores only keys and values."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    other = {"sliding_attention"} if slides else set(kinds or ()) - {"full_attention"}
    if other:
        raise UserError(f"{name}: a model with {', '.join(sorted(other))} layers cannot be decoded in process")
