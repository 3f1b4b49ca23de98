"""The console, in a real browser: it shows what is, changes what it says, and excludes nobody."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from granian.constants import Interfaces
from granian.server.embed import Server
from playwright.sync_api import Browser, Page, expect, sync_playwright

from deploy.demo import SharedLog, typing_and_learning
from deploy.service import free_port, wait_until
from serving.api.letters import KafkaLetterbox
from serving.api.pages import CONSOLE
from serving.assembly import build
from serving.keys import new_key
from serving.producing import LogSink
from serving.table import MemoryTable, Table
from stream.events import DeadLetter, encode
from stream.kafka import KafkaLog
from stream.log import MemoryLog
from stream.settings import KafkaSettings, LearnerSettings, ServingSettings, Settings
from stream.topics import DEAD, INTERACTIONS, create
from tests.programs import program
from tests.serving.world import publish, update, user

START_S = 120.0
SEEN_MS = 30_000.0
"""How long a browser on a busy machine may take to show something."""

HOSTILE = "<img src=x onerror=alert(1)>"
PAGES = ["", "users", f"users/{HOSTILE}", "users/u1", "letters", "models", "experiments"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run a headless Chromium; without one these tests fail."""
    with sync_playwright() as playwright:
        path = program("chromium")
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=["light", "dark", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """Give a page in light, in dark and on a phone."""
    yield from _page(browser, request.param)


@pytest.fixture
def light(browser: Browser) -> Iterator[Page]:
    """Give a page."""
    yield from _page(browser, "light")


def _page(browser: Browser, kind: str) -> Iterator[Page]:
    """Give a page, and fail if it says that something is wrong with it."""
    context = browser.new_context(
        color_scheme="dark" if kind == "dark" else "light",
        viewport={"width": 360 if kind == "phone" else 1200, "height": 800},
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(SEEN_MS)
    expect.set_options(timeout=SEEN_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    # The browser itself says of each answer above 399 that there was one.
    assert [said for said in wrong if "Failed to load resource" not in said] == []


@contextmanager
def served(
    folder: Path, table: Table, log: MemoryLog, settings: Settings | None = None, **parts: Any
) -> Iterator[str]:
    """Serve a table in a thread of its own; give the address."""
    settings = settings or Settings()
    serving = msgspec.structs.replace(
        settings.serving,
        port=free_port(),
        audit_file=str(folder / "audit.jsonl"),
        keys_file=settings.serving.keys_file
        if settings.serving.keys_file != ServingSettings().keys_file
        else str(folder / "keys.json"),
    )
    settings = msgspec.structs.replace(settings, serving=serving)
    api = build(settings, table, LogSink(log), **parts)
    loop = asyncio.new_event_loop()
    server = Server(api, address=serving.host, port=serving.port, interface=Interfaces.ASGI)
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()))
    thread.start()
    address = f"http://{serving.host}:{serving.port}"
    try:
        wait_until(lambda: status(f"{address}/healthz") == 200, START_S, "the API to answer")
        yield address
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join()
        loop.close()


def status(url: str) -> int:
    """Return the status of an answer; 0 where nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve what a learner learns from a small log, and from the feedback that comes."""
    folder = tmp_path_factory.mktemp("console")
    log, table = SharedLog(), MemoryTable()
    settings = Settings(learner=LearnerSettings(snapshots=str(folder / "snapshots"), device="cpu"))
    entries = list(happened(900))
    log.append(INTERACTIONS, entries, timestamp_ms=time.time_ns() // 1_000_000)
    with (
        typing_and_learning(settings, log, table, len(entries)),
        served(folder, table, log, settings) as address,
    ):
        ready = lambda: status(f"{address}/readyz") == status(f"{address}/v1/history/u1") == 200
        wait_until(ready, START_S, "the learner to learn")
        yield address


def happened(n: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield events of twenty users and, once, of a user and an item with hostile names."""
    rng = np.random.default_rng(5)
    start_ms = time.time_ns() // 1_000_000 - 1_000 * n
    for number in range(n):
        user_id, item_id = f"u{rng.integers(20)}", f"i{int(80 * rng.random() ** 2)}"
        if number == n // 2:
            user_id, item_id = HOSTILE, HOSTILE
        name = str(rng.choice(["like", "click", "hate", "long_view"], p=[0.2, 0.5, 0.1, 0.2]))
        yield (
            user_id.encode(),
            json.dumps(
                {
                    "v": 1,
                    "event_id": f"e{number}",
                    "user_id": user_id,
                    "item_id": item_id,
                    "ts_ms": start_ms + 1_000 * number,
                    "signals": {name: 1},
                }
            ).encode(),
        )


@pytest.fixture
def still(tmp_path: Path) -> Iterator[tuple[str, MemoryTable]]:
    """Serve two models that nobody teaches."""
    table = MemoryTable()
    publish(table, update(users=user("u1", [1.0, 0.0], ["i0"])))
    publish(table, update(2, users=user("u1", [1.0, 0.0], ["i0"])))
    with served(tmp_path, table, MemoryLog()) as address:
        yield address, table


def test_the_files_hold_no_script_or_style_inside_a_page_and_nothing_from_elsewhere() -> None:
    files = {path.name: path.read_text() for path in CONSOLE.iterdir()}
    page = files["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
    for name, text in files.items():
        outside = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text))
        assert outside <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}, name
        if name.endswith(".js"):
            markup = r"(inner|outer)HTML\s*=[^=]|insertAdjacent|document\.write|eval\(|Function\("
            assert not re.search(markup, text), name
            assert "localStorage" not in text


@pytest.mark.slow
def test_every_page_fits_says_what_it_is_and_names_what_can_be_used(
    page: Page, learning: str
) -> None:
    titles = set()
    for name in PAGES:
        page.goto(f"{learning}/#/{name}")
        expect(page.locator("h1")).to_have_count(1)
        page.wait_for_load_state("networkidle")
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, f"{name} is {width} px too wide"
        titles.add(page.title())
        for role in ("banner", "navigation", "main", "contentinfo"):
            expect(page.get_by_role(role)).to_have_count(1)
        tree = page.locator("body").aria_snapshot()
        unnamed = r"- (button|link|textbox|combobox|checkbox|img|region|heading)( \[[^\]]*\])*:?$"
        assert not re.search(unnamed, tree, re.MULTILINE), tree
    assert len(titles) == 5


@pytest.mark.slow
def test_the_overview_tells_rates_classes_freshness_quality_and_health(
    light: Page, learning: str
) -> None:
    light.goto(learning)
    expect(light.locator("h1")).to_have_text("All is well.")
    for name in ("Rate", "Lag", "Feedback classes", "Freshness", "Quality", "Drift", "Health"):
        expect(light.get_by_role("region", name=name, exact=True)).to_be_visible()
    classes = light.get_by_role("region", name="Events by feedback class")
    expect(classes.get_by_role("rowheader")).to_have_count(6)
    counts = [
        int(row.get_by_role("cell").first.inner_text().replace(",", ""))
        for row in classes.get_by_role("row").all()[1:]
    ]
    assert sum(counts[:4]) >= 900
    freshness = light.get_by_role("region", name="Freshness", exact=True)
    expect(freshness.get_by_role("img")).to_have_attribute("aria-label", re.compile("Most at"))
    freshness.get_by_text("Numbers").click()
    expect(freshness.get_by_role("table").get_by_role("row").nth(2)).to_be_visible()


@pytest.mark.slow
def test_feedback_visibly_changes_the_list_and_the_history(page: Page, learning: str) -> None:
    page.goto(f"{learning}/#/users/u1")
    first = page.locator(".ranked > li").first
    item = first.locator(".id").inner_text()
    kinds = page.locator(".history .chip")
    expect(kinds.first).to_be_visible()
    words = {re.sub(r"^\W+", "", each) for each in kinds.all_inner_texts()}
    assert words <= {
        "explicit positive",
        "implicit positive",
        "implicit negative",
        "explicit negative",
    }
    first.get_by_role("button", name="Like", exact=True).click()
    told = page.locator(".told")
    expect(told).to_contain_text("Learned as explicit positive")
    expect(told).to_contain_text(f"{item} left the list")
    expect(page.locator("#said")).to_contain_text("Learned")  # for whoever does not look
    expect(page.locator(".history > li").first.locator(".id")).to_have_text(item)
    expect(page.locator(".history > li.fresh")).to_have_count(1)
    expect(page.locator(".ranked > li .move").first).to_be_visible()
    assert item not in page.locator(".ranked .id").all_inner_texts()
    expect(told).to_be_focused()


@pytest.mark.slow
def test_the_document_of_the_api_has_its_style_and_takes_no_other(
    light: Page, still: tuple[str, MemoryTable]
) -> None:
    light.goto(f"{still[0]}/docs")
    width = "getComputedStyle(document.body).maxWidth"
    assert light.evaluate(width) == "960px"


def test_a_name_that_looks_like_markup_is_text(light: Page, learning: str) -> None:
    light.goto(f"{learning}/#/users/{HOSTILE}")
    expect(light.locator(".history .id").first).to_have_text(HOSTILE)
    expect(light.locator("h1")).to_have_text(f"User {HOSTILE}")
    assert light.locator("main img").count() == 0


@pytest.mark.slow
def test_a_user_nobody_knows_gets_a_list_and_is_told_why(light: Page, learning: str) -> None:
    light.goto(f"{learning}/#/users")
    light.get_by_label("User id").fill("nobody? 100 %")
    light.keyboard.press("Enter")
    expect(light.locator("h1")).to_have_text("User nobody? 100 %")
    expect(light.get_by_text("Nothing is known of this user.", exact=True)).to_be_visible()
    expect(light.get_by_text("what suits anybody")).to_be_visible()
    expect(light.locator(".ranked > li")).to_have_count(10)


@pytest.mark.slow
def test_the_keyboard_alone_will_do(light: Page, learning: str) -> None:
    light.goto(f"{learning}/")
    expect(light.locator("h1")).to_have_text("All is well.")
    light.keyboard.press("Tab")
    expect(light.get_by_role("link", name="Skip to the page")).to_be_focused()
    light.keyboard.press("Enter")
    expect(light.get_by_role("main")).to_be_focused()
    light.keyboard.press("Shift+Tab")
    expect(light.get_by_role("button", name="API key")).to_be_focused()
    outline = light.locator("#key-button").evaluate("each => getComputedStyle(each).outlineStyle")
    assert outline == "solid"
    light.keyboard.press("Enter")
    expect(light.get_by_role("dialog", name="API key")).to_be_visible()
    light.keyboard.press("Escape")
    expect(light.get_by_role("button", name="API key")).to_be_focused()
    light.get_by_role("link", name="Models").press("Enter")
    expect(light.get_by_role("heading", level=1)).to_be_focused()


@pytest.mark.slow
def test_a_model_is_rolled_back_and_followed_again_after_a_question(
    page: Page, still: tuple[str, MemoryTable]
) -> None:
    address, table = still
    given: Callable[[], int] = lambda: next(each.epoch for each in table.epochs() if each.in_view)
    newest = given()
    page.goto(f"{address}/#/models")
    page.get_by_role("button", name="Roll back to it").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert given() == newest
    page.get_by_role("button", name="Roll back to it").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text(f"pinned to model {newest - 1}")).to_be_visible()
    assert given() == newest - 1
    page.get_by_role("button", name="Follow the learner again").click()
    page.get_by_role("dialog").get_by_role("button", name="Follow the learner").click()
    expect(page.get_by_text(f"follow the learner: model {newest}")).to_be_visible()
    assert given() == newest


@pytest.mark.slow
def test_an_experiment_is_started_looked_at_and_stopped(
    page: Page, still: tuple[str, MemoryTable]
) -> None:
    address, _ = still
    page.goto(f"{address}/#/experiments")
    expect(page.get_by_text("There was none yet.")).to_be_visible()
    page.get_by_label("Name, used once").fill("older-model")
    page.get_by_label("Or another learner").fill("strict")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no learner publishes under")
    page.get_by_label("Or another learner").fill("")
    page.get_by_label("Its model").select_option(index=2)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("h1")).to_have_text("Experiment older-model")
    arms = page.get_by_role("table", name="Arms").get_by_role("rowheader")
    expect(arms).to_have_text(["control", "new"])
    page.goto(f"{address}/#/users/u1")

    def takes_part() -> bool:
        page.get_by_role("button", name="Ask again").click()
        return page.get_by_text("experiment older-model").is_visible()

    wait_until(takes_part, 60.0, "the server to follow the experiment")
    page.goto(f"{address}/#/experiments/older-model")
    page.get_by_role("button", name="Stop the experiment").click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.locator(".lead")).to_contain_text("Ended")
    page.get_by_role("link", name="All experiments").click()
    expect(page.get_by_role("row", name=re.compile("older-model.* ended"))).to_be_visible()


@pytest.mark.slow
def test_a_server_that_goes_away_is_told(light: Page, tmp_path: Path) -> None:
    table = publish(MemoryTable())
    with served(tmp_path, table, MemoryLog()) as address:
        light.goto(f"{address}/#/models")
        expect(light.locator("#pulse")).to_contain_text("The server answers")
    expect(light.locator("#said")).to_have_text("The server does not answer.")
    expect(light.locator("#pulse")).to_contain_text("is it running?")


@pytest.mark.slow
def test_a_key_is_asked_for_used_and_forgotten_with_the_tab(light: Page, tmp_path: Path) -> None:
    keys = tmp_path / "some-keys.json"
    key = new_key(keys, "ops", "operator")
    settings = Settings(serving=ServingSettings(keys_file=str(keys)))
    with served(tmp_path, publish(MemoryTable()), MemoryLog(), settings) as address:
        light.goto(f"{address}/#/models")
        asked = light.get_by_role("dialog", name="API key")
        expect(asked).to_be_visible()
        asked.get_by_label("Key or token").fill(key)
        light.keyboard.press("Enter")
        expect(light.get_by_text("Answers follow the learner")).to_be_visible()
        expect(light.get_by_role("button", name="API key: set")).to_be_visible()
        assert key not in light.content()
        assert light.evaluate("Object.values(sessionStorage)") == [key]
        assert light.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        light.reload()
        expect(light.get_by_text("Answers follow the learner")).to_be_visible()
        light.get_by_role("button", name="API key: set").click()
        asked.get_by_role("button", name="Forget the key").click()
        expect(light.get_by_role("alert")).to_contain_text("Enter a key above.")
        assert light.evaluate("sessionStorage.length") == 0


@pytest.mark.slow
def test_dead_letters_are_looked_at_mended_and_sent_once_more(
    light: Page, tmp_path: Path, kafka: KafkaSettings
) -> None:
    # The first transaction of a broker takes it a while.
    settings = Settings(kafka=kafka, serving=ServingSettings(request_s=START_S))
    create(kafka)
    with closing(KafkaLog(kafka)) as log:
        log.append(DEAD, [(None, encode(each)) for each in letters()], timestamp_ms=7)
        letterbox = KafkaLetterbox(settings)
        with served(
            tmp_path, publish(MemoryTable()), MemoryLog(), settings, letterbox=letterbox
        ) as address:
            light.goto(f"{address}/#/letters")
            expect(light.get_by_text("3 records died; 3 of them were not sent")).to_be_visible()
            light.get_by_role("link", name="invalid at $.ts_ms").click()
            light.locator("summary").first.click()
            expect(light.get_by_text(HOSTILE).first).to_be_visible()
            light.get_by_label("Correction").fill('{"scale": {"ts_ms": 1000}}')
            light.get_by_role("button", name="See what would be sent").click()
            light.get_by_role("button", name="Send 2 once more").click(timeout=1_000 * START_S)
            light.get_by_role("button", name="Send them").click()
            sent = light.get_by_text("2 were sent once more.").first
            expect(sent).to_be_visible(timeout=1_000 * START_S)
            expect(light.get_by_text("1 of them were not sent again yet")).to_be_visible()
        assert sum(log.end(INTERACTIONS).values()) >= 2


def letters() -> Iterator[DeadLetter]:
    """Yield two letters whose times are in seconds, and one that is no JSON."""
    for number in range(2):
        event = {
            "v": 1,
            "event_id": f"e{number}",
            "user_id": "712",
            "item_id": HOSTILE,
            "ts_ms": 1_650_812_741 + number,
            "signals": {"click": 1},
        }
        reason = "invalid: want milliseconds, got what looks like seconds"
        yield DeadLetter(json.dumps(event).encode(), reason, "$.ts_ms", INTERACTIONS, 0, number)
    yield DeadLetter(b"\x00no", "undecodable: want JSON", "", INTERACTIONS, 0, 2)
