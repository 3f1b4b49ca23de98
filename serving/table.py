"""The published embeddings: what a learner writes and a client reads, in memory.

A learner *begins* an epoch, *publishes* rows into it, and *flips* it into view; from then on it
publishes the rows that each micro-batch touched. A reader is bound to one epoch: however long a
request takes, its vectors, counts and weights come from one model. Attributes and what the learner
tells about itself belong to no epoch. ``serving.redis_table`` is the same over Redis.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from numpy.typing import NDArray

from serving.changes import CHANGES_KEPT, Changes, joined
from serving.rows import (
    ROW_LAYOUT,
    Attributes,
    Barrier,
    Covisited,
    ItemRows,
    Layout,
    UserRows,
    decode_attributes,
    decode_covisited,
    decode_items,
    decode_users,
    decode_weights,
    encode_attributes,
    encode_covisited,
    encode_items,
    encode_users,
    encode_weights,
)
from stream.errors import BadData, BadOutput, TableError

FILE_NAME: Final = "table"
"""What :meth:`MemoryTable.save` is asked to call its file in the output folder of a replay."""

EPOCHS_KEPT: Final = 2
"""The newest epochs that were brought into view: the learner's and the one before. Besides them
the one that is pinned is kept, and those that :meth:`Table.keep` names."""


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
    item_attributes, user_attributes
        What was said of items and users, by id, all of it; they belong to no epoch. Empty ones are
        taken away.
    gone_users, gone_items
        Ids to forget with everything under them, attributes too, before anything is written; users
        in every epoch that is kept.

    """

    barrier: Barrier
    users: UserRows | None = None
    items: ItemRows | None = None
    covisited: Mapping[str, Covisited] = field(default_factory=dict)
    seen: Mapping[str, Collection[str]] = field(default_factory=dict)
    weights: Mapping[str, NDArray[Any]] | None = None
    item_attributes: Mapping[str, Attributes] = field(default_factory=dict)
    user_attributes: Mapping[str, Attributes] = field(default_factory=dict)
    gone_users: Collection[str] = ()
    gone_items: Collection[str] = ()

    def changes(self) -> Changes:
        """Return what the update touches, for the change feed."""
        items = () if self.items is None else self.items.ids
        users = () if self.users is None else self.users.ids
        return Changes(
            "",
            frozenset((*items, *self.covisited, *self.item_attributes)),
            frozenset(self.gone_items),
            frozenset((*users, *self.seen, *self.user_attributes)),
            frozenset(self.gone_users),
        )

    def changes_elsewhere(self) -> Changes:
        """Return what the update touches in the other epochs that are kept, for their feeds.

        There an item that is gone keeps its row, but not its attributes.
        """
        return Changes(
            "",
            items=frozenset((*self.item_attributes, *self.gone_items)),
            users=frozenset(self.user_attributes),
            gone_users=frozenset(self.gone_users),
        )


class EpochInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model that readers can be given.

    Parameters
    ----------
    epoch
        Its number; greater is newer.
    step, at_ms, published_ms
        Its barrier: how far it has learned, and when that was written.
    in_view
        Whether readers are given this one now.
    pinned
        Whether it was pinned; else it is given for being the newest.

    """

    epoch: int
    step: int
    at_ms: int
    published_ms: int
    in_view: bool
    pinned: bool


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

    def user_ids(self, most: int) -> list[str]:
        """Return every published user once, in no order; of more than ``most`` a random draw."""
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

    def seen(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return every item that each user has met; none for a user who is not there."""
        ...

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the fusion weights."""
        ...

    def item_attributes(self, item_ids: Sequence[str]) -> dict[str, Attributes]:
        """Return the attributes of the items that have some, whatever the epoch."""
        ...

    def user_attributes(self, user_ids: Sequence[str]) -> dict[str, Attributes]:
        """Return the attributes of the users that have some, whatever the epoch."""
        ...

    def all_item_attributes(self) -> dict[str, Attributes]:
        """Return the attributes of every item that has some, in the order of ids."""
        ...

    def all_user_attributes(self) -> dict[str, Attributes]:
        """Return the attributes of every user who has some, in the order of ids."""
        ...

    def report(self) -> dict[str, Any] | None:
        """Return what the learner last told about itself, whatever the epoch."""
        ...

    def cursor(self) -> str:
        """Return the present end of the change feed; take it before you read everything."""
        ...

    def changes(self, after: str, *, wait_ms: int = 0) -> Changes:
        """Return what was published into this epoch since ``after``, a cursor of this epoch.

        Rows read afterwards are at least as new as the changes say. A cursor that is not known,
        say of a table that was emptied, gives :attr:`Changes.whole`.

        Parameters
        ----------
        after
            From :meth:`cursor`, or of the changes before.
        wait_ms
            While there are none, wait for some, up to this long; it may be shorter.

        """
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

    def tell(self, report: Mapping[str, Any]) -> None:
        """Write what the learner says of itself, in place of what it said before."""
        ...

    def reader(self, epoch: int | None = None) -> Reader:
        """Return a reader of an epoch.

        Parameters
        ----------
        epoch
            One of :meth:`epochs`; ``None``: the one in view, which is the pinned one while it is
            there, else the newest.

        Raises
        ------
        TableError
            If there is none yet, or not that one, or its rows are of another layout version.

        """
        ...

    def epochs(self) -> list[EpochInfo]:
        """Return the epochs that can be pinned, the newest first."""
        ...

    def pin(self, epoch: int | None) -> None:
        """Give readers this epoch from now on; ``None``: follow the learner again.

        The learner is not disturbed: it goes on writing into its own epoch. A pinned epoch is kept
        until another one, or none, is pinned and the learner flips.

        Raises
        ------
        TableError
            If it is none of :meth:`epochs`.

        """
        ...

    def keep(self, epochs: Collection[int]) -> None:
        """Keep these epochs from now on, in place of those named before, whatever is flipped.

        An epoch that is no longer named is let go when the learner flips next. One that is gone
        does not come back.
        """
        ...

    def beside(self, namespace: str) -> Table:
        """Return the table that another learner publishes in the same place, under its own name.

        Raises
        ------
        BadSettings
            If it cannot be a name.

        """
        ...


class _Epoch(msgspec.Struct):
    """The rows of one epoch, encoded."""

    epoch: int
    layout: Layout
    barrier: Barrier | None = None
    users: dict[str, bytes] = {}
    items: dict[str, bytes] = {}
    covisited: dict[str, bytes] = {}
    seen: dict[str, set[str]] = {}
    weights: bytes = encode_weights({})


class _Kept(msgspec.Struct):
    """What belongs to no epoch, encoded."""

    item_attributes: dict[str, bytes] = {}
    user_attributes: dict[str, bytes] = {}
    report: bytes | None = None


class _Version(msgspec.Struct):
    """The part of a saved table that every row layout has."""

    row_layout: int


class _Saved(msgspec.Struct):
    """A table as one file."""

    row_layout: int
    epoch: _Epoch
    kept: _Kept


class _Feed:
    """The newest changes of one epoch; its cursors are numbers."""

    def __init__(self) -> None:
        self._entries: deque[Changes] = deque(maxlen=CHANGES_KEPT)
        self._last = 0

    @property
    def cursor(self) -> str:
        return str(self._last)

    def add(self, changes: Changes) -> None:
        self._last += 1
        self._entries.append(changes._replace(cursor=self.cursor))

    def after(self, cursor: str) -> Changes:
        n_new = self._last - int(cursor) if cursor.isdecimal() else -1
        if not 0 <= n_new <= len(self._entries):
            return Changes(self.cursor, whole=True)
        new = len(self._entries) - n_new
        return joined(self.cursor, list(self._entries)[new:])


class MemoryTable:
    """A table in this process, for the embedded run; it can be saved to a file and read back.

    Notes
    -----
    Rows are kept as the bytes that Redis would hold, so a vector in fp16 is rounded here as well.
    One thread writes; any number read, and find all rows of an update or none.

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
        self._lock = threading.Condition()  # whoever waits for changes waits here
        self._written: _Epoch | None = None
        self._feed = _Feed()  # of the epoch that is written
        self._flipped: dict[int, tuple[_Epoch, _Feed]] = {}  # by number, the newest last
        self._pinned: int | None = None
        self._named: frozenset[int] = frozenset()  # by keep
        self._beside: dict[str, MemoryTable] = {}
        self._kept = _Kept()

    def begin(self, layout: Layout) -> int:
        """Open a new epoch, out of sight, for the updates to come; return its number."""
        before = 0 if self._written is None else self._written.epoch
        self._written, self._feed = _Epoch(before + 1, layout), _Feed()
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
        covisited = {item: encode_covisited(row) for item, row in update.covisited.items()}
        weights = None if update.weights is None else encode_weights(update.weights)
        said = [
            {one: encode_attributes(attributes) for one, attributes in each.items()}
            for each in (update.item_attributes, update.user_attributes)
        ]
        kept, elsewhere = self._kept, update.changes_elsewhere()
        with self._lock:
            _forget(update.gone_users, epoch.users, epoch.seen, kept.user_attributes)
            for other, feed in self._flipped.values() if any(elsewhere[1:]) else ():
                if other is not epoch:
                    _forget(update.gone_users, other.users, other.seen)
                    feed.add(elsewhere)
            _forget(update.gone_items, epoch.items, epoch.covisited, kept.item_attributes)
            epoch.users.update(users)
            epoch.items.update(items)
            epoch.covisited.update(covisited)
            for user_id, item_ids in update.seen.items():
                epoch.seen.setdefault(user_id, set()).update(item_ids)
            kept.item_attributes.update(said[0])
            kept.user_attributes.update(said[1])
            _forget(_empty(update.item_attributes), kept.item_attributes)
            _forget(_empty(update.user_attributes), kept.user_attributes)
            if weights is not None:
                epoch.weights = weights
            epoch.barrier = update.barrier
            self._feed.add(update.changes())
            self._lock.notify_all()

    def flip(self) -> None:
        """Bring the begun epoch into view at once, in place of the one before."""
        epoch = self._begun()
        if epoch.barrier is None:
            raise TableError(f"epoch {epoch.epoch} is empty: publish into it before the flip")
        with self._lock:
            self._flipped[epoch.epoch] = epoch, self._feed
            older = set(sorted(self._flipped)[:-EPOCHS_KEPT])
            _forget(older - {self._pinned} - self._named, self._flipped)
            self._lock.notify_all()

    def tell(self, report: Mapping[str, Any]) -> None:
        """Write what the learner says of itself, in place of what it said before."""
        self._kept.report = encode_attributes(report)

    def reader(self, epoch: int | None = None) -> Reader:
        """Return a reader of an epoch; of the one in view if none is named."""
        with self._lock:
            if epoch is not None and epoch not in self._flipped:
                raise not_there(epoch, self._flipped)
            rows, feed = self._in_view() if epoch is None else self._flipped[epoch]
        return _MemoryReader(self._lock, rows, feed, self._kept)

    def epochs(self) -> list[EpochInfo]:
        """Return the epochs that can be pinned, the newest first."""
        with self._lock:
            if not self._flipped:
                return []
            in_view, _ = self._in_view()
            return [
                epoch_info(
                    number, _barrier(epoch), in_view=epoch is in_view, pinned=number == self._pinned
                )
                for number, (epoch, _) in sorted(self._flipped.items(), reverse=True)
            ]

    def pin(self, epoch: int | None) -> None:
        """Give readers this epoch from now on; ``None``: follow the learner again."""
        with self._lock:
            if epoch is not None and epoch not in self._flipped:
                raise not_there(epoch, self._flipped)
            self._pinned = epoch
            self._lock.notify_all()

    def keep(self, epochs: Collection[int]) -> None:
        """Keep these epochs from now on, in place of those named before."""
        self._named = frozenset(epochs)

    def beside(self, namespace: str) -> MemoryTable:
        """Return the table of that name; an empty one if it was never asked for."""
        return self._beside.setdefault(namespace, MemoryTable())

    def save(self, path: Path) -> None:
        """Write the epoch in view to a file, at once or not at all.

        Raises
        ------
        TableError
            If there is no epoch in view.
        BadOutput
            If the file cannot be written.

        """
        if not self._flipped:
            raise TableError("nothing is published yet: there is no table to save")
        with self._lock:
            epoch, _ = self._in_view()
            saved = msgspec.msgpack.encode(_Saved(ROW_LAYOUT, epoch, self._kept), order="sorted")
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                file.write(saved)
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
            data = file.read_bytes()
            found = msgspec.msgpack.decode(data, type=_Version).row_layout
            if found != ROW_LAYOUT:
                raise BadData(
                    f"{file} holds row layout {found}, this program reads {ROW_LAYOUT}: "
                    "replay the log anew"
                )
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except OSError as error:
            raise BadData(
                f"want a table saved by a replay at {file}: {error.strerror}; "
                "give the folder that was the replay's --out"
            ) from error
        except msgspec.DecodeError as error:
            raise BadData(f"{file} is not a whole table saved by a replay: {error}") from error
        table = cls()
        table._written, table._kept = saved.epoch, saved.kept
        table._flipped[saved.epoch.epoch] = saved.epoch, table._feed
        return table

    def _begun(self) -> _Epoch:
        if self._written is None:
            raise TableError("no epoch was begun: call begin before publish and flip")
        return self._written

    def _in_view(self) -> tuple[_Epoch, _Feed]:
        if not self._flipped:
            raise TableError("nothing is published yet: begin, publish and flip come first")
        return self._flipped[max(self._flipped) if self._pinned is None else self._pinned]


