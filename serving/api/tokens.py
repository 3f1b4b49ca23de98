"""Checks JSON Web Tokens: one algorithm, one key, one issuer, one audience, and an end."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from serving.api.routes import Role
from stream.errors import BadSettings
from stream.secret_keys import given_secret
from stream.settings import ServingSettings

MAX_TOKEN: Final = 4_096
"""Characters of a token, at most."""

MAX_SUBJECT: Final = 256
"""Characters of a subject, at most."""

CLOCK_S: Final = 5.0
"""By how much the clocks of who signs and who checks may differ."""

_MIN_SECRET: Final = 32  # bytes, as many as the hash has: RFC 7518, section 3.2
_MIN_RSA: Final = 2_048  # bits, section 3.3


class Claims(NamedTuple):
    """What a token that holds says."""

    subject: str
    role: Role | None
    until_s: float  # since 1970


class BadToken(Exception):  # noqa: N818 - it is the token that is bad
    """A token that is not let in; the message may be shown."""


class Tokens:
    """Checks the tokens of one issuer.

    Parameters
    ----------
    settings
        ``jwt_key`` or ``jwt_key_file``, ``jwt_algorithm``, ``jwt_issuer``, ``jwt_audience``.

    Raises
    ------
    BadSettings
        If no issuer or audience is named, or the key is not of the algorithm or too short.

    """

    def __init__(self, settings: ServingSettings) -> None:
        text = given_secret("serving.jwt_key", settings.jwt_key, settings.jwt_key_file)
        if not (settings.jwt_issuer and settings.jwt_audience):
            raise BadSettings(
                "serving.jwt_key is set: want serving.jwt_issuer and serving.jwt_audience too, "
                "so that tokens made by or for somebody else are refused"
            )
        self._algorithm = settings.jwt_algorithm
        self._key = _checked_key(text, settings.jwt_algorithm)
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience

    def __repr__(self) -> str:
        return f"Tokens({self._algorithm}, of {self._issuer}, for {self._audience})"

    def check(self, token: str) -> Claims:
        """Return what a token says.

        The header of a token chooses nothing: neither the algorithm nor the key.

        Raises
        ------
        BadToken
            If it is not signed as wanted, has ended or not begun, is for somebody else, or is not
            of the form.

        """
        if len(token) > MAX_TOKEN:
            raise BadToken(f"want a token of at most {MAX_TOKEN} characters, got {len(token)}")
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=CLOCK_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            until_s = float(claims["exp"]) + CLOCK_S
        except jwt.ExpiredSignatureError:
            raise BadToken("the token has ended: get a new one") from None
        except jwt.PyJWTError as error:
            raise BadToken(f"the token does not hold: {_reason(error)}") from None
        except (ValueError, TypeError, OverflowError, RecursionError, UnicodeError):
            raise BadToken("the token is not of the form") from None
        return Claims(_subject(claims), _greatest(claims.get("roles", [])), until_s)


def _checked_key(text: str, algorithm: str) -> Any:
    """Return the key as PyJWT takes it."""
    where = "serving.jwt_key"
    if algorithm == "HS256":
        if "-----BEGIN" in text:
            raise BadSettings(f"{where}: is a PEM key: want serving.jwt_algorithm RS256 or EdDSA")
        if len(text.encode()) < _MIN_SECRET:
            raise BadSettings(
                f"{where}: HS256 wants a secret of at least {_MIN_SECRET} bytes, got "
                f"{len(text.encode())}; openssl rand -hex {_MIN_SECRET} makes one"
            )
        return text
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSettings(f"{where}: {algorithm} wants a public key in PEM, got none") from None
    if algorithm == "RS256" and isinstance(key, RSAPublicKey):
        if key.key_size < _MIN_RSA:
            raise BadSettings(f"{where}: want RSA of {_MIN_RSA} bits or more, got {key.key_size}")
        return key
    if algorithm == "EdDSA" and isinstance(key, Ed25519PublicKey):
        return key
    wanted = "an RSA key" if algorithm == "RS256" else "an Ed25519 key"
    raise BadSettings(f"{where}: {algorithm} wants {wanted}, got another kind of key")


def _reason(error: jwt.PyJWTError) -> str:
    """Return why a token is refused, without anything that stands in it."""
    words = {
        jwt.ImmatureSignatureError: "it has not begun",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.InvalidAlgorithmError: "it is signed with another algorithm",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.MissingRequiredClaimError: "it lacks one of exp, iss, aud and sub",
    }
    return next((said for kind, said in words.items() if isinstance(error, kind)), "its form")


def _subject(claims: dict[str, Any]) -> str:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
        raise BadToken(f"want sub to be text of 1 to {MAX_SUBJECT} characters")
    if not subject.isprintable():
        raise BadToken("want sub without control characters")
    return subject


def _greatest(roles: Any) -> Role | None:
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise BadToken("want roles to be a list of texts")
    known = [role for role in Role if role.name.lower() in roles]
    return max(known, default=None)
