"""The published embeddings in Redis; keys and bytes are described in ``docs/table.md``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import redis
from numpy.typing import NDArray

from serving.redis_nodes import CHUNK, Command, RedisNodes
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
from serving.table import Reader, Update
from stream.errors import BadSettings, TableError, TableLost, TableTaken
from stream.settings import RedisSettings

_T = TypeVar("_T")

READER_GRACE_S: Final = 60
"""How long a reader of the epoch before may go on after a flip."""

_ROW_GRACE_S: Final = READER_GRACE_S + 30
"""Rows outlive the barrier, so that a late reader is told and does not take them for unknown."""


class _Head(msgspec.Struct, frozen=True):
    """Which epoch is in view."""

    row_layout: int
    epoch: int
    layout: Layout


class _Version(msgspec.Struct):
    """The part of a head that every layout version has."""

    row_layout: int


class _Keys:
    """The names of one epoch. A hash tag keeps what belongs to one id on one node of a cluster."""

    def __init__(self, namespace: str, epoch: int) -> None:
        self._prefix = f"{namespace}:e{epoch}:"
        self.barrier = self._prefix + "barrier"
        self.weights = self._prefix + "weights"
        self.items = self._prefix + "items"
        self.users = self._prefix + "users"

    def user(self, user_id: str) -> str:
        return f"{self._prefix}{{u:{user_id}}}"

    def seen(self, user_id: str) -> str:
        return self.user(user_id) + ":seen"

    def item(self, item_id: str) -> str:
        return f"{self._prefix}{{i:{item_id}}}"

    def covisited(self, item_id: str) -> str:
        return self.item(item_id) + ":covisited"


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
        if not re.fullmatch(r"[\w.-]+", namespace, re.ASCII):
            raise BadSettings(
                f"a namespace is letters, digits, '_', '.' and '-', got {namespace!r}"
            )
        self._nodes = RedisNodes(url, password=password, ca_file=ca_file)
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
            self._nodes.run([("SET", keys.barrier, barrier)])
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
            if in_view and not self._nodes.is_cluster:
                for command in commands:
                    pipe.execute_command(*command)
            else:
                self._nodes.run(commands)
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
            pipe.set(self._head_key, msgspec.json.encode(head))
        self._flipped = True
        with self._nodes.answering():
            self._retire()

    def reader(self) -> Reader:
        """Return a reader of the epoch in view."""
        return self._reader()

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
            head = self._read_head(self._get(self._head_key))
        if head is None:
            raise TableError(
                f"nothing is published under {self._namespace!r} in the Redis at {self.where}: "
                "start a learner that publishes there, or give --table for what a replay saved"
            )
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
        return [
            *(("UNLINK", keys.user(one), keys.seen(one)) for one in update.gone_users),
            *(("UNLINK", keys.item(one), keys.covisited(one)) for one in update.gone_items),
            *_on_members("SREM", {keys.users: update.gone_users, keys.items: update.gone_items}),
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
        """Let the older epochs run out, the one before after its readers are done."""
        pattern = re.compile(re.escape(f"{self._namespace}:e").encode() + rb"(\d+):")
        for node in self._nodes.all():
            with node.pipeline(transaction=False) as pipe:
                for key in node.scan_iter(match=f"{self._namespace}:e*", count=1_000):
                    found = pattern.match(key)
                    if found is None or int(found[1]) >= self._epoch:
                        continue
                    pipe.expire(key, READER_GRACE_S if key.endswith(b":barrier") else _ROW_GRACE_S)
                    if len(pipe) >= CHUNK:
                        pipe.execute()
                pipe.execute()


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

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        known, values = self._rows(item_ids, self._keys.item)
        return decode_items(self.layout, known, values)

    def item_ids(self) -> list[str]:
        _, (members,) = self._ask([("SMEMBERS", self._keys.items)])
        return sorted(member.decode() for member in members)

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        known, values = self._rows(item_ids, self._keys.covisited)
        return dict(zip(known, map(decode_covisited, values), strict=True))

    def seen(self, user_id: str) -> frozenset[str]:
        _, (members,) = self._ask([("SMEMBERS", self._keys.seen(user_id))])
        return frozenset(member.decode() for member in members)

    def weights(self) -> dict[str, NDArray[Any]]:
        _, (value,) = self._ask([("GET", self._keys.weights)])
        return {} if value is None else decode_weights(value)

    def sizes(self) -> tuple[Barrier, int, int]:
        """Return the barrier, and the numbers of users and items."""
        commands = [("SCARD", self._keys.users), ("SCARD", self._keys.items)]
        barrier, (users, items) = self._ask(commands)
        return barrier, int(users), int(items)

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


def _on_members(name: str, members: Mapping[str, Iterable[str]]) -> Iterator[Command]:
    for key, ids in members.items():
        for part in _chunks(list(ids)):
            yield (name, key, *part)


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for first in range(0, len(values), CHUNK):
        yield values[first : first + CHUNK]
