"""The published embeddings in Redis; keys and bytes are described in ``docs/table.md``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import redis
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
from serving.table import Reader, Update
from stream.errors import BadSettings, TableError

READER_GRACE_S: Final = 60
"""How long a reader of the epoch before may go on after a flip."""

_ROW_GRACE_S: Final = READER_GRACE_S + 30
"""Rows outlive the barrier, so that a late reader is told and does not take them for unknown."""

_CHUNK: Final = 10_000
"""Rows asked for in one go: some megabytes."""


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

    def user(self, user_id: str) -> str:
        return f"{self._prefix}{{u:{user_id}}}"

    def seen(self, user_id: str) -> str:
        return self.user(user_id) + ":seen"

    def item(self, item_id: str) -> str:
        return f"{self._prefix}{{i:{item_id}}}"

    def covisited(self, item_id: str) -> str:
        return self.item(item_id) + ":covisited"


@contextmanager
def _answering(where: str) -> Iterator[None]:
    """Turn the trouble of a connection into the house's error."""
    try:
        yield
    except (redis.RedisError, msgspec.DecodeError) as error:
        raise TableError(
            f"the Redis at {where} does not answer as wanted: {error}; "
            "is it running, and is the address right?"
        ) from error


class RedisTable:
    """A table in Redis.

    Each update is one transaction: a reader finds all of its rows or none.

    Parameters
    ----------
    url
        As in ``redis://localhost:6379/0``.
    namespace
        Prefix of every key: letters, digits, ``_``, ``.`` and ``-``. Two learners need two.

    Raises
    ------
    BadSettings
        If the address or the namespace cannot be used.

    Notes
    -----
    Every method raises :class:`TableError` when Redis does not answer, or holds another row layout.
    A learner that was replaced by another one (which began later and flipped) is refused.

    """

    def __init__(self, url: str, *, namespace: str = "tidegraph") -> None:
        if not re.fullmatch(r"[\w.-]+", namespace, re.ASCII):
            raise BadSettings(
                f"a namespace is letters, digits, '_', '.' and '-', got {namespace!r}"
            )
        try:
            self._redis = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=30)
        except ValueError as error:
            raise BadSettings(f"{url!r} is not the address of a Redis: {error}") from error
        parts = urlsplit(url)
        self.where = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._namespace = namespace
        self._layout: Layout | None = None
        self._epoch = 0

    def begin(self, layout: Layout) -> int:
        """Open a new epoch, out of sight, for the updates to come; return its number."""
        with _answering(self.where):
            self._read_head(self._redis.get(self._head_key))
            self._epoch = int(self._redis.incr(f"{self._namespace}:epochs"))
        self._layout = layout
        return self._epoch

    def publish(self, update: Update) -> None:
        """Write an update into the epoch that was begun, in view or not."""
        layout, keys = self._begun()
        values: dict[str, bytes] = {}
        published_ms = update.barrier.published_ms
        if (rows := update.users) is not None:
            encoded = encode_users(layout, rows, published_ms)
            values.update(zip(map(keys.user, rows.ids), encoded, strict=True))
        if (block := update.items) is not None:
            encoded = encode_items(layout, block, published_ms)
            values.update(zip(map(keys.item, block.ids), encoded, strict=True))
        for item_id, row in update.covisited.items():
            values[keys.covisited(item_id)] = encode_covisited(row)
        if update.weights is not None:
            values[keys.weights] = encode_weights(update.weights)
        values[keys.barrier] = msgspec.json.encode(update.barrier)
        with self._transaction() as pipe:
            for user_id in update.gone_users:
                pipe.unlink(keys.user(user_id), keys.seen(user_id))
            for item_id in update.gone_items:
                pipe.unlink(keys.item(item_id), keys.covisited(item_id))
            if update.gone_items:
                pipe.srem(keys.items, *update.gone_items)
            for key, value in values.items():
                pipe.set(key, value)
            if block is not None and block.ids:
                pipe.sadd(keys.items, *block.ids)
            for user_id, item_ids in update.seen.items():
                if item_ids:
                    pipe.sadd(keys.seen(user_id), *item_ids)

    def flip(self) -> None:
        """Bring the begun epoch into view at once, in place of the one before."""
        layout, keys = self._begun()
        with _answering(self.where):
            if not self._redis.exists(keys.barrier):
                raise TableError(f"epoch {self._epoch} is empty: publish into it before the flip")
        with self._transaction() as pipe:
            head = _Head(ROW_LAYOUT, self._epoch, layout)
            pipe.set(self._head_key, msgspec.json.encode(head))
        with _answering(self.where):
            self._retire()

    def reader(self) -> Reader:
        """Return a reader of the epoch in view."""
        with _answering(self.where):
            head = self._read_head(self._redis.get(self._head_key))
        if head is None:
            raise TableError(
                f"nothing is published under {self._namespace!r} in the Redis at {self.where}: "
                "start a learner that publishes there, or give --table for what a replay saved"
            )
        return _RedisReader(self._redis, self.where, self._namespace, head)

    @property
    def _head_key(self) -> str:
        return f"{self._namespace}:head"

    def _begun(self) -> tuple[Layout, _Keys]:
        if self._layout is None:
            raise TableError("no epoch was begun: call begin before publish and flip")
        return self._layout, _Keys(self._namespace, self._epoch)

    def _read_head(self, value: Any) -> _Head | None:
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

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Collect commands and run them at once, unless another learner has taken over."""
        pipe: Any  # its commands answer later, which its types do not say
        with _answering(self.where), self._redis.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(self._head_key)
                head = self._read_head(pipe.get(self._head_key))
                if head is not None and head.epoch > self._epoch:
                    raise TableError(
                        f"epoch {self._epoch} was replaced by epoch {head.epoch} in the Redis at "
                        f"{self.where}: another learner has taken over, this one must stop"
                    )
                pipe.multi()
                yield pipe
                pipe.execute()
            except redis.WatchError as error:
                raise TableError(
                    f"another learner flipped its epoch in the Redis at {self.where} just now: "
                    "nothing was written, publish again to see which one is in view"
                ) from error

    def _retire(self) -> None:
        """Let the older epochs run out, the one before after its readers are done."""
        pattern = re.compile(re.escape(f"{self._namespace}:e").encode() + rb"(\d+):")
        with self._redis.pipeline(transaction=False) as pipe:
            pending = 0
            for key in self._redis.scan_iter(match=f"{self._namespace}:e*", count=1_000):
                found = pattern.match(key)
                if found is None or int(found[1]) >= self._epoch:
                    continue
                grace = READER_GRACE_S if key.endswith(b":barrier") else _ROW_GRACE_S
                pipe.expire(key, grace)
                pending += 1
                if pending % _CHUNK == 0:
                    pipe.execute()
            pipe.execute()


class _RedisReader:
    """One epoch of a :class:`RedisTable`; each answer is one round trip."""

    def __init__(self, client: redis.Redis, where: str, namespace: str, head: _Head) -> None:
        self._redis = client
        self._where = where
        self._keys = _Keys(namespace, head.epoch)
        self._head = head

    @property
    def epoch(self) -> int:
        return self._head.epoch

    @property
    def layout(self) -> Layout:
        return self._head.layout

    def barrier(self) -> Barrier:
        value, _ = self._ask("PING")
        return msgspec.json.decode(value, type=Barrier)

    def users(self, user_ids: Sequence[str]) -> UserRows:
        known, values = self._rows(user_ids, self._keys.user)
        return decode_users(self.layout, known, values)

    def items(self, item_ids: Sequence[str]) -> ItemRows:
        known, values = self._rows(item_ids, self._keys.item)
        return decode_items(self.layout, known, values)

    def item_ids(self) -> list[str]:
        _, members = self._ask("SMEMBERS", self._keys.items)
        return sorted(member.decode() for member in members)

    def covisited(self, item_ids: Sequence[str]) -> dict[str, Covisited]:
        known, values = self._rows(item_ids, self._keys.covisited)
        return dict(zip(known, map(decode_covisited, values), strict=True))

    def seen(self, user_id: str) -> frozenset[str]:
        _, members = self._ask("SMEMBERS", self._keys.seen(user_id))
        return frozenset(member.decode() for member in members)

    def weights(self) -> dict[str, NDArray[Any]]:
        _, value = self._ask("GET", self._keys.weights)
        return {} if value is None else decode_weights(value)

    def _rows(
        self, ids: Sequence[str], name: Callable[[str], str]
    ) -> tuple[list[str], list[bytes]]:
        known, values = [], []
        for first in range(0, len(ids), _CHUNK):
            part = ids[first : first + _CHUNK]
            _, found = self._ask("MGET", *map(name, part))
            for one, value in zip(part, found, strict=True):
                if value is not None:
                    known.append(one)
                    values.append(value)
        return known, values

    def _ask(self, command: str, *argument: str) -> tuple[bytes, Any]:
        """Run one reading command together with the look at whether the epoch is still there."""
        pipe: Any  # its commands answer later, which its types do not say
        with _answering(self._where), self._redis.pipeline(transaction=True) as pipe:
            pipe.get(self._keys.barrier)
            pipe.execute_command(command, *argument)
            barrier, answer = pipe.execute()
        if barrier is None:
            raise TableError(
                f"epoch {self.epoch} was replaced more than {READER_GRACE_S} s ago: "
                "take a new reader from the table"
            )
        return barrier, answer
