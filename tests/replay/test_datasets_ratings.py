"""Ratings of any shape, scale and unit of time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from replay.datasets import open_dataset
from replay.datasets.base import Dataset
from stream.errors import BadData

Row = tuple[str, str, int, float]


def rows_of(dataset: Dataset) -> list[Row]:
    """Return user, item, time and rating of every event."""
    frame = pl.concat([chunk.frame for chunk in dataset.chunks()])
    return frame["user_id", "item_id", "ts_ms", "signals.rating"].rows()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("u.data", "196\t242\t3\t881250949\n"),
        ("ratings.dat", "196::242::3::881250949\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n196,242,3.0,881250949\n"),
        ("ratings_Books.csv", "196,242,3.0,881250949\n"),
        ("ratings.csv", "user_id,parent_asin,rating,timestamp\n196,242,3.0,881250949000\n"),
        ("ratings.tsv", "Item\tUser\tTime\tRating\n242\t196\t881250949\t3\n"),
        ("other.csv", "user;item;rating;time\n196;242;3;1997-12-04T15:55:49\n"),
    ],
)
def test_the_same_rating_is_read_from_every_shape(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert rows_of(open_dataset("ratings", tmp_path)) == [("196", "242", 881_250_949_000, 3.0)]


def test_names_are_mapped_and_numbers_where_there_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text("what\twho\tstars\twhen\n242\t196\t3\t881250949\n")
    (tmp_path / "log.csv").write_text("242,196,3,881250949\n")
    expected = [("196", "242", 881_250_949_000, 3.0)]
    names = "user=who,item=what,rating=stars,time=when"
    assert rows_of(open_dataset("ratings", tmp_path / "log.tsv", columns=names)) == expected
    numbers = "user=2,item=1,rating=3,time=4"
    assert rows_of(open_dataset("ratings", tmp_path / "log.csv", columns=numbers)) == expected


def test_a_parquet_file_is_mapped_too(tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": ["a"], "item": [1], "rating": [4.5], "time": [881_250_949]})
    frame.write_parquet(tmp_path / "log.parquet")
    mapped = open_dataset("ratings", tmp_path, columns="user=who")
    assert rows_of(mapped) == [("a", "1", 881_250_949_000, 4.5)]


def test_unknown_names_say_how_to_map_them(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,item,rating,time\na,b,3,881250949\n")
    with pytest.raises(BadData, match=r"user is missing.*found who, item.*--columns user="):
        open_dataset("ratings", tmp_path)


@pytest.mark.parametrize(
    ("ratings", "scale", "expected"),
    [
        ([0.5, 3.5, 5.0], None, [0.5, 3.5, 5.0]),  # a scale of 5 stays
        ([1.0, 7.0, 10.0], None, [1.0, 4.0, 5.0]),  # ceil(5 * 7 / 10) = 4
        ([10.0, 51.0, 100.0], None, [1.0, 3.0, 5.0]),
        ([1.0, 2.0, 3.0], 10.0, [1.0, 1.0, 2.0]),  # no 10 among them, but told
        ([0.0, 0.6, 1.0], 1.0, [0.0, 3.0, 5.0]),
    ],
)
def test_a_scale_is_mapped_to_five(
    tmp_path: Path, ratings: list[float], scale: float | None, expected: list[float]
) -> None:
    lines = [f"u{n},i,{rating},{881_250_949 + n}\n" for n, rating in enumerate(ratings)]
    (tmp_path / "log.csv").write_text("".join(lines))
    dataset = open_dataset("ratings", tmp_path, scale=scale)
    assert [row[3] for row in rows_of(dataset)] == expected
    mapped = ratings != expected
    assert any("mapped to 1..5" in note for note in dataset.notes) == mapped


def test_a_rating_above_the_given_scale_is_a_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,3,881250949\na,c,7,881250949\n")
    (chunk,) = open_dataset("ratings", tmp_path, scale=5.0).chunks()
    assert chunk.frame["item_id"].to_list() == ["b"]
    assert [letter.reason for letter in chunk.dead] == [
        'invalid: wanted a rating of at most 5, the scale that was given, got "7"'
    ]


def test_a_time_that_was_cut_off_is_a_dead_letter_and_not_the_year_1970(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n196\t243\t3\t8812")
    (chunk,) = open_dataset("ratings", tmp_path).chunks()
    assert chunk.frame.height == 1
    assert chunk.dead[0].original == b"196\t243\t3\t8812"


def test_milliseconds_and_whole_days_are_noted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,3,1368230400000\n")
    dataset = open_dataset("ratings", tmp_path)
    assert rows_of(dataset)[0][2] == 1_368_230_400_000
    assert [note.partition(":")[0] for note in dataset.notes] == [
        "column 4 is in milliseconds, not in seconds",
        "all times are whole days",
    ]


def test_two_files_that_look_like_ratings_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("ratings_a.csv", "ratings_b.csv"):
        (tmp_path / name).write_text("a,b,3,881250949\n")
    with pytest.raises(BadData, match=r"got ratings_a\.csv, ratings_b\.csv; name the file itself"):
        open_dataset("ratings", tmp_path)
