"""Names for users that nobody can turn back without the key, put in place of their ids."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

from stream.secret_keys import secret_key
from stream.settings import ServingSettings

_PURPOSE: Final = b"tidegraph user\0"
_BYTES: Final = 16  # so many that no two users of any system get the same


class Pseudonyms:
    """Maps user ids to pseudonyms: the same id always to the same one.

    Parameters
    ----------
    key
        32 bytes. Who has it can tell which pseudonym an id has; nobody can without.

    Examples
    --------
    >>> Pseudonyms(bytes(32))("712")
    'u_...'
    >>> Pseudonyms(bytes(32))("712") == Pseudonyms(bytes(31) + b"1")("712")
    False

    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, user_id: str) -> str:
        """Return the pseudonym of a user: ``u_`` and 32 hexadecimal digits."""
        mac = hmac.digest(self._key, _PURPOSE + user_id.encode("utf-8", "surrogatepass"), "sha256")
        return f"u_{mac[:_BYTES].hex()}"


def pseudonym_of(settings: ServingSettings) -> Callable[[str], str]:
    """Return what is applied to each user id of a request, in writes and in reads alike.

    Returns
    -------
    Callable
        ``str``, which changes nothing, where no key is set.

    Raises
    ------
    BadSettings
        If the key cannot be read or is not of the form.

    """
    key = secret_key("serving.pseudonym_key", settings.pseudonym_key, settings.pseudonym_key_file)
    return str if key is None else Pseudonyms(key)
