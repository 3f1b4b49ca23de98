"""Settings of every process, from one TOML file and the environment."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from stream.errors import BadSettings

_PREFIX: Final = "TIDEGRAPH_"
_HIDDEN: Final = "***"
_SECRET: Final = ("password", "jwt_key", "pseudonym_key", "snapshot_key")
_LOGIN: Final = re.compile("//.*@")

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""

    def __repr__(self) -> str:
        """Show what is set, without passwords and keys."""
        shown = {name: _shown(name, value) for name, value in msgspec.structs.asdict(self).items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def _shown(name: str, value: Any) -> Any:
    """Return a value as it may be printed.

    Examples
    --------
    >>> _shown("password", "opensesame"), _shown("url", "redis://me:opensesame@10.0.0.1/0")
    ('***', 'redis://***@10.0.0.1/0')

    """
    if name in _SECRET:
        return value and _HIDDEN
    return _LOGIN.sub(f"//{_HIDDEN}@", value) if isinstance(value, str) else value


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
    rules
        Name of a shipped rule set, or the path of one, by which events are typed anew before they
        are learned; empty: as the stream worker has typed them.
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
    frozen
        Whether a copy of the model's parameters, a day old at most, ranks them as well; it takes
        memory, and shows what learning online is worth.
    idle_s
        How long a partition without records is waited for before the others go on.
    ready_lag
        Events behind the end of the log at which a learner that catches up counts as ready.
    port
        Of the metrics; 0 takes any free one.
    snapshot_key, snapshot_key_file
        64 hexadecimal digits with which snapshots are encrypted, or the file that holds them;
        without either they are not encrypted.
    seed, device
        Of the model; an empty device is ``cuda`` where there is one.

    """

    rules: str = ""
    snapshots: str = "var/snapshots"
    snapshot_s: Positive = 60.0
    publish_s: Positive = 0.2
    micro_batch: Count = 64
    max_micro_batch: Count = 256
    ranked_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    frozen: bool = True
    idle_s: Positive = 0.5
    ready_lag: Count = 1_000
    port: Port = 6067
    snapshot_key: str = ""
    snapshot_key_file: str = ""
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
    request_s
        How long an answer may take.
    max_body_bytes
        Greatest body of a request.
    cert_file, key_file
        PEM files for TLS; without them the API speaks plain HTTP.
    keys_file
        Hashed API keys, as ``tidegraph keys new`` makes them. Without this file and without
        ``jwt_key``, everybody on this machine may do everything, and nobody else can connect.
    jwt_key, jwt_key_file
        The public key (PEM) or the secret by which JSON Web Tokens are checked, or its file;
        without either no tokens are taken.
    jwt_algorithm, jwt_issuer, jwt_audience
        What a token must be signed with, by whom, and for whom.
    requests_per_s
        Of one key or token, at most, where its key has no limit of its own; 0 is no limit. What
        was not used for a second may come at once.
    audit_file
        Where actions of operators are written down, one JSON object on each line.
    cors_origins
        Of other web sites whose pages may read answers, as ``https://shop.example``.
    pseudonym_key, pseudonym_key_file
        64 hexadecimal digits with which user ids become pseudonyms before they reach Kafka, or the
        file that holds them; without either they are taken as they are.

    """

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Count = 1
    stale_s: Positive = 60.0
    exact_up_to: Count = 200_000
    request_s: Positive = 10.0
    max_body_bytes: Count = 16_777_216
    cert_file: str = ""
    key_file: str = ""
    keys_file: str = "var/keys.json"
    jwt_key: str = ""
    jwt_key_file: str = ""
    jwt_algorithm: Literal["EdDSA", "RS256", "HS256"] = "EdDSA"
    jwt_issuer: str = ""
    jwt_audience: str = ""
    requests_per_s: Annotated[float, msgspec.Meta(ge=0)] = 10_000.0
    audit_file: str = "var/audit.jsonl"
    cors_origins: tuple[str, ...] = ()
    pseudonym_key: str = ""
    pseudonym_key_file: str = ""


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
                    value = [part.strip() for part in value.split(",") if part.strip()]
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
