"""Dead letters are found, read safely, corrected, and sent again exactly once."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import GraphConfig, TemporalGraph
from stream import dead_letters
from stream.commits import read_commits
from stream.dead_letter_commands import safe
from stream.dead_letters import Gathered, Letter, Redriver, check_where, plan
from stream.errors import BadEvent, BadRules, BadSettings, LogError
from stream.events import DeadLetter, FeedbackBatch, Interaction, decode_interaction, encode
from stream.fixes import Fix, Fixes, load_fixes
from stream.intake import Accounting, Intake
from stream.kafka import KafkaLog
from stream.log import Record, advance
from stream.settings import KafkaSettings, Settings
from stream.topics import DEAD, FEEDBACK, INTERACTIONS, create
from stream.typing_rules import load_rules
from stream.worker import StreamWorker
from tidegraph import main

START_MS = 1_650_812_741_000
FIXES = """
[[fix]]
name = "seconds"
when = "place = '$.ts_ms' AND message LIKE '%look like seconds%'"
scale = { ts_ms = 1000 }

[[fix]]
name = "renamed by the new client"
when = "place = '$.user_id'"
rename = { uid = "user_id" }

[[fix]]
name = "signals as text"
when = "starts_with(place, '$.signals')"
cast = { "signals.*" = "number" }
"""


def event(n: int, *, users: int = 7) -> dict[str, Any]:
    """Return the n-th good event, as a client sends it."""
    return {
        "v": 1,
        "event_id": f"e{n}",
        "user_id": f"u{n % users}",
        "item_id": f"i{n % 11}",
        "ts_ms": START_MS + 1_000 * n,
        "signals": {"click": 1, "long_view": n % 2, "hate": int(n % 13 == 0)},
    }


def spoilt(n: int) -> dict[str, Any]:
    """Return the same event as clients with one of three faults send it."""
    good = event(n)
    if n % 3 == 0:
        return good | {"ts_ms": good["ts_ms"] // 1_000}
    if n % 3 == 1:
        return {"uid": good.pop("user_id"), **good}
    return good | {"signals": {name: str(value) for name, value in good["signals"].items()}}


def keyed(value: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return an entry of the topic, with the key that a client takes."""
    user_id = value.get("user_id", value.get("uid"))
    return str(user_id).encode(), json.dumps(value).encode()


