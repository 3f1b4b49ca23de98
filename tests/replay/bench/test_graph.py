"""The graph bench answers in the agreed form, and its events have the degrees it states."""

from __future__ import annotations

import json

import numpy as np
from click.testing import CliRunner

from deploy.bench import bench
from replay.bench.graph import Zipf, event_stream


def test_the_answer_has_the_keys_that_tools_rely_on() -> None:
    sizes = "--nodes 2000 --edges 3000 --peer-nodes 2000 --peer-edges 3000 --rounds 2 --reads 2"
    result = CliRunner().invoke(bench, ["graph", *sizes.split(), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["bench"] == "graph"
    for case in ("append", "recent20", "restore"):
        figures = report["results"][case]
        assert figures["events_per_s"] > 0
        assert (figures["nodes"], figures["edges"]) == (2000, 3000)
    assert report["results"]["append"]["half_edges"] <= 6000
    assert report["results"]["restore"]["state_hash_equal"]
    assert set(report["ratios"]) == {"append/pyg_last_neighbours", "recent20/pyg_last_neighbours"}
    assert report["settings"]["cores_used"] == 1


def test_without_json_there_is_a_line_for_each_figure() -> None:
    sizes = "--nodes 500 --edges 500 --peer-nodes 500 --peer-edges 500 --rounds 1 --reads 1"
    result = CliRunner().invoke(bench, ["graph", *sizes.split()])
    assert result.exit_code == 0, result.output
    starts = [line.split()[0] for line in result.output.splitlines()]
    assert {"append", "recent20", "restore", "append/pyg_last_neighbours"} <= set(starts)


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(bench, ["graph", "--help"])
    assert "\n  Example:\n" in result.output


def test_ranks_follow_their_law() -> None:
    for exponent in (0.8, 1.0):
        draws = 200_000
        rows = Zipf(1_000, exponent, np.random.default_rng(0)).rows(draws)
        counted = np.sort(np.bincount(rows, minlength=1_000))[::-1]
        law = np.arange(1, 1_001) ** -exponent
        expected = draws * law / law.sum()
        # Past the first ranks, where the continuous law is rounded; sums even out the noise.
        np.testing.assert_allclose(
            counted[10:1_000].reshape(9, 110).sum(1),
            expected[10:1_000].reshape(9, 110).sum(1),
            rtol=0.1,
        )


def test_events_come_in_order_and_are_the_same_each_time() -> None:
    one, other = (list(event_stream(1_000, 100_000)) for _ in range(2))
    assert [batch.user.size for batch in one] == [65_536, 34_464]
    times = np.concatenate([batch.ts_ms for batch in one])
    assert (np.diff(times) == 100).all()
    for mine, again in zip(one, other, strict=True):
        assert np.array_equal(mine.key, again.key)
