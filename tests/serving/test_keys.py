"""Keys are made, listed and revoked; the file holds hashes only."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.keys import digest, new_key, read_keys, revoke_key
from stream.errors import BadOutput, BadSettings, UserError
from tidegraph import main


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_the_file_tells_who_has_a_key_and_not_the_key(tmp_path: Path) -> None:
    path = tmp_path / "var" / "keys.json"
    assert read_keys(path) is None
    key = new_key(path, "shop", "writer", requests_per_s=5)
    (found,) = read_keys(path) or ()
    assert (found.name, found.role, found.requests_per_s) == ("shop", "writer", 5)
    assert found.sha256 == digest(key)
    assert key.removeprefix("tg_") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({new_key(path, f"k{n}", "reader") for n in range(5)}) == 5


def test_a_name_is_taken_once_and_can_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = new_key(path, "shop", "writer")
    with pytest.raises(UserError, match="has a key named shop"):
        new_key(path, "shop", "reader")
    revoke_key(path, "shop")
    assert read_keys(path) == ()
    with pytest.raises(UserError, match="no key named 'shop'; there are: none"):
        revoke_key(path, "shop")
    assert new_key(path, "shop", "reader") != first


@pytest.mark.parametrize("name", ["", " a", "a b", "a\n", "x" * 65, "é", "-a"])
def test_a_name_that_cannot_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="want a name of 1 to 64"):
        new_key(tmp_path / "keys.json", name, "reader")


@pytest.mark.parametrize(
    "content",
    ["", "torn", "[]", '{"version": 2, "keys": []}', '{"keys": [{"name": "a"}]}', "[" * 5_000],
)
def test_a_file_that_is_none_of_ours_is_refused_and_left(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(BadSettings, match="is not a file of keys"):
        new_key(path, "shop", "reader")
    assert path.read_text() == content


def test_a_file_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadOutput, match="cannot write"):
        new_key(tmp_path / "file" / "keys.json", "shop", "reader")


def test_none_is_lost_when_several_are_made_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=new_key, args=(path, f"k{n}", "reader")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path) or ()} == {f"k{n}" for n in range(8)}


def test_the_commands_make_list_and_revoke(runner: CliRunner) -> None:
    assert runner.invoke(main, ["keys", "list"]).output == "no keys in var/keys.json\n"
    made = runner.invoke(main, ["keys", "new", "shop", "--role", "writer", "--requests-per-s", "9"])
    key = made.stdout.strip()
    assert key.startswith("tg_")
    assert "not be shown again" in made.stderr
    listed = runner.invoke(main, ["keys", "list"]).output
    assert listed.split()[:2] == ["shop", "writer"]
    assert listed.endswith("9 requests/s\n")
    shown = runner.invoke(main, ["keys", "list", "--json"]).output
    (told,) = json.loads(shown)["keys"]
    assert (told["name"], told["role"]) == ("shop", "writer")
    assert "sha256" not in told
    assert runner.invoke(main, ["keys", "revoke", "shop"]).exit_code == 0
    failed = runner.invoke(main, ["keys", "revoke", "shop"])
    assert (failed.exit_code, "no key named" in failed.output) == (2, True)
    audit = Path("var/audit.jsonl").read_text()
    assert [json.loads(line)["outcome"] for line in audit.splitlines()] == [
        "asked",
        "done",
        "asked",
        "done",
        "asked",
        "failed",
    ]
    assert key not in audit + listed + shown


def test_without_a_file_named_the_commands_say_so(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGRAPH_SERVING_KEYS_FILE", "")
    result = runner.invoke(main, ["keys", "list"])
    assert (result.exit_code, "serving.keys_file is empty" in result.output) == (2, True)
