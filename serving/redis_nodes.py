"""The servers behind a Redis address: one, the master that Sentinels name, or a cluster's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import AskError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from stream.errors import BadSettings, TableError

Command = tuple[Any, ...]
"""Name, key, and what else it takes."""

CHUNK: Final = 10_000
"""Rows sent or asked for in one go: some megabytes, some ten milliseconds of a Redis."""

_CONNECT_S: Final = 2.0
"""A connection takes milliseconds; this leaves time to send its first packet again once."""

_ANSWER_S: Final = 5.0
"""A hundred times what an update of some thousand rows takes."""

_FORMS: Final = (
    "redis://host:port/db, redis+sentinel://host:port,host:port/service/db or "
    "redis+cluster://host:port,host:port, with rediss for TLS and user:password@ before the host"
)

_URL: Final = re.compile(
    r"redis(?P<tls>s?)(\+(?P<kind>sentinel|cluster))?://((?P<login>.*)@)?(?P<hosts>[^/]+)(/(?P<path>.*))?"
)
_HOST: Final = re.compile(r"(\[(?P<ipv6>[0-9a-fA-F:]+)\]|(?P<name>[^:\[\]]+))(:(?P<port>\d+))?")


class _Primaries(Protocol):
    """What is used of a cluster's client; redis-py does not type all of it."""

    def get_primaries(self) -> list[Any]: ...
    def get_node_from_key(self, key: str) -> Any: ...
    def get_redis_connection(self, node: Any) -> redis.Redis: ...
    def execute_command(self, *command: Any) -> Any: ...


