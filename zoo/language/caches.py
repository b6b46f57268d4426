"""Caches of keys and values that have room to grow in, and whose rows can be kept, dropped and joined."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, S, D] in longer buffers: a token is written in its place, where the parent copies all.

    Padding is in front, so that layers of several widths are joined at their right ends.
    """

    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        if not start:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        stop = start + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < stop:
            self._move(stop, [(self.keys, self.values)])
        assert self.room is not None
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in self.room)
        return self.keys, self.values

    def take(self, rows: Tensor, first: int = 0, more: Any = None) -> None:
        """Keep some rows from column ``first`` on, and behind them all rows of another layer."""
        if self.keys is not None and self.values is not None and self.get_seq_length():
            parts = [(self.keys[..., first:, :][rows], self.values[..., first:, :][rows])]
            self._move(0, parts if more is None else [*parts, (more.keys, more.values)])

    def _move(self, wanted: int, parts: list[tuple[Any, Any]]) -> None:
        """Into new buffers with room for ``wanted`` columns and some more."""
        width = max(keys.shape[-2] for keys, _ in parts)
        columns, rows = max(wanted, width), sum(len(keys) for keys, _ in parts)
        columns += max(columns // 2, 32)
        both = []
        for tensors in zip(*parts, strict=True):
            buffer = tensors[0].new_empty(rows, tensors[0].shape[1], columns, tensors[0].shape[3])
            row = 0
            for part in tensors:
                place = buffer[row : row + len(part), :, :width]
                row, start = row + len(part), width - part.shape[2]
                place[:, :, :start] = 0  # attention gives padding no weight, but what is there must be finite
                place[:, :, start:] = part
            both.append(buffer)
        self.room = both[0], both[1]
        self.keys, self.values = (buffer[..., :width, :] for buffer in both)


def empty_cache(config: Any) -> DynamicCache:
    """An empty cache for a network, whose full attention layers have room to grow in."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_roomy(cache: DynamicCache) -> bool:
    """Whether all layers have room, so that columns can be dropped and other caches joined."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def take(cache: DynamicCache, rows: Tensor, first: int = 0, more: DynamicCache | None = None) -> None:
    """Keep some rows of a cache from column ``first`` on, and behind them all rows of another cache.

    Other layers than those with room keep all columns: ``first`` and ``more`` need ``is_roomy``.
    """
    layer: Any
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, RoomyLayer):
            layer.take(rows, first, None if more is None else more.layers[number])
        else:
            layer.batch_select_indices(rows)
