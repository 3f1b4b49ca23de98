"""A real Kafka for the tests, from wherever this machine can give one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from deploy.local import broker, prepare_broker
from deploy.service import docker_answers, free_port
from stream.settings import KafkaSettings
from tests.certificates import certificates

ADDRESS = "TIDEGRAPH_TEST_KAFKA"
"""Environment variable with the ``host:port`` of a broker that the tests may write to."""


@contextmanager
def kafka_broker(folder: Path) -> Iterator[KafkaSettings]:
    """Give the settings of a broker that answers: named, in a container, or started here.

    Raises
    ------
    BadSettings
        If there is none. Tests must then fail, not be skipped.

    """
    if ADDRESS not in os.environ and docker_answers():
        with container() as kafka:
            yield kafka
        return
    server = os.environ.get(ADDRESS, "127.0.0.1:0")
    with broker(KafkaSettings(servers=(server,)), folder) as kafka:
        yield kafka


@contextmanager
def container() -> Iterator[KafkaSettings]:
    """Run a broker in a container."""
    from testcontainers.community.kafka import KafkaContainer

    made = (
        KafkaContainer()
        .with_kraft()
        .with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        .with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
        .with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    )
    with made as running:
        yield KafkaSettings(servers=(running.get_bootstrap_server(),))


@contextmanager
def secure_broker(folder: Path) -> Iterator[KafkaSettings]:
    """Run a broker that speaks TLS only and asks for a password (SCRAM-SHA-512)."""
    user, password = "tide", secrets.token_hex(8)
    made = certificates(folder)
    kafka = KafkaSettings(
        servers=(f"127.0.0.1:{free_port()}",),
        security="SASL_SSL",
        mechanism="SCRAM-SHA-512",
        user=user,
        password=password,
        ca_file=str(made.authority),
    )
    login = (
        "org.apache.kafka.common.security.scram.ScramLoginModule required "
        f'username="{user}" password="{password}";'
    )
    properties = {
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(made.both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(made.authority),
    }
    scram = ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
    kafka, service = prepare_broker(kafka, folder, properties=properties, format_arguments=scram)
    assert service is not None
    with service:
        yield kafka


def fresh_prefix(kafka: KafkaSettings) -> KafkaSettings:
    """Put a system of its own on a broker that others use too."""
    return msgspec.structs.replace(kafka, prefix=f"test-{secrets.token_hex(4)}.", partitions=2)
