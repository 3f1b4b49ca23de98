"""The published embeddings: what a learner writes and a client reads, in memory.

A learner *begins* an epoch, *publishes* rows into it, and *flips* it into view; from then on it
publishes the rows that each micro-batch touched. A reader is bound to one epoch: however long a
request takes, its vectors, counts and weights come from one model. ``serving.redis_table`` is the
same over Redis.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from serving.rows import (
    ROW_LAYOUT,
    Barrier,
    Covisited,
    ItemRows,
    Layout,
    UserRows,
    decode_covisited,
    decode_items,
    decode_users,
    decode_weights,
    encode_covisited,
    encode_items,
    encode_users,
    encode_weights,
)
from stream.errors import BadData, BadOutput, TableError

FILE_NAME = "table"
"""What :meth:`MemoryTable.save` is asked to call its file in the output folder of a replay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """The rows that changed, and up to where they have learned.

    Each row replaces the one before it whole; an update applied twice is an update applied once.

    Parameters
    ----------
    barrier
        Step and event time that the rows stand for.
    users, items
        Touched rows.
    covisited
        Touched lists by ``item_id``.
    seen
        What each user has newly met, by ``user_id``: added to the user's seen set.
    weights
        The fusion weights, all of them; ``None`` leaves the published ones.
    gone_users, gone_items
        Ids to forget with everything under them, before the rows are written.

    """

    barrier: Barrier
    users: UserRows | None = None
    items: ItemRows | None = None
    covisited: Mapping[str, Covisited] = field(default_factory=dict)
    seen: Mapping[str, Collection[str]] = field(default_factory=dict)
    weights: Mapping[str, NDArray[Any]] | None = None
    gone_users: Collection[str] = ()
    gone_items: Collection[str] = ()


