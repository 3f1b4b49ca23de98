"""Secret keys of 256 bits, from a setting (and so from the environment) or from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from stream.errors import BadSettings

KEY_BYTES: Final = 32

_HEX: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def given_secret(name: str, text: str, file: str) -> str:
    """Return a secret that stands in a setting or in the file that another setting names.

    Parameters
    ----------
    name
        Of the setting, as in ``serving.jwt_key``, for messages; that of the file ends in
        ``_file``.
    text, file
        What the two are set to; empty is not set.

    Returns
    -------
    str
        Without the white space around it; empty if neither is set.

    Raises
    ------
    BadSettings
        If both are set, or the file cannot be read or is empty. No message shows the secret.

    """
    if text and file:
        raise BadSettings(f"{name} and {name}_file are both set: want one of them")
    if not file:
        return text.strip()
    try:
        found = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadSettings(f"{name}_file: cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise BadSettings(f"{name}_file: {file} is not text") from None
    if not found:
        raise BadSettings(f"{name}_file: {file} is empty")
    return found


def secret_key(name: str, text: str, file: str) -> bytes | None:
    """Return the 32 bytes of a key, or ``None`` if none is set.

    Parameters
    ----------
    name, text, file
        As in :func:`given_secret`; the key is written as 64 hexadecimal digits.

    Raises
    ------
    BadSettings
        If it is written otherwise. No message shows it.

    Examples
    --------
    >>> secret_key("learner.snapshot_key", "0f" * 32, "")[:2]
    b'\\x0f\\x0f'
    >>> secret_key("learner.snapshot_key", "", "") is None
    True

    """
    found = given_secret(name, text, file)
    if not found:
        return None
    if not _HEX.fullmatch(found):
        raise BadSettings(
            f"{name}: want {2 * KEY_BYTES} hexadecimal digits, got {len(found)} characters that "
            f"are not that; openssl rand -hex {KEY_BYTES} makes a key"
        )
    return bytes.fromhex(found)
