"""Settings of every process, from one TOML file and the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from stream.errors import BadSettings

_PREFIX: Final = "TIDEGRAPH_"
_HIDDEN: Final = "***"

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""

    def __repr__(self) -> str:
        """Show what is set, without passwords."""
        shown = {
            name: _HIDDEN if name.endswith("password") and value else value
            for name, value in msgspec.structs.asdict(self).items()
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class KafkaSettings(_Section, frozen=True):
    """The broker: where it is, how to log in, and what its topics are like.

    Parameters
    ----------
    servers
        ``host:port`` of one or several brokers.
    prefix
        Put before the name of every topic, group and transaction, so that several systems share
        a broker.
    security
        As Kafka names its protocols.
    mechanism, user, password
        Of SASL.
    ca_file, cert_file, key_file
        PEM files for TLS; without ``ca_file`` the system's authorities are trusted.
    compression
        Of what we produce.
    partitions, replication, retention_h
        Of the topics that ``tidegraph topics create`` makes.
    max_record_bytes
        Greatest record that producers send and topics take.

    """

    servers: tuple[str, ...] = ("127.0.0.1:9092",)
    prefix: str = ""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    user: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    partitions: Count = 4
    replication: Count = 1
    retention_h: Positive = 168.0
    max_record_bytes: Count = 1_048_576

    def topic(self, name: str) -> str:
        """Return the name of a topic on the broker."""
        return self.prefix + name


class StreamSettings(_Section, frozen=True):
    """The stream worker.

    Parameters
    ----------
    rules
        Name of a shipped rule set, or the path of one.
    lateness_s
        How far an event may lie behind the newest one of its partition.
    max_future_s
        How far an event may lie ahead of the time at which its record was appended.
    group
        Consumer group that the workers share.
    batch
        Records of one transaction, at most.
    watchdog_s
        With records waiting and none processed for so long, the process ends with an error.
    port
        Of the web view and the metrics; 0 takes any free one.

    """

    rules: str = "kuairand"
    lateness_s: Annotated[float, msgspec.Meta(ge=0)] = 3_600.0
    max_future_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    group: str = "stream"
    batch: Count = 8_192
    watchdog_s: Positive = 60.0
    port: Port = 6066


class LearnerSettings(_Section, frozen=True):
    """The learner worker.

    Parameters
    ----------
    snapshots
        Folder of the snapshots; one learner at a time owns it.
    snapshot_s
        Between two snapshots.
    publish_s
        Between two writes of touched rows.
    micro_batch, max_micro_batch
        Events of a step when there is no lag, and at most when there is.
    ranked_share
        Random share of positive events that is ranked before it is learned from.
    idle_s
        How long a partition without records is waited for before the others go on.
    ready_lag
        Events behind the end of the log at which a learner that catches up counts as ready.
    port
        Of the metrics; 0 takes any free one.
    seed, device
        Of the model; an empty device is ``cuda`` where there is one.

    """

    snapshots: str = "var/snapshots"
    snapshot_s: Positive = 60.0
    publish_s: Positive = 0.2
    micro_batch: Count = 64
    max_micro_batch: Count = 256
    ranked_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    idle_s: Positive = 0.5
    ready_lag: Count = 1_000
    port: Port = 6067
    seed: int = 0
    device: Literal["", "cpu", "cuda"] = ""


class RedisSettings(_Section, frozen=True):
    """The published table.

    Parameters
    ----------
    url
        ``redis://`` or ``rediss://`` (TLS) ``[user:password@]host:port/db``;
        ``redis+sentinel://host:port,host:port/service/db``;
        ``redis+cluster://host:port,host:port``.
    password
        Where it must not stand in the address.
    ca_file
        PEM file for TLS; without it the system's authorities are trusted.
    namespace
        Prefix of every key.

    """

    url: str = "redis://127.0.0.1:6379/0"
    password: str = ""
    ca_file: str = ""
    namespace: str = "tidegraph"


class ServingSettings(_Section, frozen=True):
    """The API.

    Parameters
    ----------
    host, port
        Where it listens; port 0 takes any free one.
    workers
        Processes that share the port; each holds the items in memory.
    stale_s
        When nothing was published for so long, answers are marked stale and the probe for
        readiness fails.
    exact_up_to
        Items up to which every list is exact; beyond, candidates come from an index.

    """

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Count = 1
    stale_s: Positive = 60.0
    exact_up_to: Count = 200_000


class Settings(_Section, frozen=True):
    """Everything that a process can be told.

    Examples
    --------
    >>> Settings().kafka.servers
    ('127.0.0.1:9092',)
    >>> load_settings(environ={"TIDEGRAPH_KAFKA_PARTITIONS": "8"}).kafka.partitions
    8

    """

    kafka: KafkaSettings = KafkaSettings()
    stream: StreamSettings = StreamSettings()
    learner: LearnerSettings = LearnerSettings()
    redis: RedisSettings = RedisSettings()
    serving: ServingSettings = ServingSettings()


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of a file, with those of the environment put over them.

    Parameters
    ----------
    path
        TOML with the tables ``[kafka]``, ``[stream]``, ``[learner]``, ``[redis]`` and
        ``[serving]``; ``None`` takes what ``TIDEGRAPH_CONFIG`` names, or else the defaults.
    environ
        Looked through for ``TIDEGRAPH_<TABLE>_<KEY>``; lists are separated by commas.

    Raises
    ------
    BadSettings
        If the file cannot be read, or names something unknown or out of range.

    """
    environ = os.environ if environ is None else environ
    if path is None and (named := environ.get(_PREFIX + "CONFIG")):
        path = Path(named)
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadSettings(f"settings: cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadSettings(f"settings: {path} is not TOML: {error}") from error
    settings = _checked(tables, str(path))
    for section in msgspec.structs.fields(Settings):
        for each in msgspec.structs.fields(section.type):
            variable = f"{_PREFIX}{section.name}_{each.name}".upper()
            if variable in environ:
                value: Any = environ[variable]
                if each.type == tuple[str, ...]:
                    value = [part.strip() for part in value.split(",")]
                tables.setdefault(section.name, {})[each.name] = value
                settings = _checked(tables, variable)
    return settings


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which a process that we start gets these very settings.

    Examples
    --------
    >>> told = as_environment(Settings())
    >>> told["TIDEGRAPH_KAFKA_SERVERS"], told["TIDEGRAPH_LEARNER_PORT"]
    ('127.0.0.1:9092', '6067')
    >>> load_settings(environ=told) == Settings()
    True

    """
    return {
        f"{_PREFIX}{section}_{name}".upper(): ",".join(value)
        if isinstance(value, tuple)
        else str(value)
        for section, table in msgspec.structs.asdict(settings).items()
        for name, value in msgspec.structs.asdict(table).items()
    }


def _checked(tables: dict[str, Any], origin: str) -> Settings:
    try:
        # Not strict: the environment has only text, so "8" must do for 8.
        return msgspec.convert(tables, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise BadSettings(f"settings: {origin}: {error}") from error