class Reader(Protocol):
    """One epoch of the table. Ids that were never published are left out of every answer."""

    @property
    def epoch(self) -> int:
        """Number of the epoch; greater is newer."""
        ...

    @property
    def layout(self) -> Layout:
        """What the rows hold."""
        ...

    def barrier(self) -> Barrier:
        """Return up to where the learner has published into this epoch."""
        ...

    def users(self, user_ids: Sequence[str]) -> UserRows:
        """Return the rows of the users that are known, in the order asked for."""
        ...

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        """Return the rows of the items that are known, in the order asked for."""
        ...

    def item_ids(self) -> list[str]:
        """Return every published item, sorted."""
        ...

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        """Return the lists of the items that have one."""
        ...

    def seen(self, user_id: str) -> frozenset[str]:
        """Return every item that the user has met."""
        ...

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the fusion weights."""
        ...


class Table(Protocol):
    """Where a learner publishes. One writer at a time; any number of readers."""

    def begin(self, layout: Layout) -> int:
        """Open a new epoch, out of sight, for the updates to come; return its number."""
        ...

    def publish(self, update: Update) -> None:
        """Write an update into the epoch that was begun, in view or not.

        Raises
        ------
        TableError
            If no epoch was begun, a row cannot be stored, or another learner has taken over.

        """
        ...

    def flip(self) -> None:
        """Bring the begun epoch into view at once, in place of the one before.

        Readers of the one before finish with it.

        Raises
        ------
        TableError
            If nothing was published into the epoch, or another learner has taken over.

        """
        ...

    def reader(self) -> Reader:
        """Return a reader of the epoch in view.

        Raises
        ------
        TableError
            If there is none yet, or its rows are of another layout version.

        """
        ...


class _Epoch(msgspec.Struct):
    """The rows of one epoch, encoded."""

    row_layout: int
    epoch: int
    layout: Layout
    barrier: Barrier | None = None
    users: dict[str, bytes] = {}
    items: dict[str, bytes] = {}
    covisited: dict[str, bytes] = {}
    seen: dict[str, set[str]] = {}
    weights: bytes = encode_weights({})


class MemoryTable:
    """A table in this process, for the embedded run; it can be saved to a file and read back.

    Notes
    -----
    Rows are kept as the bytes that Redis would hold, so a vector in fp16 is rounded here as well.
    One thread at a time.

    Examples
    --------
    >>> import numpy as np
    >>> table = MemoryTable()
    >>> table.begin(Layout(dim=2))
    1
    >>> rows = UserRows(["712"], np.array([[1.0, 2.0]], np.float32), np.array([60]))
    >>> table.publish(Update(barrier=Barrier(step=1, at_ms=60, published_ms=99), users=rows))
    >>> table.flip()
    >>> table.reader().users(["712", "nobody"]).vectors.tolist()
    [[1.0, 2.0]]

    """

    def __init__(self) -> None:
        self._written: _Epoch | None = None
        self._current: _Epoch | None = None

    def begin(self, layout: Layout) -> int:
        """Open a new epoch, out of sight, for the updates to come; return its number."""
        before = max((e.epoch for e in (self._written, self._current) if e is not None), default=0)
        self._written = _Epoch(ROW_LAYOUT, before + 1, layout)
        return before + 1

    def publish(self, update: Update) -> None:
        """Write an update into the epoch that was begun, in view or not."""
        epoch = self._begun()
        # Encode all, then write: an update that is refused changes nothing.
        users, items = {}, {}
        published_ms = update.barrier.published_ms
        if (rows := update.users) is not None:
            values = encode_users(epoch.layout, rows, published_ms)
            users = dict(zip(rows.ids, values, strict=True))
        if (block := update.items) is not None:
            values = encode_items(epoch.layout, block, published_ms)
            items = dict(zip(block.ids, values, strict=True))
        for user_id in update.gone_users:
            epoch.users.pop(user_id, None)
            epoch.seen.pop(user_id, None)
        for item_id in update.gone_items:
            epoch.items.pop(item_id, None)
            epoch.covisited.pop(item_id, None)
        epoch.users.update(users)
        epoch.items.update(items)
        for item_id, row in update.covisited.items():
            epoch.covisited[item_id] = encode_covisited(row)
        for user_id, item_ids in update.seen.items():
            epoch.seen.setdefault(user_id, set()).update(item_ids)
        if update.weights is not None:
            epoch.weights = encode_weights(update.weights)
        epoch.barrier = update.barrier

    def flip(self) -> None:
        """Bring the begun epoch into view at once, in place of the one before."""
        epoch = self._begun()
        if epoch.barrier is None:
            raise TableError(f"epoch {epoch.epoch} is empty: publish into it before the flip")
        self._current = epoch

    def reader(self) -> Reader:
        """Return a reader of the epoch in view."""
        if self._current is None:
            raise TableError("nothing is published yet: begin, publish and flip come first")
        return _MemoryReader(self._current)

    def save(self, path: Path) -> None:
        """Write the epoch in view to a file, at once or not at all.

        Raises
        ------
        TableError
            If there is no epoch in view.
        BadOutput
            If the file cannot be written.

        """
        if self._current is None:
            raise TableError("nothing is published yet: there is no table to save")
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.msgpack.encode(self._current, order="sorted"))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise BadOutput(f"the table cannot be written to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> MemoryTable:
        """Read what :meth:`save` wrote: a file, or the folder that holds one.

        Raises
        ------
        BadData
            If there is no such file, or it is not a whole table of this row layout.

        """
        file = path / FILE_NAME if path.is_dir() else path
        try:
            epoch = msgspec.msgpack.decode(file.read_bytes(), type=_Epoch)
        except OSError as error:
            raise BadData(
                f"want a table saved by a replay at {file}: {error.strerror}; "
                "give the folder that was the replay's --out"
            ) from error
        except msgspec.DecodeError as error:
            raise BadData(f"{file} is not a whole table saved by a replay: {error}") from error
        if epoch.row_layout != ROW_LAYOUT:
            raise BadData(
                f"{file} holds row layout {epoch.row_layout}, this program reads {ROW_LAYOUT}: "
                "replay the log anew"
            )
        table = cls()
        table._written = table._current = epoch
        return table

    def _begun(self) -> _Epoch:
        if self._written is None:
            raise TableError("no epoch was begun: call begin before publish and flip")
        return self._written


class _MemoryReader:
    """One epoch of a :class:`MemoryTable`."""

    def __init__(self, epoch: _Epoch) -> None:
        self._rows = epoch

    @property
    def epoch(self) -> int:
        return self._rows.epoch

    @property
    def layout(self) -> Layout:
        return self._rows.layout

    def barrier(self) -> Barrier:
        assert self._rows.barrier is not None  # an epoch in view has one: flip
        return self._rows.barrier

    def users(self, user_ids: Sequence[str]) -> UserRows:
        known = [user_id for user_id in user_ids if user_id in self._rows.users]
        return decode_users(self.layout, known, [self._rows.users[u] for u in known])

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        known = [item_id for item_id in item_ids if item_id in self._rows.items]
        return decode_items(self.layout, known, [self._rows.items[i] for i in known])

    def item_ids(self) -> list[str]:
        return sorted(self._rows.items)

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        lists = self._rows.covisited
        return {i: decode_covisited(lists[i]) for i in item_ids if i in lists}

    def seen(self, user_id: str) -> frozenset[str]:
        return frozenset(self._rows.seen.get(user_id, ()))

    def weights(self) -> dict[str, NDArray[Any]]:
        return decode_weights(self._rows.weights)
