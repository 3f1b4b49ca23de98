"""The published embeddings in Redis; keys and bytes are described in ``docs/table.md``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import redis
from numpy.typing import NDArray

from serving.changes import CHANGES_KEPT, Changes, decode_changes, encode_changes, joined
from serving.redis_nodes import CHUNK, Command, RedisNodes
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
from serving.table import EPOCHS_KEPT, EpochInfo, Reader, Update, epoch_info, not_there
from stream.errors import BadSettings, TableError, TableLost, TableTaken
from stream.settings import RedisSettings

_T = TypeVar("_T")

READER_GRACE_S: Final = 60
"""How long readers of an epoch may go on once it is no longer kept."""

_ROW_GRACE_S: Final = READER_GRACE_S + 30
"""Rows outlive the barrier, so that a late reader is told and does not take them for unknown."""

_WAIT_MS: Final = 2_000
"""For how long Redis is asked to wait for changes at most: well below what its answer may take."""


class _Head(msgspec.Struct, frozen=True):
    """Which epoch is in view."""

    row_layout: int
    epoch: int
    layout: Layout


class _Version(msgspec.Struct):
    """The part of a head that every layout version has."""

    row_layout: int


class _Keys:
    """The names of one epoch, and of what belongs to none.

    A hash tag keeps what belongs to one id on one node of a cluster.
    """

    def __init__(self, namespace: str, epoch: int) -> None:
        self._namespace = namespace
        self._prefix = f"{namespace}:e{epoch}:"
        self.barrier = self._prefix + "barrier"
        self.layout = self._prefix + "layout"
        self.changes = self._prefix + "changes"
        self.weights = self._prefix + "weights"
        self.items = self._prefix + "items"
        self.users = self._prefix + "users"
        self.described_items = f"{namespace}:items"
        self.described_users = f"{namespace}:users"
        self.report = f"{namespace}:report"

    def user(self, user_id: str) -> str:
        return f"{self._prefix}{{u:{user_id}}}"

    def seen(self, user_id: str) -> str:
        return self.user(user_id) + ":seen"

    def item(self, item_id: str) -> str:
        return f"{self._prefix}{{i:{item_id}}}"

    def covisited(self, item_id: str) -> str:
        return self.item(item_id) + ":covisited"

    def user_attributes(self, user_id: str) -> str:
        return f"{self._namespace}:{{u:{user_id}}}:attributes"

    def item_attributes(self, item_id: str) -> str:
        return f"{self._namespace}:{{i:{item_id}}}:attributes"


class TableInfo(NamedTuple):
    """What an operator wants to know of a published table."""

    where: str
    row_layout: int
    epoch: int
    barrier: Barrier
    age_ms: int  # since the newest publish, by this machine's clock
    users: int
    items: int
    memory_bytes: int  # of the whole Redis, all nodes of a cluster together


def open_table(settings: RedisSettings) -> RedisTable:
    """Return the table that the settings name.

    Raises
    ------
    BadSettings
        If the address, the certificate file or the namespace cannot be used.

    """
    return RedisTable(
        settings.url,
        namespace=settings.namespace,
        password=settings.password,
        ca_file=settings.ca_file,
    )


class RedisTable:
    """A table in Redis.

    In one Redis each update of the epoch in view is one transaction: a reader finds all of its
    rows or none. In a cluster a reader may find rows that are newer than the barrier.

    Parameters
    ----------
    url
        ``redis://host:port/db``, ``redis+sentinel://host:port,host:port/service/db`` or
        ``redis+cluster://host:port,host:port``; ``rediss`` for TLS, ``user:password@`` before
        the hosts.
    namespace
        Prefix of every key: letters, digits, ``_``, ``.`` and ``-``. Two learners need two.
    password
        Where it must not stand in the address.
    ca_file
        PEM file for TLS; without it the system's authorities are trusted.

    Raises
    ------
    BadSettings
        If the address, the certificate file or the namespace cannot be used.

    Notes
    -----
    Nothing is connected before the first use. Every method raises :class:`TableError` when Redis
    does not answer, or holds another row layout, and :class:`BadSettings` when it does not take
    the password. ``publish`` and ``flip`` raise :class:`TableTaken` once another learner that
    began later has flipped, and :class:`TableLost` once Redis holds less than was published.

    """

    def __init__(
        self, url: str, *, namespace: str = "tidegraph", password: str = "", ca_file: str = ""
    ) -> None:
        self._nodes = RedisNodes(url, password=password, ca_file=ca_file)
        self._begin_under(namespace)

    def _begin_under(self, namespace: str) -> None:
        if not re.fullmatch(r"[\w.-]+", namespace, re.ASCII):
            raise BadSettings(
                f"a namespace is letters, digits, '_', '.' and '-', got {namespace!r}"
            )
        self._namespace = namespace
        self._layout: Layout | None = None
        self._epoch = 0
        self._published = False
        self._flipped = False
        self._barriers: tuple[bytes, ...] = ()
        """What may stand as barrier: the one that was read or written last, and after a failed
        write, of which it is not known whether it came through, also that one."""

    @property
    def where(self) -> str:
        """The address, without user and password."""
        return self._nodes.where

    def close(self) -> None:
        """Close the connections, also those of readers; the next use makes new ones."""
        self._nodes.close()

    def begin(self, layout: Layout) -> int:
        """Open a new epoch, out of sight, for the updates to come; return its number."""
        counter = f"{self._namespace}:epochs"
        with self._nodes.answering():
            self._read_head(self._get(self._head_key))
            # Counted from the clock: also in a Redis that was emptied a number never comes again,
            # so no reader takes a new epoch for its own and no older learner for the newest.
            now_ms = time.time_ns() // 1_000_000
            _, number = self._nodes.run([("SET", counter, now_ms, "NX"), ("INCR", counter)])
            barrier = msgspec.json.encode(Barrier(step=0, at_ms=0, published_ms=0))
            keys = _Keys(self._namespace, int(number))
            self._nodes.run(
                [
                    ("SET", keys.barrier, barrier),
                    ("SET", keys.layout, msgspec.json.encode(layout)),
                    _changed(keys, Changes("")),  # so that the feed always has an end
                ]
            )
        self._layout, self._epoch = layout, int(number)
        self._published = self._flipped = False
        self._barriers = (barrier,)
        return self._epoch

    def publish(self, update: Update) -> None:
        """Write an update into the epoch that was begun, in view or not."""
        layout, keys = self._begun()
        commands = self._commands(layout, keys, update)
        barrier = msgspec.json.encode(update.barrier)
        with self._fenced(keys.barrier) as (pipe, in_view):
            forgotten, told = self._elsewhere(update)
            commands += forgotten
            if in_view:
                told.append(_changed(keys, update.changes()))
            if in_view and not self._nodes.is_cluster:
                for command in commands + told:
                    pipe.execute_command(*command)
            else:
                self._nodes.run(commands)
                self._nodes.run(told)  # once what they name is written
            pipe.set(keys.barrier, barrier)
            self._barriers += (barrier,)
        self._barriers = (barrier,)
        self._published = True

    def flip(self) -> None:
        """Bring the begun epoch into view at once, in place of the one before."""
        layout, _ = self._begun()
        if not self._published:
            raise TableError(f"epoch {self._epoch} is empty: publish into it before the flip")
        with self._fenced(self._head_key) as (pipe, _):
            head = _Head(ROW_LAYOUT, self._epoch, layout)
            self._nodes.run([("SADD", self._flipped_key, self._epoch)])
            pipe.set(self._head_key, msgspec.json.encode(head))
        self._flipped = True
        with self._nodes.answering():
            self._retire()

    def tell(self, report: Mapping[str, Any]) -> None:
        """Write what the learner says of itself, in place of what it said before."""
        key = _Keys(self._namespace, self._epoch).report
        with self._nodes.answering():
            self._nodes.run([("SET", key, encode_attributes(report))])

    def reader(self, epoch: int | None = None) -> Reader:
        """Return a reader of an epoch; of the one in view if none is named."""
        if epoch is None:
            return self._reader()
        there = [each.epoch for each in self.epochs()]
        if epoch not in there:
            raise not_there(epoch, there)
        with self._nodes.answering():
            layout = self._get(_Keys(self._namespace, epoch).layout)
            if layout is None:  # it ran out since
                raise not_there(epoch, [other for other in there if other != epoch])
            head = _Head(ROW_LAYOUT, epoch, msgspec.json.decode(layout, type=Layout))
        return _RedisReader(self._nodes, self._namespace, head)

    def epochs(self) -> list[EpochInfo]:
        """Return the epochs that can be pinned, the newest first."""
        with self._nodes.answering():
            value, pin, flipped = self._nodes.run(
                [
                    ("GET", self._head_key),
                    ("GET", self._pin_key),
                    ("SMEMBERS", self._flipped_key),
                ]
            )
            head = self._read_head(value)
            if head is None:
                return []
            # A flip that failed half-way may have named an epoch that never came into view.
            numbers = sorted({n for n in map(int, flipped) if n <= head.epoch} | {head.epoch})
            barriers = [_Keys(self._namespace, number).barrier for number in numbers]
            values = self._nodes.run([("GET", key) for key in barriers])
            left_s = self._nodes.run([("TTL", key) for key in barriers])
        kept = {
            number: msgspec.json.decode(barrier, type=Barrier)
            for number, barrier, runs_out in zip(numbers, values, left_s, strict=True)
            if barrier is not None and runs_out == -1
        }
        pinned = None if pin is None else int(pin)
        in_view = pinned if pinned in kept else head.epoch
        return [
            epoch_info(number, barrier, in_view=number == in_view, pinned=number == pinned)
            for number, barrier in reversed(kept.items())
        ]

    def pin(self, epoch: int | None) -> None:
        """Give readers this epoch from now on; ``None``: follow the learner again."""
        there = [] if epoch is None else [each.epoch for each in self.epochs()]
        if epoch is not None and epoch not in there:
            raise not_there(epoch, there)
        with self._nodes.answering():
            command = ("UNLINK", self._pin_key) if epoch is None else ("SET", self._pin_key, epoch)
            self._nodes.run([command])

    def keep(self, epochs: Collection[int]) -> None:
        """Keep these epochs from now on, in place of those named before."""
        named = msgspec.json.encode(sorted(epochs))
        command = ("SET", self._kept_key, named) if epochs else ("UNLINK", self._kept_key)
        with self._nodes.answering():
            self._nodes.run([command])

    def beside(self, namespace: str) -> RedisTable:
        """Return the table under another namespace, over the same connections."""
        other = copy(self)
        other._begin_under(namespace)
        return other

    def info(self) -> TableInfo:
        """Look at the epoch in view, for an operator: what it holds and how fresh it is."""
        reader = self._reader()
        barrier, users, items = reader.sizes()
        with self._nodes.answering():
            memory: list[Any] = [node.info("memory") for node in self._nodes.all()]
        return TableInfo(
            where=self.where,
            row_layout=ROW_LAYOUT,
            epoch=reader.epoch,
            barrier=barrier,
            age_ms=time.time_ns() // 1_000_000 - barrier.published_ms,
            users=users,
            items=items,
            memory_bytes=sum(each["used_memory"] for each in memory),
        )

    @property
    def _head_key(self) -> str:
        return f"{self._namespace}:head"

    @property
    def _pin_key(self) -> str:
        return f"{self._namespace}:pinned"

    @property
    def _kept_key(self) -> str:
        return f"{self._namespace}:kept"

    @property
    def _flipped_key(self) -> str:
        return f"{self._namespace}:flipped"

    def _get(self, key: str) -> bytes | None:
        (value,) = self._nodes.run([("GET", key)])
        assert value is None or isinstance(value, bytes)
        return value

    def _begun(self) -> tuple[Layout, _Keys]:
        if self._layout is None:
            raise TableError("no epoch was begun: call begin before publish and flip")
        return self._layout, _Keys(self._namespace, self._epoch)

    def _reader(self) -> _RedisReader:
        with self._nodes.answering():
            value, pin = self._nodes.run([("GET", self._head_key), ("GET", self._pin_key)])
            head = self._read_head(value)
            if head is None:
                raise TableError(
                    f"nothing is published under {self._namespace!r} in the Redis at {self.where}: "
                    "start a learner that publishes there, or give --table for what a replay saved"
                )
            if pin is not None and int(pin) != head.epoch:
                keys = _Keys(self._namespace, int(pin))
                layout, barrier = self._nodes.run([("GET", keys.layout), ("GET", keys.barrier)])
                if layout is not None and barrier is not None:
                    head = _Head(ROW_LAYOUT, int(pin), msgspec.json.decode(layout, type=Layout))
        return _RedisReader(self._nodes, self._namespace, head)

    def _read_head(self, value: bytes | None) -> _Head | None:
        if value is None:
            return None
        found = msgspec.json.decode(value, type=_Version).row_layout
        if found != ROW_LAYOUT:
            raise TableError(
                f"the Redis at {self.where} holds row layout {found} under {self._namespace!r}, "
                f"this program reads and writes {ROW_LAYOUT}: use the matching version of "
                "tidegraph, or another namespace"
            )
        return msgspec.json.decode(value, type=_Head)

    def _elsewhere(self, update: Update) -> tuple[list[Command], list[Command]]:
        """Return what takes users out of the other epochs that are kept, and what tells those."""
        forgotten: list[Command] = []
        told: list[Command] = []
        changes = update.changes_elsewhere()
        if not any(changes[1:]):
            return forgotten, told
        (flipped,) = self._nodes.run([("SMEMBERS", self._flipped_key)])
        for number in set(map(int, flipped)) - {self._epoch}:
            keys = _Keys(self._namespace, number)
            gone_users = update.gone_users
            forgotten += [("UNLINK", keys.user(one), keys.seen(one)) for one in gone_users]
            forgotten += _on_members("SREM", {keys.users: gone_users})
            told.append(_changed(keys, changes, "NOMKSTREAM"))  # it may have run out
        return forgotten, told

    def _commands(self, layout: Layout, keys: _Keys, update: Update) -> list[Command]:
        """Return what writes an update, all but its barrier."""
        values: dict[str, bytes] = {}
        members: dict[str, Iterable[str]] = {}
        published_ms = update.barrier.published_ms
        if (rows := update.users) is not None:
            encoded = encode_users(layout, rows, published_ms)
            values.update(zip(map(keys.user, rows.ids), encoded, strict=True))
            members[keys.users] = rows.ids
        if (block := update.items) is not None:
            encoded = encode_items(layout, block, published_ms)
            values.update(zip(map(keys.item, block.ids), encoded, strict=True))
            members[keys.items] = block.ids
        for item_id, row in update.covisited.items():
            values[keys.covisited(item_id)] = encode_covisited(row)
        if update.weights is not None:
            values[keys.weights] = encode_weights(update.weights)
        for user_id, item_ids in update.seen.items():
            members[keys.seen(user_id)] = item_ids
        gone: list[Command] = [
            *(
                (keys.user(one), keys.seen(one), keys.user_attributes(one))
                for one in update.gone_users
            ),
            *(
                (keys.item(one), keys.covisited(one), keys.item_attributes(one))
                for one in update.gone_items
            ),
        ]
        left = {keys.users: update.gone_users, keys.items: update.gone_items}
        for said, name, known, forgotten in (
            (
                update.user_attributes,
                keys.user_attributes,
                keys.described_users,
                update.gone_users,
            ),
            (
                update.item_attributes,
                keys.item_attributes,
                keys.described_items,
                update.gone_items,
            ),
        ):
            full = {one: attributes for one, attributes in said.items() if attributes}
            values.update((name(one), encode_attributes(each)) for one, each in full.items())
            members[known] = full
            empty = [one for one in said if one not in full]
            left[known] = [*forgotten, *empty]
            gone += [(name(one),) for one in empty]
        return [
            *(("UNLINK", *each) for each in gone),
            *_on_members("SREM", left),
            *self._sets(values),
            *_on_members("SADD", members),
        ]

    def _sets(self, values: Mapping[str, bytes]) -> Iterator[Command]:
        pairs = list(values.items())
        if self._nodes.is_cluster:  # where one MSET must stay in one slot
            yield from (("SET", *pair) for pair in pairs)
            return
        for part in _chunks(pairs):
            yield ("MSET", *(each for pair in part for each in pair))

    @contextmanager
    def _fenced(self, key: str) -> Iterator[tuple[Any, bool]]:
        """Give a transaction that writes ``key``, and whether the own epoch is in view.

        It is refused where another learner has taken over or Redis has lost rows, before it or
        while it is put together.
        """
        keys = _Keys(self._namespace, self._epoch)
        watched = [key] if self._nodes.is_cluster else [self._head_key, keys.barrier]
        pipe: Any  # its commands answer later, which its types do not say
        with self._nodes.answering(), self._nodes.of(key).pipeline(transaction=True) as pipe:
            try:
                pipe.watch(*watched)
                in_view = self._check(keys)
                pipe.multi()
                yield pipe, in_view
                pipe.execute()
            except redis.WatchError as error:
                self._check(keys)
                raise TableError(
                    f"epoch {self._epoch} changed in the Redis at {self.where} while it was "
                    "written: publish again"
                ) from error

    def _check(self, keys: _Keys) -> bool:
        """Tell whether the own epoch is in view; raise where it must not be written."""
        value, barrier = self._nodes.run([("GET", self._head_key), ("GET", keys.barrier)])
        head = self._read_head(value)
        if head is not None and head.epoch > self._epoch:
            raise TableTaken(
                f"epoch {self._epoch} was replaced by epoch {head.epoch} in the Redis at "
                f"{self.where}: another learner has taken over, this one must stop"
            )
        in_view = head is not None and head.epoch == self._epoch
        if barrier not in self._barriers or (self._flipped and not in_view):
            raise TableLost(
                f"the Redis at {self.where} no longer holds all of epoch {self._epoch}, it was "
                "emptied or went back to an older state: begin a new epoch and publish every row"
            )
        self._barriers = (barrier,)
        return in_view

    def _retire(self) -> None:
        """Let the epochs that are not kept run out, each after its readers are done."""
        pin, named, flipped = self._nodes.run(
            [("GET", self._pin_key), ("GET", self._kept_key), ("SMEMBERS", self._flipped_key)]
        )
        numbers = sorted(map(int, flipped))
        kept = {self._epoch, *numbers[-EPOCHS_KEPT:], *([] if pin is None else [int(pin)])}
        kept.update(msgspec.json.decode(named or b"[]", type=list[int]))
        pattern = re.compile(re.escape(f"{self._namespace}:e").encode() + rb"(\d+):")
        for node in self._nodes.all():
            with node.pipeline(transaction=False) as pipe:
                for key in node.scan_iter(match=f"{self._namespace}:e*", count=1_000):
                    found = pattern.match(key)
                    if found is None or int(found[1]) >= self._epoch or int(found[1]) in kept:
                        continue
                    pipe.expire(key, READER_GRACE_S if key.endswith(b":barrier") else _ROW_GRACE_S)
                    if len(pipe) >= CHUNK:
                        pipe.execute()
                pipe.execute()
        dropped = [number for number in numbers if number not in kept]
        self._nodes.run(list(_on_members("SREM", {self._flipped_key: map(str, dropped)})))


class _RedisReader:
    """One epoch of a :class:`RedisTable`."""

    def __init__(self, nodes: RedisNodes, namespace: str, head: _Head) -> None:
        self._nodes = nodes
        self._keys = _Keys(namespace, head.epoch)
        self._head = head

    @property
    def epoch(self) -> int:
        return self._head.epoch

    @property
    def layout(self) -> Layout:
        return self._head.layout

    def barrier(self) -> Barrier:
        barrier, _ = self._ask([])
        return barrier

    def users(self, user_ids: Sequence[str]) -> UserRows:
        known, values = self._rows(user_ids, self._keys.user)
        return decode_users(self.layout, known, values)

    def user_ids(self, most: int) -> list[str]:
        _, (drawn,) = self._ask([("SRANDMEMBER", self._keys.users, most)])
        return [user_id.decode() for user_id in drawn]

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        known, values = self._rows(item_ids, self._keys.item)
        return decode_items(self.layout, known, values)

    def item_ids(self) -> list[str]:
        return self._members(self._keys.items)

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        known, values = self._rows(item_ids, self._keys.covisited)
        return dict(zip(known, map(decode_covisited, values), strict=True))

    def seen(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        _, answers = self._ask([("SMEMBERS", self._keys.seen(one)) for one in user_ids])
        return {
            one: frozenset(member.decode() for member in members)
            for one, members in zip(user_ids, answers, strict=True)
        }

    def weights(self) -> dict[str, NDArray[Any]]:
        _, (value,) = self._ask([("GET", self._keys.weights)])
        return {} if value is None else decode_weights(value)

    def item_attributes(self, item_ids: Sequence[str]) -> dict[str, Attributes]:
        known, values = self._rows(item_ids, self._keys.item_attributes)
        return dict(zip(known, map(decode_attributes, values), strict=True))

    def user_attributes(self, user_ids: Sequence[str]) -> dict[str, Attributes]:
        known, values = self._rows(user_ids, self._keys.user_attributes)
        return dict(zip(known, map(decode_attributes, values), strict=True))

    def all_item_attributes(self) -> dict[str, Attributes]:
        return self.item_attributes(self._members(self._keys.described_items))

    def all_user_attributes(self) -> dict[str, Attributes]:
        return self.user_attributes(self._members(self._keys.described_users))

    def report(self) -> dict[str, Any] | None:
        _, (value,) = self._ask([("GET", self._keys.report)])
        return None if value is None else decode_attributes(value)

    def cursor(self) -> str:
        _, (last,) = self._ask([("XREVRANGE", self._keys.changes, "+", "-", "COUNT", 1)])
        return last[0][0].decode() if last else "0-0"

    def changes(self, after: str, *, wait_ms: int = 0) -> Changes:
        key = self._keys.changes
        if not re.fullmatch(r"\d{1,19}-\d{1,19}", after, re.ASCII):
            return Changes(self.cursor(), whole=True)
        if wait_ms:
            block = ("BLOCK", min(wait_ms, _WAIT_MS), "STREAMS", key, after)
            server: Any = self._nodes.of(key)  # redis-py does not type all of it
            with self._nodes.answering():
                server.execute_command("XREAD", "COUNT", 1, *block)
        # Whatever is still there, all after it is there too: entries are dropped from the oldest.
        commands = [("XRANGE", key, f"({after}", "+"), ("XRANGE", key, after, after)]
        _, (entries, known) = self._ask(commands)
        if not known:
            return Changes(self.cursor(), whole=True)
        parts = [decode_changes(cursor.decode(), fields[b"ids"]) for cursor, fields in entries]
        return joined(parts[-1].cursor if parts else after, parts)

    def sizes(self) -> tuple[Barrier, int, int]:
        """Return the barrier, and the numbers of users and items."""
        commands = [("SCARD", self._keys.users), ("SCARD", self._keys.items)]
        barrier, (users, items) = self._ask(commands)
        return barrier, int(users), int(items)

    def _members(self, key: str) -> list[str]:
        _, (members,) = self._ask([("SMEMBERS", key)])
        return sorted(member.decode() for member in members)

    def _rows(
        self, ids: Sequence[str], name: Callable[[str], str]
    ) -> tuple[list[str], list[bytes]]:
        known, values = [], []
        for part in _chunks(ids):
            names = [name(one) for one in part]
            if self._nodes.is_cluster:  # where one MGET must stay in one slot
                _, found = self._ask([("GET", each) for each in names])
            else:
                _, (found,) = self._ask([("MGET", *names)])
            for one, value in zip(part, found, strict=True):
                if value is not None:
                    known.append(one)
                    values.append(value)
        return known, values

    def _ask(self, commands: Sequence[Command]) -> tuple[Barrier, list[Any]]:
        """Run reading commands together with a look at whether the epoch is still there.

        The barrier is read first: what the commands find is at least as new. Rows outlive it by
        more than a run may take, so where it is found none of them has expired.
        """
        with self._nodes.answering():
            value, *answers = self._nodes.run([("GET", self._keys.barrier), *commands])
            if value is None:
                raise TableError(
                    f"epoch {self.epoch} was replaced more than {READER_GRACE_S} s ago: "
                    "take a new reader from the table"
                )
            return msgspec.json.decode(value, type=Barrier), answers


def _changed(keys: _Keys, changes: Changes, *options: str) -> Command:
    """Return what adds to the change feed."""
    trimmed = "MAXLEN", CHANGES_KEPT, "*"
    return ("XADD", keys.changes, *options, *trimmed, "ids", encode_changes(changes))


def _on_members(name: str, members: Mapping[str, Iterable[str]]) -> Iterator[Command]:
    for key, ids in members.items():
        for part in _chunks(list(ids)):
            yield (name, key, *part)


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for first in range(0, len(values), CHUNK):
        yield values[first : first + CHUNK]
