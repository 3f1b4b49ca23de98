"""A broker and a Redis come from wherever they can be had, and keep what they hold."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from deploy import local
from deploy.local import KAFKA_VERSION, kafka_answers, prepare_broker, prepare_redis
from deploy.service import free_port, listens
from stream.errors import BadSettings
from stream.kafka import librdkafka
from stream.settings import KafkaSettings, RedisSettings
from tests.house import ROOT

ANYWHERE = KafkaSettings(servers=("127.0.0.1:0",))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give a folder that is all there is on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def script(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)


def put(kafka: KafkaSettings, value: bytes) -> None:
    producer = Producer(librdkafka(kafka))
    producer.produce("kept", value, partition=0)
    assert producer.flush(30) == 0


def get(kafka: KafkaSettings, number: int) -> list[bytes | None]:
    reader = Consumer(librdkafka(kafka) | {"group.id": "test", "auto.offset.reset": "earliest"})
    try:
        reader.assign([TopicPartition("kept", 0, 0)])
        return [message.value() for message in reader.consume(number, timeout=30)]
    finally:
        reader.close()


@pytest.mark.slow
def test_a_broker_keeps_its_data_and_address_when_stopped_killed_and_started(
    tmp_path: Path,
) -> None:
    kafka, service = prepare_broker(ANYWHERE, tmp_path)
    assert service is not None
    with service:
        topic = NewTopic("kept", num_partitions=1, replication_factor=1)
        admin = AdminClient(librdkafka(kafka))
        admin.create_topics([topic])["kept"].result(30)
        put(kafka, b"first")
        service.stop()
        assert not service.is_running()
        assert not kafka_answers(kafka)
        service.start()
        put(kafka, b"second")
        service.kill()
        assert not kafka_answers(kafka)
        service.start()
        assert get(kafka, 2) == [b"first", b"second"]
    assert not service.is_running()
    # Another time, in the same folder: a broker that finds its data, and is found itself.
    kafka, service = prepare_broker(kafka, tmp_path)
    assert service is not None
    with service:
        assert get(kafka, 2) == [b"first", b"second"]
        assert prepare_broker(kafka, tmp_path) == (kafka, None)


def test_a_broker_makes_no_topics_by_itself(kafka: KafkaSettings) -> None:
    client = AdminClient(librdkafka(kafka))
    client.list_topics("test-misspelt", timeout=30)
    assert "test-misspelt" not in client.list_topics(timeout=30).topics


def test_a_secure_broker_lets_in_who_knows_the_password(secure_kafka: KafkaSettings) -> None:
    assert kafka_answers(secure_kafka)
    assert not kafka_answers(msgspec.structs.replace(secure_kafka, password="another"))
    assert not kafka_answers(msgspec.structs.replace(secure_kafka, ca_file=""))
    assert not kafka_answers(msgspec.structs.replace(secure_kafka, security="PLAINTEXT"))


@pytest.mark.usefixtures("only")
def test_without_any_broker_the_three_ways_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"set kafka\.servers .*, start Docker, or .*Java 17"):
        prepare_broker(ANYWHERE, tmp_path)


def test_an_old_java_is_refused(only: Path, tmp_path: Path) -> None:
    script(only / "java", "import sys; print('openjdk version \"11.0.2\"', file=sys.stderr)")
    with pytest.raises(BadSettings, match=r"17 or newer.*11\.0\.2.*start Docker"):
        prepare_broker(ANYWHERE, tmp_path)


def test_libraries_that_cannot_be_fetched_leave_nothing_behind(
    only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script(only / "java", "import sys; print('openjdk version \"17.0.1\"', file=sys.stderr)")
    with pytest.raises(BadSettings, match="Maven"):
        prepare_broker(ANYWHERE, tmp_path)
    script(only / "mvn", "print('no way to Maven Central'); raise SystemExit(1)")
    with pytest.raises(BadSettings, match=r"(?s)fetch the broker's libraries.*no way to Maven"):
        prepare_broker(ANYWHERE, tmp_path)
    assert list(Path(tmp_path, "cache", "tidegraph").iterdir()) == []


def test_libraries_are_fetched_once(
    only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    count = tmp_path / "count"
    script(
        only / "mvn",
        "import sys, pathlib\n"
        "place = next(a for a in sys.argv if a.startswith('-DoutputDirectory='))\n"
        "folder = pathlib.Path(place.partition('=')[2]); folder.mkdir()\n"
        "(folder / 'kafka.jar').touch()\n"
        f"open({str(count)!r}, 'a').write('.')",
    )
    assert local._libraries() == local._libraries() == tmp_path / f"tidegraph/kafka-{KAFKA_VERSION}"
    assert [jar.name for jar in local._libraries().iterdir()] == ["kafka.jar"]
    assert count.read_text() == "."


@pytest.mark.parametrize(
    ("kafka", "words"),
    [
        (KafkaSettings(servers=("127.0.0.1:1", "127.0.0.1:2")), "127.0.0.1:1, 127.0.0.1:2"),
        (KafkaSettings(servers=("tidegraph.invalid:9092",)), "tidegraph.invalid"),
        (KafkaSettings(servers=("127.0.0.1:1",), security="SASL_SSL"), "SASL_SSL"),
        (KafkaSettings(servers=("127.0.0.1:port",)), "host:port"),
    ],
)
def test_no_broker_is_started_where_the_settings_mean_another(
    kafka: KafkaSettings, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSettings, match=re.escape(words)):
        prepare_broker(kafka, tmp_path)


def test_with_docker_broker_and_redis_run_in_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # An engine made of this machine: it takes the options of docker run, and runs the program.
    tmp_path.joinpath("bin").mkdir()
    calls = tmp_path / "calls"
    script(
        tmp_path / "bin" / "docker",
        "import os, sys\n"
        f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if sys.argv[1] != 'run': raise SystemExit(0)\n"
        "image = next(n for n, a in enumerate(sys.argv) if a.startswith(('apache/', 'redis:')))\n"
        "program = sys.argv[image + 1:]\n"
        "if '--entrypoint' in sys.argv: program.insert(0, 'java')\n"
        f"libs = {str(local._libraries())!r}\n"
        "program = [a.replace('/opt/kafka/libs', libs) for a in program]\n"
        "os.execvp(program[0], program)",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with local.redis_server(RedisSettings(url="redis://127.0.0.1:0/0"), tmp_path / "r") as redis:
        assert listens("127.0.0.1", int(redis.url.split(":")[2].split("/")[0]))
    with local.broker(ANYWHERE, tmp_path / "k") as kafka:
        assert kafka_answers(kafka)
    (port,) = re.findall(r":(\d+)", kafka.servers[0])
    ran = [line for line in calls.read_text().splitlines() if line.startswith("run")]
    assert len(ran) == 3
    assert f"--volume {tmp_path / 'r'}:{tmp_path / 'r'}" in ran[0]
    assert f"--name tidegraph-kafka-{port} --user {os.getuid()}:" in ran[2]
    assert f"--publish 127.0.0.1:{port}:{port}" in ran[2]


def test_one_version_of_the_broker_is_named_everywhere() -> None:
    pom = Path(local.__file__).with_name("kafka").joinpath("pom.xml").read_text("utf-8")
    compose = ROOT.joinpath("deploy", "compose.yaml").read_text("utf-8")
    assert re.findall(r"<kafka.version>(.*)</", pom) == [KAFKA_VERSION]
    assert re.findall(r"image: apache/kafka:(.*)", compose) == [KAFKA_VERSION]
    assert re.findall(r"image: (redis:.*)", compose) == [local.REDIS_IMAGE]


def test_a_redis_is_started_where_the_settings_say(tmp_path: Path) -> None:
    port = free_port()
    asked = RedisSettings(url=f"redis://:se%40c%22r%5Cet@localhost:{port}/3")
    redis, service = prepare_redis(asked, tmp_path)
    assert redis == asked
    assert service is not None
    with service:
        assert prepare_redis(asked, tmp_path) == (asked, None)
        assert service.answers()
    assert not listens("127.0.0.1", port)


@pytest.mark.parametrize(
    "url",
    [
        "redis://tidegraph.invalid:6379/0",
        "rediss://127.0.0.1:1/0",
        "redis+cluster://127.0.0.1:1,127.0.0.1:2",
    ],
)
def test_no_redis_is_started_where_the_settings_mean_another(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"set redis\.url .*start Docker.*redis-server 7"):
        prepare_redis(RedisSettings(url=url), tmp_path)


def test_an_old_redis_is_refused(only: Path, tmp_path: Path) -> None:
    anywhere = RedisSettings(url="redis://127.0.0.1:0/0")
    with pytest.raises(BadSettings, match="install redis-server"):
        prepare_redis(anywhere, tmp_path)
    script(only / "redis-server", "print('Redis server v=6.2.7 sha=0')")
    with pytest.raises(BadSettings, match=r"7 or newer.*6\.2\.7"):
        prepare_redis(anywhere, tmp_path)