class Desk:
    """A stream worker at work, and the graph of its feedback."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.log = KafkaLog(kafka)
        self._kafka = kafka
        self._worker = StreamWorker(Settings(kafka=kafka))
        self._thread = threading.Thread(target=self._worker.run)
        self._thread.start()

    def work(self) -> Accounting:
        """Return what became of all records that there are now, when it is known."""
        n_records, accounting = len(self._all(INTERACTIONS)), Accounting()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._thread.is_alive():
            commits = read_commits(self._kafka, "stream").values()
            accounting = sum((commit.accounting for _, commit in commits), Accounting())
            if accounting.in_ == n_records:
                return accounting
        raise AssertionError(f"{accounting.in_} of {n_records} records were processed")

    def is_idle(self) -> bool:
        """Tell whether the worker finds out that nothing is waiting."""
        deadline = time.monotonic() + 30
        while self._worker.progress.lag and time.monotonic() < deadline:
            self._thread.join(0.05)
        return self._worker.progress.lag == 0

    def state_hash(self) -> str:
        """Return that of the graph of all feedback."""
        return graph_of(FeedbackBatch.from_records([each.value for each in self._all(FEEDBACK)]))

    def close(self) -> None:
        self._worker.stop()
        self._thread.join(timeout=30)
        self.log.close()

    def _all(self, topic: str) -> list[Record]:
        positions, found = self.log.start(topic), []
        while self.log.lag(topic, positions):
            records = self.log.read(topic, positions, limit=1_000)
            positions = advance(positions, records)
            found += records
        return found


def graph_of(batch: FeedbackBatch) -> str:
    """Return the hash of the graph that these events make."""
    graph = TemporalGraph(GraphConfig(k_user=20, k_item=20))
    graph.append(graph.view(batch.in_order()))
    return graph.state_hash()


@pytest.fixture
def desk(kafka: KafkaSettings) -> Iterator[Desk]:
    create(kafka)
    with closing(Desk(kafka)) as desk:
        yield desk


def command(kafka: KafkaSettings, *words: str, answer: str = "") -> Result:
    """Run `tidegraph dead-letters` with the settings in its environment."""
    environ = {}
    for name, value in msgspec.structs.asdict(kafka).items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        environ[f"TIDEGRAPH_KAFKA_{name.upper()}"] = text
    return CliRunner(env=environ).invoke(
        main, ["dead-letters", *words], input=answer, catch_exceptions=False
    )


def told(result: Result) -> dict[str, Any]:
    """Return what a command printed as JSON."""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def bury(desk: Desk, values: Sequence[bytes]) -> Accounting:
    """Send values that are no events, and process them."""
    desk.log.append(INTERACTIONS, [(b"u1", value) for value in values], timestamp_ms=0)
    return desk.work()


def quiet(done: int, total: int) -> None:
    """Show no progress."""


def test_a_redrive_after_a_fix_gives_the_graph_of_events_that_were_good_from_the_start(
    kafka: KafkaSettings, desk: Desk, tmp_path: Path
) -> None:
    fixes = tmp_path / "fixes.toml"
    fixes.write_text(FIXES)
    want = Intake(load_rules("kuairand")).take(
        [Record(INTERACTIONS, 0, n, *keyed(event(n)), START_MS) for n in range(300)]
    )
    good = graph_of(want.batch())

    sent = [spoilt(n) if n % 10 < 3 else event(n) for n in range(300)]
    desk.log.append(INTERACTIONS, [keyed(each) for each in sent], timestamp_ms=0)
    assert desk.work().dead == 90
    assert desk.state_hash() != good

    result = command(kafka, "redrive", "--fix", str(fixes), "--yes", "--json")
    assert result.exit_code == 0, result.output
    assert told(result)["sent"] == 90
    assert sum(told(result)["fixed"].values()) == 90
    accounting = desk.work()
    assert (accounting.in_, accounting.dead, accounting.duplicate) == (390, 90, 0)
    assert desk.state_hash() == good
    assert desk.is_idle()  # the end of the transaction is no record that waits

    again = command(kafka, "redrive", "--fix", str(fixes), "--yes")
    assert again.exit_code == 0
    assert "90 were redriven before" in again.output
    assert "Nothing was sent." in again.output
    assert desk.work().in_ == 390


def test_a_letter_that_would_die_again_is_named_and_not_sent(
    kafka: KafkaSettings, desk: Desk
) -> None:
    bury(desk, [b"{", *(keyed(event(n))[1] for n in range(10))])  # those have another user's key
    dry = command(kafka, "redrive", "--dry-run")
    assert dry.exit_code == 1
    assert "1 undecodable at $ (" in dry.output
    assert desk.work().in_ == 11
    result = command(kafka, "redrive", answer="y\n")
    assert result.exit_code == 1
    assert "Send 8 to interactions? [y/N]: y" in result.output
    assert "Sent 8." in result.output
    accounting = desk.work()
    assert (accounting.in_, accounting.dead) == (19, 9)  # all but the one that is no JSON
    assert "would die again" in command(kafka, "redrive", "--yes").output
    assert desk.work().in_ == 19


def test_without_consent_nothing_is_sent(kafka: KafkaSettings, desk: Desk) -> None:
    bury(desk, [keyed(event(2))[1]])
    assert "Nothing was sent." in command(kafka, "redrive", answer="n\n").output
    assert desk.work().in_ == 1


def test_who_began_to_redrive_before_another_did_sends_nothing_more(
    kafka: KafkaSettings, desk: Desk
) -> None:
    bury(desk, [keyed(event(n))[1] for n in range(20) if n % 7 != 1])
    with Redriver(kafka, desk.log) as slow:
        plans = [plan(slow.letters(quiet).letters(), Fixes(), now_ms=START_MS)]
        with Redriver(kafka, desk.log) as quick:
            plans.append(plan(quick.letters(quiet).letters(), Fixes(), now_ms=START_MS))
            quick.send(plans[1].ready, quiet)
        assert len(plans[0].ready) == len(plans[1].ready) == 17
        with pytest.raises(LogError, match="another redrive began"):
            slow.send(plans[0].ready, quiet)
    accounting = desk.work()
    assert (accounting.in_, accounting.dead, accounting.duplicate) == (34, 17, 0)


def test_a_redrive_that_is_cut_short_has_sent_and_marked_whole_batches(
    kafka: KafkaSettings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_BATCH", 4)
    bury(desk, [keyed(event(n))[1] for n in range(20) if n % 7 != 1])

    class CutShortError(Exception):
        pass

    def cut(done: int, _: int) -> None:
        if done == 8:
            raise CutShortError

    with Redriver(kafka, desk.log) as first:
        ready = plan(first.letters(quiet).letters(), Fixes(), now_ms=START_MS).ready
        with pytest.raises(CutShortError):
            first.send(ready, cut)
        with suppress(CutShortError), first._transaction(8):
            first._producer.send(kafka.topic(INTERACTIONS), key=b"u1", value=b"never")
            raise CutShortError
    with Redriver(kafka, desk.log) as second:
        rest = plan(second.letters(quiet).letters(), Fixes(), now_ms=START_MS)
        assert (len(rest.ready), rest.n_redriven) == (9, 8)
        second.send(rest.ready, quiet)
    accounting = desk.work()
    assert (accounting.in_, accounting.dead, accounting.duplicate) == (34, 17, 0)


def test_marks_that_an_open_transaction_may_hide_are_waited_for(
    kafka: KafkaSettings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "SETTLE_S", 0.5)
    other = msgspec.structs.replace(kafka, prefix=kafka.prefix + "other.")
    create(other)
    with closing(KafkaLog(other)) as log, Redriver(other, log) as worker:
        worker._producer.begin_transaction()
        worker._producer.send(kafka.topic(DEAD), value=b"{}", partition=0).get(timeout=10)
        with Redriver(kafka, desk.log) as redriver:
            with pytest.raises(LogError, match="a transaction on interactions.dead has been open"):
                redriver.letters(quiet)
            worker._producer.commit_transaction()
            monkeypatch.setattr(dead_letters, "SETTLE_S", 30)
            assert redriver.letters(quiet).n_foreign == 1


def test_letters_are_listed_counted_and_shown(kafka: KafkaSettings, desk: Desk) -> None:
    poison = json.dumps(event(0) | {"user_id": "\x1b]0;mine\x07", "signals": {"\x1b[2J": "x"}})
    bury(desk, [b"\xff\xfe\x00", poison.encode(), *(keyed(spoilt(n))[1] for n in range(8))])

    counted = told(command(kafka, "count", "--json"))
    assert counted["total"] == 10
    by_place = {(row["reason"], row["place"]): row["letters"] for row in counted["groups"]}
    assert by_place["invalid", "$.ts_ms"] == 3
    assert sum(row["share"] for row in counted["groups"]) == pytest.approx(1)
    for by in ("reason", "where", "hour"):
        assert told(command(kafka, "count", "--by", by, "--json"))["total"] == 10
        assert "10" in command(kafka, "count", "--by", by).output

    listed = told(command(kafka, "list", "--where", "place = '$.ts_ms'", "--limit", "2", "--json"))
    assert (listed["matching"], len(listed["letters"])) == (3, 2)
    newest, older = listed["letters"]
    assert newest["time_ms"] >= older["time_ms"]
    assert newest["user_id"] == "u6"
    text = command(kafka, "list").output
    assert text.count("interactions:") == 10
    assert "\x1b" not in text
    assert "10 of 10 that match" in text

    for where, text in (
        ("reason = 'undecodable'", "ff fe 00"),
        ("user_id LIKE '%mine%'", "place:       $.signals.\\x1b[2J"),
    ):
        (letter,) = told(command(kafka, "list", "--where", where, "--json"))["letters"]
        shown = command(kafka, "show", letter["letter"])
        assert text in shown.output
        assert "\x1b" not in shown.output
        by_origin = command(kafka, "show", letter["origin"])
        assert by_origin.output == shown.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "0:99"], "no dead letter at 0:99"),
        (["show", "9:0"], "no dead letter at 9:0"),
        (["show", "interactions:0:99"], "no dead letter at interactions:0:99"),
        (["show", "here"], "want PARTITION:OFFSET"),
        (["list", "--where", "plaec = '$'"], "the fields are time, reason"),
        (["list", "--where", "place"], "want true or false for each letter, got String"),
        (["redrive", "--where", "place ="], "not an expression over the fields"),
        (["redrive", "--fix", "nowhere.toml"], "cannot read the fixes nowhere.toml"),
        (["redrive", "--json"], "add --yes or --dry-run"),
    ],
)
def test_what_cannot_be_done_is_said_with_status_2(
    kafka: KafkaSettings, words: list[str], message: str
) -> None:
    create(kafka)
    result = command(kafka, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("words", [["list"], ["count"], ["redrive"], ["show", "0:1"]])
def test_a_missing_topic_is_named(kafka: KafkaSettings, words: list[str]) -> None:
    result = command(kafka, *words)
    assert result.exit_code == 2
    assert "tidegraph topics create" in result.output


def test_with_no_letters_there_is_nothing_to_do(kafka: KafkaSettings) -> None:
    create(kafka)
    assert "No dead letters" in command(kafka, "list").output
    assert "No dead letters" in command(kafka, "count").output
    result = command(kafka, "redrive")
    assert result.exit_code == 0
    assert "Nothing was sent." in result.output


@pytest.mark.slow
def test_letters_are_redriven_over_tls_with_a_password(secure_kafka: KafkaSettings) -> None:
    create(secure_kafka)
    with closing(Desk(secure_kafka)) as desk:
        bury(desk, [keyed(event(2))[1]])
        assert "Sent 1." in command(secure_kafka, "redrive", "--yes").output
        assert desk.work().feedback == 1


# --- Without a broker ---------------------------------------------------------------------------


def letter(original: bytes, *, position: int = 0, redriven: bool = False) -> Letter:
    """Return what became of a record that came without a key."""
    reason, where = "key: want the record's key to be the user", "$.user_id"
    try:
        decode_interaction(original)
    except BadEvent as fault:
        reason, where = fault.reason, fault.where
    dead = DeadLetter(original, reason, where, INTERACTIONS, 0, position)
    return Letter(0, position, START_MS, dead, redriven)


@given(st.lists(st.sampled_from(["good", "bad", "done"]), max_size=30))
def test_a_plan_accounts_for_every_letter(kinds: list[str]) -> None:
    letters = [
        letter(
            b"{" if kind == "bad" else keyed(event(100 - n))[1],
            position=n,
            redriven=kind == "done",
        )
        for n, kind in enumerate(kinds)
    ]
    intended = plan(letters, Fixes(), now_ms=START_MS)
    counts = Counter(kinds)
    assert len(intended.ready) == counts["good"]
    assert len(intended.hopeless) == counts["bad"]
    assert intended.n_redriven == counts["done"]
    times = [each.ts_ms for each in intended.ready]
    assert times == sorted(times)


def test_a_plan_knows_the_future_the_past_and_the_greatest_record() -> None:
    letters = [letter(keyed(event(n))[1]) for n in range(10)]
    ahead = plan(letters, Fixes(), now_ms=START_MS, max_future_ms=4_000)
    assert (len(ahead.ready), len(ahead.hopeless)) == (5, 5)
    assert "ahead of the record" in ahead.hopeless[0].reason
    late = plan(letters, Fixes(), now_ms=START_MS, horizons_ms=[START_MS + 3_000])
    assert (len(late.ready), late.n_late) == (10, 3)
    large = plan(letters, Fixes(), now_ms=START_MS, max_record_bytes=1_025)
    assert len(large.hopeless) == 10


def test_letters_and_marks_are_told_apart_and_strangers_counted() -> None:
    gathered = Gathered()
    dead = [encode(letter(b"{", position=n).dead) for n in range(3)]
    values = [*dead, b'{"redriven":1}', b"garbage", b"{}"]
    gathered.take([Record(DEAD, 0, n, None, value, n) for n, value in enumerate(values)])
    assert [each.redriven for each in gathered.letters()] == [False, True, False]
    assert gathered.n_foreign == 2


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
events = st.dictionaries(
    st.sampled_from(["v", "user_id", "uid", "ts_ms", "signals", "context"]),
    scalars | st.lists(scalars) | st.dictionaries(st.sampled_from(["click", "x"]), scalars),
)
changes = st.builds(
    Fix,
    name=st.just("any"),
    rename=st.dictionaries(st.sampled_from(["uid", "signals.x"]), st.just("user_id")),
    scale=st.dictionaries(
        st.sampled_from(["ts_ms", "signals.*", "v"]), st.sampled_from([1e3, 1e-3, 1e308])
    ),
    cast=st.dictionaries(
        st.sampled_from(["ts_ms", "user_id", "signals.*"]), st.sampled_from(["text", "number"])
    ),
    set=st.dictionaries(st.sampled_from(["v", "signals.x"]), st.sampled_from([1, "a", True])),
)


@given(value=events, fix=changes)
def test_a_fix_gives_json_or_a_reason_whatever_it_meets(value: dict[str, Any], fix: Fix) -> None:
    with suppress(BadEvent):
        assert isinstance(
            json.loads(Fixes((fix,)).apply(json.dumps(value).encode(), (True,))), dict
        )


@given(st.binary())
def test_what_no_fix_applies_to_stays_as_it_is(original: bytes) -> None:
    assert Fixes((Fix("any", set={"v": 1}),)).apply(original, (False,)) == original


def test_a_number_that_is_not_finite_can_be_mended() -> None:
    value = json.dumps(event(1) | {"signals": {"click": float("nan")}}).encode()
    assert letter(value).dead.where == "$.signals.click"
    mended = decode_interaction(
        Fixes((Fix("nan", set={"signals.click": 0}),)).apply(value, (True,))
    )
    assert isinstance(mended, Interaction)
    assert mended.signals == {"click": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fix = 1", "Expected `array`"),
        ("[[fix]]", "missing required field `name`"),
        ('[[fix]]\nname = "a"\nscal = {}', "unknown field `scal`"),
        ('[[fix]]\nname = "a"', "fix 1 \\(a\\): changes nothing"),
        ('[[fix]]\nname = "a"\nscale = { ts_ms = 0 }', "want a factor for ts_ms that is not 0"),
        ('[[fix]]\nname = "a"\nset = { "$.v" = 1 }', "want a field as in ts_ms"),
        ('[[fix]]\nname = "a"\nset = { "signals.*" = 1 }', "only scale and cast take all"),
        ('[[fix]]\nname = "a"\nset = { v = nan }', "want a finite number"),
        ('[[fix]]\nname = "a"\ncast = { v = "int" }', "Invalid enum value"),
        ('[[fix]]\nname = "a"\nwhen = "plaec > 1"\nset = { v = 1 }', "the fields are time, reason"),
        ('[[fix]]\nname = "a"\nset = { v = 1 }\n' * 2, "an earlier fix of this name"),
        ("fix = []", "at least one"),
        ("[[fix", "Invalid|Expected"),
    ],
)
def test_a_file_of_fixes_is_checked_when_it_is_read(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "fixes.toml"
    path.write_text(text)
    with pytest.raises(BadRules, match=message) as raised:
        load_fixes(path, check_where)
    assert str(path) in str(raised.value)


@given(st.text())
def test_what_is_shown_cannot_steer_a_terminal(text: str) -> None:
    assert safe(text).isprintable()


def test_an_expression_that_only_some_letters_defeat_is_the_users_error() -> None:
    letters = [letter(keyed(event(1))[1])]
    with pytest.raises(BadSettings, match="--where"):
        dead_letters.chosen(letters, "CAST(place AS INT) > 1")
    with pytest.raises(BadRules, match="fix odd"):
        plan(
            letters,
            Fixes((Fix("odd", when="CAST(place AS INT) > 1", set={"v": 1}),)),
            now_ms=START_MS,
        )
