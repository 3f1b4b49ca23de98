"""Settings come from a file and the environment, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.errors import BadSettings
from stream.settings import KafkaSettings, Settings, load_settings

FILE = """
[kafka]
servers = ["a:1", "b:2"]
prefix = "one."
max_record_bytes = 2_000_000

[stream]
batch = 512
lateness_s = 60

[redis]
url = "rediss://cache:6380/1"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tidegraph.toml"
    path.write_text(FILE)
    return path


def test_without_anything_there_are_defaults() -> None:
    assert load_settings(environ={}) == Settings()


def test_a_file_says_what_differs_from_the_defaults(file: Path) -> None:
    settings = load_settings(file, {})
    assert settings.kafka.servers == ("a:1", "b:2")
    assert (settings.stream.batch, settings.stream.lateness_s) == (512, 60.0)
    assert settings.stream.group == Settings().stream.group
    assert settings.redis.url == "rediss://cache:6380/1"
    assert settings.learner == Settings().learner


def test_the_environment_goes_over_the_file(file: Path) -> None:
    environ = {
        "TIDEGRAPH_KAFKA_SERVERS": "c:3, d:4",
        "TIDEGRAPH_KAFKA_COMPRESSION": "zstd",
        "TIDEGRAPH_STREAM_MAX_FUTURE_S": "1.5",
        "TIDEGRAPH_LEARNER_SEED": "7",
        "TIDEGRAPH_REDIS_PASSWORD": "secret",
        "TIDEGRAPH_TEST_KAFKA": "not a setting",
        "HOME": "/",
    }
    settings = load_settings(file, environ)
    assert settings.kafka.servers == ("c:3", "d:4")
    assert (settings.kafka.compression, settings.kafka.prefix) == ("zstd", "one.")
    assert (settings.stream.max_future_s, settings.stream.batch) == (1.5, 512)
    assert (settings.learner.seed, settings.redis.password) == (7, "secret")


def test_the_environment_may_name_the_file(file: Path) -> None:
    assert load_settings(environ={"TIDEGRAPH_CONFIG": str(file)}) == load_settings(file, {})


def test_passwords_are_not_shown() -> None:
    settings = load_settings(
        environ={"TIDEGRAPH_KAFKA_PASSWORD": "hush", "TIDEGRAPH_KAFKA_USER": "u"}
    )
    assert "hush" not in repr(settings)
    assert "password='***'" in repr(settings.kafka)
    assert "password=''" in repr(settings.redis)


def test_a_prefix_goes_before_each_topic() -> None:
    assert KafkaSettings(prefix="one.").topic("feedback") == "one.feedback"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[kafka", "is not TOML"),
        ("[kafak]", "unknown field `kafak`"),
        ("[kafka]\nserver = []", "unknown field `server`"),
        ("[kafka]\npartitions = 0", r"`int` >= 1 - at `\$\.kafka\.partitions`"),
        ("[kafka]\nsecurity = 'TLS'", r"'TLS' - at `\$\.kafka\.security`"),
        ("[stream]\nlateness_s = -1", r"at `\$\.stream\.lateness_s`"),
        ("[stream]\nport = 70_000", r"at `\$\.stream\.port`"),
        ("[learner]\nranked_share = 1.5", r"at `\$\.learner\.ranked_share`"),
        ("[stream]\nbatch = 'many'", r"at `\$\.stream\.batch`"),
    ],
)
def test_a_file_that_says_something_wrong(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(BadSettings, match=f"settings: .*settings.toml.*{told}"):
        load_settings(path, {})


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"cannot read .*absent\.toml: No such file"):
        load_settings(tmp_path / "absent.toml", {})
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="is not TOML"):
        load_settings(path, {})


def test_a_variable_that_says_something_wrong_is_named() -> None:
    with pytest.raises(BadSettings, match=r"TIDEGRAPH_STREAM_BATCH: .*at `\$\.stream\.batch`"):
        load_settings(environ={"TIDEGRAPH_STREAM_BATCH": "many"})
