"""A user has one pseudonym for each key, which tells nothing without the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pseudonyms import Pseudonyms, pseudonym_of
from stream.errors import BadSettings
from stream.settings import ServingSettings

KEY = "0f" * 32


@given(st.text(), st.text())
def test_each_id_has_one_pseudonym_and_shares_it_with_no_other(one: str, other: str) -> None:
    pseudonym = Pseudonyms(bytes.fromhex(KEY))
    assert re.fullmatch("u_[0-9a-f]{32}", pseudonym(one))
    assert pseudonym(one) == Pseudonyms(bytes.fromhex(KEY))(one)
    assert (pseudonym(one) == pseudonym(other)) == (one == other)
    assert pseudonym(one) != Pseudonyms(bytes(32))(one)
    assert pseudonym(pseudonym(one)) != pseudonym(one)


def test_the_key_comes_from_a_setting_or_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    named = ServingSettings(pseudonym_key_file=str(tmp_path / "key"))
    given = ServingSettings(pseudonym_key=KEY)
    assert pseudonym_of(named)("712") == pseudonym_of(given)("712") != "712"
    assert pseudonym_of(ServingSettings())("712") == "712"
    assert KEY not in repr(given) + repr(pseudonym_of(given))


@pytest.mark.parametrize("key", ["0f", "0f" * 33, "zz" * 32, "0F" * 16 + " " + "0f" * 16])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadSettings, match="want 64 hexadecimal digits") as caught:
        pseudonym_of(ServingSettings(pseudonym_key=key))
    assert key not in str(caught.value)
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="is not text"):
        pseudonym_of(ServingSettings(pseudonym_key_file=str(tmp_path / "key")))
    (tmp_path / "key").write_text("\n")
    with pytest.raises(BadSettings, match="is empty"):
        pseudonym_of(ServingSettings(pseudonym_key_file=str(tmp_path / "key")))
    with pytest.raises(BadSettings, match="both set"):
        pseudonym_of(ServingSettings(pseudonym_key=KEY, pseudonym_key_file="f"))
