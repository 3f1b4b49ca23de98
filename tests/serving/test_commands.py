"""``tidegraph embeddings`` prints what is published, from a file or from Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from serving.redis_table import RedisTable
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout, UserRows
from serving.table import MemoryTable, Table, Update
from stream.settings import RedisSettings
from tidegraph import main

MAY_4_MS = 1_651_622_400_000


def publish(table: Table) -> None:
    """Publish one user who looks to the east, and items around the compass."""
    table.begin(Layout(dim=2, counts=(Count("clicks", 60_000),)))
    east, north_east, north, nowhere = [1.0, 0.0], [3.0, 3.0], [0.0, 2.0], [0.0, 0.0]
    table.publish(
        Update(
            barrier=Barrier(step=7, at_ms=MAY_4_MS + 90_000, published_ms=1_700_000_000_000),
            users=UserRows(
                ["712"],
                np.array([east], np.float32),
                np.array([MAY_4_MS]),
                [[("north", 1, MAY_4_MS)]],
            ),
            items=ItemRows(
                ["north", "north-east", "east", "nowhere"],
                np.array([north, north_east, east, nowhere], np.float32),
                np.array([0.5, 0, 0, 0], np.float32),
                np.array([[8.0], [0], [0], [0]]),
                np.full(4, MAY_4_MS + 30_000),
            ),
            covisited={"north": Covisited(["east"], np.array([0.25], np.float32), MAY_4_MS)},
            seen={"712": ["north", "gone"]},
        )
    )
    table.flip()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    table = MemoryTable()
    publish(table)
    table.save(tmp_path / "table")
    return tmp_path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["embeddings", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def run_json(*arguments: str | Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(run(*arguments, "--json"))
    assert shown.pop("age_ms") > 0
    return shown


def test_a_user_is_shown_with_age_history_and_the_nearest_items(saved: Path) -> None:
    shown = run_json("user", "712", "--table", saved)
    near = shown.pop("neighbours")
    assert [row["item_id"] for row in near] == ["east", "north-east", "north", "nowhere"]
    assert [row["cosine"] for row in near] == pytest.approx([1, 0.5**0.5, 0, 0])
    assert shown == {
        "user_id": "712",
        "vector": [1.0, 0.0],
        "ts_ms": MAY_4_MS,
        "behind_ms": 90_000,
        "published_ms": 1_700_000_000_000,
        "seen": 2,
        "recent": [{"item_id": "north", "kind": "implicit_positive", "ts_ms": MAY_4_MS}],
    }


def test_the_counts_of_an_item_are_those_of_the_newest_published_event(saved: Path) -> None:
    shown = run_json("item", "north", "--table", saved)
    assert shown["counts"] == [{"name": "clicks", "half_life_ms": 60_000, "count": 4.0}]
    assert shown["bias"] == 0.5
    assert "north" not in [row["item_id"] for row in shown["neighbours"]]


def test_similar_items_come_by_vector_and_by_visit(saved: Path) -> None:
    shown = run_json("similar", "north", "--table", saved)
    assert shown["neighbours"][0]["item_id"] == "north-east"
    assert shown["covisited"] == [{"item_id": "east", "weight": 0.25}]


def test_the_page_for_people_reads_well(saved: Path) -> None:
    lines = run("user", "712", "--table", saved).splitlines()
    assert lines[0] == "user_id 712"
    assert lines[1] == "vector of 2, length 1.000: 1.000 0.000"
    assert lines[2].startswith("as of 2022-05-04 00:00:00 UTC, 1.5 min behind the newest published")
    assert lines[3:7] == [
        "seen: 2",
        "recent:",
        f"  north  implicit_positive  {MAY_4_MS}",
        "neighbours:",
    ]
    assert lines[7] == "  east  1.0000"


def test_the_table_in_redis_is_read_at_the_address_in_the_environment(
    redis_table: Callable[[], RedisTable], redis_url: str, namespace: str
) -> None:
    publish(redis_table())
    result = CliRunner(env={"TIDEGRAPH_REDIS_URL": redis_url}).invoke(
        main, ["embeddings", "similar", "north", "--namespace", namespace, "--json"]
    )
    assert json.loads(result.output)["covisited"] == [{"item_id": "east", "weight": 0.25}]


def test_the_table_is_read_where_a_settings_file_says(
    redis_with_password: RedisSettings, namespace: str, tmp_path: Path
) -> None:
    publish(
        RedisTable(
            redis_with_password.url, namespace=namespace, password=redis_with_password.password
        )
    )
    lines = [f"{name} = {getattr(redis_with_password, name)!r}" for name in ("url", "password")]
    config = tmp_path / "tidegraph.toml"
    config.write_text("\n".join(["[redis]", *lines, f"namespace = {namespace!r}"]))
    assert run_json("item", "north", "--config", config)["bias"] == 0.5
    elsewhere = ["embeddings", "item", "north", "--config", str(config), "--namespace", "nobody"]
    assert "nothing is published under 'nobody'" in CliRunner().invoke(main, elsewhere).output


@pytest.mark.parametrize("command", ["user", "item", "similar"])
def test_an_unknown_id_is_the_users_mistake(saved: Path, command: str) -> None:
    result = CliRunner().invoke(main, ["embeddings", command, "nobody", "--table", str(saved)])
    assert result.exit_code == 2
    assert "'nobody' among the published rows of epoch 1, which hold 4 items" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_folder_without_a_table_is_the_users_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["embeddings", "user", "712", "--table", str(tmp_path)])
    assert result.exit_code == 2
    assert "give the folder that was the replay's --out" in result.output


def test_a_redis_that_is_not_there_is_one_message() -> None:
    result = CliRunner().invoke(
        main, ["embeddings", "user", "712", "--redis", "redis://127.0.0.1:1/0"]
    )
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "Traceback" not in result.output