class RedisNodes:
    """The servers behind one address. Nothing is connected before the first use.

    Parameters
    ----------
    url, password, ca_file
        As in ``stream.settings.RedisSettings``; a password in the address goes before
        ``password``.

    Raises
    ------
    BadSettings
        If the address or the certificate file cannot be used.

    Notes
    -----
    A server that hangs is given up after 5 s, one that is not there after 2 s; a connection that
    was cut is made anew once.

    Examples
    --------
    >>> nodes = RedisNodes("redis+cluster://:secret@10.0.0.1:6379,10.0.0.2:6379")
    >>> nodes.where, nodes.is_cluster
    ('redis+cluster://10.0.0.1:6379,10.0.0.2:6379', True)

    """

    def __init__(self, url: str, *, password: str = "", ca_file: str = "") -> None:
        self.where = re.sub("//.*@", "//", url)
        found = _URL.fullmatch(url)
        if found is None:
            raise BadSettings(f"{self.where!r} is not the address of a Redis: want {_FORMS}")
        self._kind = found["kind"]
        self._sentinels: list[redis.Redis] = []
        self._hosts = [self._host(each) for each in found["hosts"].split(",")]
        path = found["path"] or ""
        self._service: str
        self._service, _, db = (path if self._kind == "sentinel" else "/" + path).partition("/")
        if not re.fullmatch(r"\d*", db, re.ASCII) or not self._usable(int(db or 0)):
            raise BadSettings(f"{self.where!r} is not the address of a Redis: want {_FORMS}")
        self._db = int(db or 0)
        user, _, secret = (found["login"] or "").partition(":")
        self._options: dict[str, Any] = {
            "socket_connect_timeout": _CONNECT_S,
            "socket_timeout": _ANSWER_S,
        }
        if found["tls"]:
            self._options |= {"ssl": True, "ssl_ca_certs": ca_file or None}
            if ca_file and not Path(ca_file).is_file():
                raise BadSettings(f"want the PEM file of an authority for Redis, none at {ca_file}")
        elif ca_file:
            raise BadSettings(
                f"{ca_file} is given for the Redis at {self.where}, which is asked without TLS: "
                "want an address that begins with rediss"
            )
        self._login = {"username": unquote(user) or None, "password": unquote(secret) or password}

    @property
    def is_cluster(self) -> bool:
        """Whether keys lie on several servers, so that no transaction spans them all."""
        return self._kind == "cluster"

    def all(self) -> list[redis.Redis]:
        """Return every server that holds keys."""
        if not self.is_cluster:
            return [self._server]
        return [self._cluster.get_redis_connection(n) for n in self._cluster.get_primaries()]

    def of(self, key: str) -> redis.Redis:
        """Return the server that holds a key."""
        if not self.is_cluster:
            return self._server
        return self._cluster.get_redis_connection(self._cluster.get_node_from_key(key))

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, server by server, those of one server in order; return their answers.

        The servers come in the order of their first command: it is answered before any command
        of the next server is sent.
        """
        places: dict[redis.Redis, list[int]] = defaultdict(list)
        for place, command in enumerate(commands):
            places[self.of(command[1])].append(place)
        answers: list[Any] = [None] * len(commands)
        for server, own in places.items():
            for part in _parts(commands, own):
                pipe: Any  # its commands answer later, which its types do not say
                with server.pipeline(transaction=False) as pipe:
                    for place in part:
                        pipe.execute_command(*commands[place])
                    found = pipe.execute(raise_on_error=False)
                for place, answer in zip(part, found, strict=True):
                    answers[place] = self._final(commands[place], answer)
        return answers

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        for name in ("_server", "_cluster"):
            for pool in self._forget(name):
                pool.disconnect()

    def __del__(self) -> None:
        """Close the connections, as clients and pools refer to each other and would linger."""
        self.close()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn the trouble of a connection into the house's error.

        Raises
        ------
        BadSettings
            If Redis does not take the password.
        TableError
            If it does not answer as wanted.

        """
        try:
            yield
        except (redis.RedisError, RedisClusterException, msgspec.DecodeError) as error:
            # The cluster may have other nodes by now: ask for them anew next time. Connections
            # that other threads use are left to them.
            for pool in self._forget("_cluster"):
                pool.disconnect(inuse_connections=False)
            if any(isinstance(e, redis.AuthenticationError) for e in (error, error.__cause__)):
                raise BadSettings(
                    f"the Redis at {self.where} does not take the user and password: {error}; "
                    "give them in the address or as TIDEGRAPH_REDIS_PASSWORD"
                ) from error
            raise TableError(
                f"the Redis at {self.where} does not answer as wanted: {error}; "
                "is it running, and is the address right?"
            ) from error

    def _forget(self, client: str) -> list[Any]:
        """Let go of a client, if it is there, and return its pools of connections."""
        found = self.__dict__.pop(client, None)
        if found is None:
            return []
        clients = [found, *self._sentinels]
        if self.is_cluster:
            clients = [node.redis_connection for node in found.get_nodes()]
        return [each.connection_pool for each in clients if each is not None]

    def _usable(self, db: int) -> bool:
        """Tell whether the parts of the address go together."""
        if self._kind == "sentinel":
            return bool(self._service)
        return db == 0 if self.is_cluster else len(self._hosts) == 1

    def _host(self, text: str) -> tuple[str, int]:
        found = _HOST.fullmatch(text)
        if found is None or int(found["port"] or 1) not in range(1, 65_536):
            raise BadSettings(f"{self.where!r} is not the address of a Redis: want {_FORMS}")
        usual = 26_379 if self._kind == "sentinel" else 6_379
        return found["ipv6"] or found["name"], int(found["port"] or usual)

    @cached_property
    def _server(self) -> redis.Redis:
        options = self._options | self._login | {"db": self._db, "retry": _once_more()}
        if self._kind == "sentinel":
            sentinel: Any = Sentinel  # redis-py has no types for it
            asked = sentinel(self._hosts, sentinel_kwargs=self._options, **options)
            self._sentinels = asked.sentinels
            master: redis.Redis = asked.master_for(self._service)
            return master
        host, port = self._hosts[0]
        return redis.Redis(host, port, **options)

    @cached_property
    def _cluster(self) -> _Primaries:
        node: Any = ClusterNode  # redis-py has no types for it
        nodes = [node(host, port) for host, port in self._hosts]
        return RedisCluster(
            startup_nodes=nodes, retry=_once_more(), **(self._options | self._login)
        )

    def _final(self, command: Command, answer: Any) -> Any:
        """Return an answer, asked for again where the cluster has moved the key elsewhere."""
        if isinstance(answer, AskError) and self.is_cluster:
            return self._cluster.execute_command(*command)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _once_more() -> Retry:
    """Return what makes a cut connection anew, at once; a server that hangs is not asked twice."""
    return Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))


def _parts(commands: Sequence[Command], places: Sequence[int]) -> Iterator[list[int]]:
    """Cut what goes to one server into parts of some megabytes."""
    part: list[int] = []
    size = 0
    for place in places:
        part.append(place)
        size += len(commands[place])
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part