class _MemoryReader:
    """One epoch of a :class:`MemoryTable`."""

    def __init__(self, lock: threading.Condition, epoch: _Epoch, feed: _Feed, kept: _Kept) -> None:
        self._lock = lock
        self._rows = epoch
        self._feed = feed
        self._kept = kept

    @property
    def epoch(self) -> int:
        return self._rows.epoch

    @property
    def layout(self) -> Layout:
        return self._rows.layout

    def barrier(self) -> Barrier:
        return _barrier(self._rows)

    def users(self, user_ids: Sequence[str]) -> UserRows:
        found = self._find(user_ids, self._rows.users)
        return decode_users(self.layout, *_unzip(found))

    def user_ids(self, most: int) -> list[str]:
        with self._lock:
            everybody = list(self._rows.users)
        return everybody if len(everybody) <= most else random.sample(everybody, most)

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        found = self._find(item_ids, self._rows.items)
        return decode_items(self.layout, *_unzip(found))

    def item_ids(self) -> list[str]:
        with self._lock:
            return sorted(self._rows.items)

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        found = self._find(item_ids, self._rows.covisited)
        return {item_id: decode_covisited(value) for item_id, value in found}

    def seen(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        with self._lock:
            return {one: frozenset(self._rows.seen.get(one, ())) for one in user_ids}

    def weights(self) -> dict[str, NDArray[Any]]:
        return decode_weights(self._rows.weights)

    def item_attributes(self, item_ids: Sequence[str]) -> dict[str, Attributes]:
        return _read(self._find(item_ids, self._kept.item_attributes))

    def user_attributes(self, user_ids: Sequence[str]) -> dict[str, Attributes]:
        return _read(self._find(user_ids, self._kept.user_attributes))

    def all_item_attributes(self) -> dict[str, Attributes]:
        with self._lock:
            found = sorted(self._kept.item_attributes.items())
        return _read(found)

    def all_user_attributes(self) -> dict[str, Attributes]:
        with self._lock:
            found = sorted(self._kept.user_attributes.items())
        return _read(found)

    def report(self) -> dict[str, Any] | None:
        report = self._kept.report
        return None if report is None else decode_attributes(report)

    def cursor(self) -> str:
        with self._lock:
            return self._feed.cursor

    def changes(self, after: str, *, wait_ms: int = 0) -> Changes:
        with self._lock:
            if wait_ms and self._feed.cursor == after:
                self._lock.wait(wait_ms / 1_000)
            return self._feed.after(after)

    def _find(self, ids: Sequence[str], rows: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        with self._lock:
            return [(one, rows[one]) for one in ids if one in rows]


def epoch_info(epoch: int, barrier: Barrier, *, in_view: bool, pinned: bool) -> EpochInfo:
    """Return one entry of :meth:`Table.epochs`."""
    return EpochInfo(
        epoch=epoch,
        step=barrier.step,
        at_ms=barrier.at_ms,
        published_ms=barrier.published_ms,
        in_view=in_view,
        pinned=pinned,
    )


def not_there(epoch: int, there: Collection[int]) -> TableError:
    """Return what is raised where an epoch is asked for that is not kept."""
    known = ", ".join(map(str, sorted(there))) or "none"
    return TableError(f"epoch {epoch} is not kept: those that are there are {known}")


def _barrier(epoch: _Epoch) -> Barrier:
    assert epoch.barrier is not None  # an epoch in view has one: flip
    return epoch.barrier


def _forget(names: Collection[Any], *places: dict[Any, Any]) -> None:
    for name in names:
        for place in places:
            place.pop(name, None)


def _empty(said: Mapping[str, Attributes]) -> list[str]:
    return [name for name, attributes in said.items() if not attributes]


def _unzip(found: Sequence[tuple[str, bytes]]) -> tuple[list[str], list[bytes]]:
    return [name for name, _ in found], [value for _, value in found]


def _read(found: Sequence[tuple[str, bytes]]) -> dict[str, Attributes]:
    return {name: decode_attributes(value) for name, value in found}
