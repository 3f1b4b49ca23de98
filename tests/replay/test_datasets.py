"""Logs of every layout become the same events in time order, and bad input says what is wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from replay.datasets import Dataset, guess_dataset, open_dataset, sample_path
from replay.datasets.kuairand import SIGNALS
from stream.errors import BadData, BadSettings, UserError
from stream.events import DeadLetter, digest_id, event_key

HEADER = ",".join(["user_id", "video_id", "date", "hourmin", "time_ms", *SIGNALS.values(), "tab"])
T0 = 1_650_812_741_436
LOG = "log_standard_4_22_to_5_08_pure.csv"


def shown(
    user: object = 7,
    item: object = 9,
    ts_ms: object = T0,
    *,
    play_ms: object = 500,
    duration_ms: object = 1_000,
    **signals: object,
) -> str:
    """Write one line of a KuaiRand log; signals by wire name."""
    values = {**dict.fromkeys(SIGNALS, 0), "play_ms": play_ms, "duration_ms": duration_ms}
    told = [values[name] if name not in signals else signals[name] for name in SIGNALS]
    return ",".join(map(str, [user, item, 20220425, 0, ts_ms, *told, 1]))


def read(dataset: Dataset, *, rows: int = 65_536) -> tuple[pl.DataFrame, list[DeadLetter]]:
    """Read a whole log."""
    chunks = list(dataset.chunks(rows=rows))
    frame = pl.concat([chunk.frame for chunk in chunks], how="diagonal")
    return frame, [letter for chunk in chunks for letter in chunk.dead]


def write(folder: Path, *lines: str, name: str = LOG, end: str = "\n") -> Path:
    """Write a log file and return it."""
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def test_the_sample_is_whole_in_order_and_every_row_is_accounted_for() -> None:
    dataset = open_dataset("kuairand-pure")
    frame, dead = read(dataset)
    assert dataset.n_rows == 171_671
    assert frame.height + len(dead) == 171_671
    keys = [event_key(event_id) for event_id in frame["event_id"]]
    order = list(zip(frame["ts_ms"].to_list(), keys, strict=True))
    assert order == sorted(order)
    raw = pl.read_parquet(dataset.files[0])
    zero = raw.filter(pl.col("duration_ms") == 0)
    assert len(dead) == zero.height == 2_646
    good = raw.filter(pl.col("duration_ms") > 0)
    for name, column in SIGNALS.items():
        assert frame[f"signals.{name}"].sum() == good[column].cast(pl.Int64).sum(), name
    assert dataset.notes == ["the log was not in time order: sorted"]


def test_the_sample_keeps_every_column_of_the_official_log() -> None:
    columns = pl.read_parquet_schema(sample_path() / LOG.replace(".csv", ".parquet"))
    assert ",".join(columns) == HEADER


def test_an_event_of_a_log_without_ids_is_named_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, HEADER, shown(click=1), shown(click=1), shown(click=1, hate=1))
    frame, _ = read(open_dataset("kuairand-pure", tmp_path))
    signals = {"click": 1.0, "play_ms": 500.0, "duration_ms": 1_000.0}
    same = digest_id("7", "9", T0, signals)
    other = digest_id("7", "9", T0, {**signals, "hate": 1.0})
    assert sorted(frame["event_id"]) == sorted([same, same, other])


@pytest.mark.parametrize(
    ("line", "column", "came"),
    [
        (shown(ts_ms="soon"), "time_ms", "soon"),
        (shown(ts_ms=T0 // 1_000), "time_ms", str(T0 // 1_000)),
        (shown(ts_ms=-T0), "time_ms", str(-T0)),
        (shown(like="yes"), "is_like", "yes"),
        (shown(play_ms="nan"), "play_time_ms", "nan"),
        (shown(play_ms="inf"), "play_time_ms", "inf"),
        (shown(play_ms=-5), "play_time_ms", "-5"),
        (shown(duration_ms=-1), "duration_ms", "-1"),
        (shown(duration_ms=0), "duration_ms", "0"),
        (shown(user=""), "user_id", ""),
        (shown(item=" "), "video_id", " "),
    ],
)
def test_a_bad_value_makes_a_dead_letter_that_says_where_and_what(
    tmp_path: Path, line: str, column: str, came: str
) -> None:
    write(tmp_path, HEADER, shown(), line, shown(ts_ms=T0 + 1))
    frame, dead = read(open_dataset("kuairand-pure", tmp_path))
    assert frame["ts_ms"].to_list() == [T0, T0 + 1]
    assert [letter.original for letter in dead] == [line.encode()]
    assert dead[0].where == f"{LOG} line 3, column {column}"
    assert dead[0].reason.startswith("invalid: wanted ")
    assert dead[0].reason.endswith(f'got "{came}"')


def test_a_signal_that_a_line_leaves_empty_is_absent(tmp_path: Path) -> None:
    write(tmp_path, HEADER, shown(like=""))
    frame, dead = read(open_dataset("kuairand-pure", tmp_path))
    assert frame["signals.like"].to_list() == [0.0]
    assert not dead


def test_lines_that_are_no_rows_keep_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER, shown())
    with path.open("ab") as file:
        file.write(b"7,\xff,1\n" + shown(ts_ms=T0 + 1).encode() + b"\n7,9,20220425,0,16508")
    frame, dead = read(open_dataset("kuairand-pure", tmp_path))
    assert frame.height == 2
    assert {letter.original: letter.reason for letter in dead} == {
        b"7,\xff,1": "invalid: not UTF-8 text",
        b"7,9,20220425,0,16508": "invalid: wanted 19 fields, got 5",
    }
    assert [letter.where for letter in dead] == [f"{LOG} line 3", f"{LOG} line 5"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_packing_line_ends_and_byte_order_marks_do_not_show(
    tmp_path: Path, end: str, bom: bytes, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = [HEADER, shown(ts_ms=T0 + 1, click=1), shown(user='"8"')]
    content = bom + end.join(lines).encode()
    (tmp_path / (LOG + suffix)).write_bytes(pack(content))
    frame, dead = read(open_dataset("kuairand-pure", tmp_path))
    assert not dead
    assert frame["user_id", "ts_ms", "signals.click"].rows() == [("8", T0, 0.0), ("7", T0 + 1, 1.0)]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_packed_file_that_is_cut_off_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    content = "\n".join([HEADER, *(shown(ts_ms=T0 + n, user=n * n) for n in range(9_000))])
    (tmp_path / LOG).write_bytes(pack(content.encode())[:-20])
    with pytest.raises(BadData, match=r"torn or damaged.*fetch it again"):
        read(open_dataset("kuairand-pure", tmp_path))


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1 / 1_000, "got seconds, as in 1650812741; multiply by 1000"),
        (1_000, "got microseconds, as in 1650812741436000; divide by 1000"),
        (1_000_000, "got nanoseconds, as in 1650812741436000000; divide by 1000000"),
    ],
)
def test_another_unit_of_time_in_kuairand_is_refused_by_name(
    tmp_path: Path, factor: float, message: str
) -> None:
    write(tmp_path, HEADER, *(shown(ts_ms=int(T0 * factor)) for _ in range(3)))
    with pytest.raises(BadData, match=message):
        open_dataset("kuairand-pure", tmp_path)


def test_a_renamed_column_is_named_with_its_nearest(tmp_path: Path) -> None:
    write(tmp_path, HEADER.replace("long_view", "longview"), shown())
    with pytest.raises(
        BadData, match=r'long_view is missing \(is it "longview"\?\); found user_id'
    ):
        open_dataset("kuairand-pure", tmp_path)


@pytest.mark.parametrize("layout", ["kuairand-1k", "ratings", "zvuk", "events"])
def test_a_wrong_folder_says_what_was_looked_for_and_what_is_there(
    tmp_path: Path, layout: str
) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(BadData, match=r"wanted .*got holiday\.jpg"):
        open_dataset(layout, tmp_path)


def test_a_folder_of_another_size_names_the_layout_to_take(tmp_path: Path) -> None:
    write(tmp_path, HEADER, shown(), name=LOG.replace("pure", "1k"))
    with pytest.raises(BadData, match="try --dataset kuairand-1k"):
        open_dataset("kuairand-pure", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "got an empty file"),
        ("a.csv", b"\n\n", "got an empty file"),
        ("a.csv", b"user,item,rating,time\n", "a header and no line below"),
        ("a.csv", "user,item,rating,time\n".encode("utf-16"), "got UTF-16"),
        ("a.parquet", b"PAR1", "wanted a Parquet file"),
        (
            "a.csv",
            b"user,item,rating,time\n1,2,3,17\n",
            "wanted a time between 1980 and 2100, got 17",
        ),
        ("a.jsonl", b'{"v":1,"ts_ms":1650812741}\n', "got seconds, as in 1650812741"),
        ("a.jsonl", b"{not json\n", "wanted JSON lines"),
    ],
)
def test_a_file_that_is_no_log_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=message):
        open_dataset(guess_dataset(path), path)


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="nothing is there"):
        open_dataset("events", tmp_path / "log.jsonl")


def test_all_parts_are_read_and_statistics_and_random_exposure_are_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for part, name in enumerate(("4_08_to_4_21_27k_part1", "4_08_to_4_21_27k_part2")):
        write(data, HEADER, shown(ts_ms=T0 - part), name=f"log_standard_{name}.csv")
    write(data, HEADER, shown(user=1), name="log_random_4_22_to_5_08_27k.csv")
    write(data, "not a table", name="video_features_statistic_27k_part1.csv")
    write(data, "video_id", "9", name="video_features_basic_27k.csv")
    dataset = open_dataset("kuairand-27k", tmp_path)
    frame, dead = read(dataset)
    assert (frame["ts_ms"].to_list(), dead) == ([T0 - 1, T0], [])
    assert dataset.features == data / "video_features_basic_27k.csv"
    assert any("log_random_4_22_to_5_08_27k.csv was left out" in note for note in dataset.notes)
    random, _ = read(open_dataset("kuairand-27k", data / "log_random_4_22_to_5_08_27k.csv"))
    assert random["user_id"].to_list() == ["1"]


def test_a_limit_keeps_the_first_events_in_time_and_the_dead_lines_before_them(
    tmp_path: Path,
) -> None:
    lines = [shown(ts_ms=T0 + n, like="x" if n % 3 == 0 else 0) for n in range(30)]
    write(tmp_path, HEADER, *reversed(lines))
    for rows in (1, 4, 100):
        frame, dead = read(open_dataset("kuairand-pure", tmp_path, limit=5), rows=rows)
        assert frame["ts_ms"].to_list() == [T0 + n for n in (1, 2, 4, 5, 7)]
        assert len(dead) == 3


def test_chunks_are_a_cut_of_the_same_sequence(tmp_path: Path) -> None:
    write(tmp_path, HEADER, *(shown(ts_ms=T0 - n * n % 17, user=n) for n in range(50)))
    dataset = open_dataset("kuairand-pure", tmp_path)
    whole, _ = read(dataset)
    heights = [chunk.frame.height for chunk in dataset.chunks(rows=8)]
    assert heights == [8, 8, 8, 8, 8, 8, 2]
    assert read(dataset, rows=8)[0].equals(whole)


def test_the_fingerprint_tells_other_bytes_settings_and_limits_apart(tmp_path: Path) -> None:
    write(tmp_path, HEADER, shown())
    first = open_dataset("kuairand-pure", tmp_path).fingerprint()
    assert open_dataset("kuairand-pure", tmp_path).fingerprint() == first
    assert open_dataset("kuairand-pure", tmp_path, limit=1).fingerprint() != first
    write(tmp_path, HEADER, shown(user=8))
    assert open_dataset("kuairand-pure", tmp_path).fingerprint() != first


def test_plays_of_zvuk_become_milliseconds(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "user_id": [1, 2],
            "session_id": [10, 20],
            "datetime": ["2023-02-03 10:00:01.250", "2023-02-03 10:00:00"],
            "track_id": [5, 6],
            "play_duration": [63, 7],
        }
    ).with_columns(pl.col("datetime").str.to_datetime())
    frame.write_parquet(tmp_path / "zvuk-interactions.parquet")
    found, dead = read(open_dataset(guess_dataset(tmp_path), tmp_path))
    assert not dead
    assert found["user_id", "item_id", "ts_ms", "signals.play_ms", "context.session"].rows() == [
        ("2", "6", 1_675_418_400_000, 7_000.0, "20"),
        ("1", "5", 1_675_418_401_250, 63_000.0, "10"),
    ]


def test_our_own_events_keep_their_ids_bytes_and_retractions(tmp_path: Path) -> None:
    later = b'{"v":1,"event_id":"b","user_id":7,"ts_ms":%d,"retracts":"a",' % (T0 + 1)
    later += b'"item_id":"9","target_ts_ms":%d}' % T0
    first = b'{"v":1,"event_id":"a","user_id":7,"item_id":9,"ts_ms":%d,' % T0
    first += b'"signals":{"click":1},"new_field":true}'
    lines = [later, first, b'{"v":1', b'{"v":1,"erase_user":7}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    dataset = open_dataset("events", tmp_path)
    frame, dead = read(dataset)
    assert dataset.signals == ("click",)
    assert frame["event_id"].to_list() == ["a", "b"]
    assert frame["record"].to_list() == [first, later]
    assert frame["retracts"].to_list() == [None, "a"]
    assert [letter.original for letter in dead] == lines[2:]
    assert [letter.where for letter in dead] == [
        "log.jsonl line 3, $",
        "log.jsonl line 4, $.erase_user",
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("netflix", {}),
        ("ratings", {}),
        ("kuairand-pure", {"scale": 10.0}),
        ("ratings", {"path": "x", "scale": 0.0}),
        ("ratings", {"path": ".", "columns": "user=a,things=b"}),
        ("kuairand-pure", {"limit": 0}),
    ],
)
def test_settings_that_make_no_sense_are_the_users_mistake(
    name: str, settings: dict[str, object]
) -> None:
    with pytest.raises(BadSettings) as caught:
        open_dataset(name, **settings)  # type: ignore[arg-type]
    assert isinstance(caught.value, UserError)
