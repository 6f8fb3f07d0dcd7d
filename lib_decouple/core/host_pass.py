"""Maps read off the passes that the host makes anyway, of their conditional rows alone.

Nothing here can change or fail such a pass: what goes wrong is kept, and told to whoever asks for the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .gradient import rows
from .maps import AttentionReplaced, Capture, Columns, ContextMisfit, MapReader, attention, full_precision


class ConditionalRows(Protocol):
    """Which rows of a host's calls of its denoiser are conditional; made anew for each of its passes.

    Conditional rows are numbered image-major, an image's AND parts consecutive.
    """

    @property
    def totals(self) -> Collection[int]:
        """How many rows the calls of one pass may have together."""

    def of_call(self, rows: int, given: Mapping[str, Any]) -> Mapping[int, int]:
        """Of the next call, with so many ``rows`` and the keywords ``given``: its row -> the conditional row's number;
        empty where it has none."""

    def repeats(self, tokens: int) -> int:
        """How many times a context of so many ``tokens`` holds the prompt's own, to bring it to another's length."""


@dataclass
class RowsInOrder:
    """Conditional rows that come one after the other in as many calls as it takes, ``before`` them others.

    ``others``: how many rows a pass may have beside them.
    """

    count: int
    before: int = 0
    others: tuple[int, ...] = (0,)
    _seen: int = field(default=0, init=False)

    @property
    def totals(self) -> Collection[int]:
        """See :class:`ConditionalRows`."""
        return {self.count + own for own in self.others}

    def of_call(self, rows: int, given: Mapping[str, Any]) -> Mapping[int, int]:
        """See :class:`ConditionalRows`."""
        first, self._seen = self._seen - self.before, self._seen + rows
        return {row: first + row for row in range(rows) if 0 <= first + row < self.count}

    def repeats(self, tokens: int) -> int:
        """See :class:`ConditionalRows`."""
        return 1


@dataclass
class HostPass:
    """What one of the host's passes has left."""

    reader: MapReader
    make_rows: Callable[[], ConditionalRows]
    fault: Exception | None = None
    """Why nothing can be told of it."""
    graph: bool = False
    """Do the maps keep what a gradient is taken by?"""
    over: Callable[[], None] = lambda: None
    """Called when the last layer of a call was read."""
    dtype: torch.dtype | None = None
    """Of the queries: what the denoiser computes in."""
    _rows: ConditionalRows | None = None
    _columns: Columns = field(init=False)
    _maps: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Layer -> number of a conditional row -> ``[tokens, pixels]``."""
    _total: int = 0
    _call: Mapping[int, int] = field(default_factory=dict)
    _count: int = 0
    _unread: set[str] = field(default_factory=set)
    """Layers that the current call has still to pass."""

    def __post_init__(self) -> None:
        self._columns = self.reader.columns

    def maps(self, size: Sequence[int], images: Sequence[int]) -> dict[int, Tensor]:
        """Entity maps ``[entities, h, w]`` of each of ``images`` whose every AND part the host draws with (Forge leaves
        out those that another prompt of the batch has not); ``size`` is the latents' height and width.

        Raises what went wrong during the pass, and ValueError when it was not the host's usual one.
        """
        if self.fault is not None:
            raise self.fault
        if self._rows is None:
            raise AttentionReplaced("rows: the model was not called")
        if self._total not in self._rows.totals:
            raise AttentionReplaced(f"rows: {self._total} instead of one of {sorted(self._rows.totals)}")
        parts = [plan.parts for plan in self.reader.images]
        rows_of = {image: range(sum(parts[:image]), sum(parts[: image + 1])) for image in images}
        whole = [k for k, own in rows_of.items() if all(set(own) <= layer.keys() for layer in self._maps.values())]
        if not whole:
            raise AttentionReplaced(f"rows: of no image all {[list(own) for own in rows_of.values()]} were seen")
        capture = Capture(None if self.reader.tokens is None else tuple(self.reader.tokens))
        for name, seen in self._maps.items():
            capture.maps[name] = torch.stack([seen[row] for image in whole for row in rows_of[image]])
        # Maps of a host that draws in inference mode are to be ordinary tensors.
        with torch.inference_mode(False), torch.set_grad_enabled(self.graph):
            capture.maps = {name: own.clone() for name, own in capture.maps.items()}
            with full_precision(next(iter(capture.maps.values())).device if capture.maps else torch.device("cpu")):
                return dict(zip(whole, self.reader.maps(capture, size, whole)))

    def forget(self) -> None:
        """Keep no maps, nor what a gradient of them is taken by."""
        self._maps.clear()

    def opened(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """The denoiser is called."""
        batch = args[0] if args else next(iter(given.values()))
        self._count = len(batch)
        self._total += self._count
        self._rows = self._rows or self.make_rows()
        self._call = self._rows.of_call(self._count, given)
        self._unread = {layer.name for layer in self.reader.layers}

    @property
    def in_call(self) -> Mapping[int, int]:
        """Row of the current call -> number of a conditional row."""
        return self._call

    def read(self, name: str, parts: Any, query: Tensor, key: Tensor) -> None:
        """A layer attends."""
        if self._rows is None or not self._call:
            return
        if len(query) != self._count or len(key) != self._count or name not in self._unread:
            raise AttentionReplaced(
                f"layers: {name} attends with {len(query)} rows, or twice, in a call of {self._count}"
            )
        self._unread.discard(name)
        chosen, tokens = list(self._call), self.reader.tokens
        repeats = self._rows.repeats(key.shape[1])
        if repeats > 1 and tokens is None:
            raise ContextMisfit("tokens: a repeated context has no single place for each")
        with torch.set_grad_enabled(self.graph):
            found = attention(parts, rows(query, chosen), rows(key, chosen), self._columns) * repeats
        self._maps.setdefault(name, {}).update(zip(self._call.values(), found))
        self.dtype = query.dtype
        if not self._unread:
            self.over()


@contextmanager
def reading_beside(
    model: nn.Module, reader: MapReader, rows: Callable[[], ConditionalRows], graph: bool = False
) -> Iterator[HostPass]:
    """Read the maps of the conditional rows while the body has the host make a pass of its own.

    ``model`` is the denoiser that the host calls, ``rows`` is asked at its first call. The hooks come off whatever
    happens, and nothing is raised but what the body raises. ``graph``: see :class:`HostPass`.
    """
    passed = HostPass(reader, rows, graph=graph)
    handles: list[Any] = []

    def safely(act: Any, *given: Any) -> None:
        if passed.fault is None:
            try:
                act(*given)
            except Exception as error:
                passed.fault = error

    def hook(layer: Any) -> None:
        parts = layer.reader(layer.module)
        queries: list[Tensor] = []

        def keep(query: Tensor) -> None:
            queries[:] = [query]

        def read(key: Tensor) -> None:
            if not queries:
                raise AttentionReplaced(f"layers: {layer.name} projects its keys before its queries")
            passed.read(layer.name, parts, queries.pop(), key)

        handles.append(parts.query.register_forward_hook(lambda _, __, query: safely(keep, query)))
        handles.append(parts.key.register_forward_hook(lambda _, __, key: safely(read, key)))

    def begin() -> None:
        handles.append(
            model.register_forward_pre_hook(lambda _, args, given: safely(passed.opened, args, given), with_kwargs=True)
        )
        for layer in reader.layers:
            hook(layer)

    try:
        safely(begin)
        yield passed
    finally:
        for handle in handles:
            handle.remove()
