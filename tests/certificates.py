"""Certificates for servers that the tests start, from an authority that lives as long as they."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificates(NamedTuple):
    """PEM files: what clients trust, and what the server shows; ``both`` is key and certificate."""

    authority: Path
    certificate: Path
    key: Path
    both: Path


def certificates(folder: Path) -> Certificates:
    """Make an authority, and a key and a certificate for a server at 127.0.0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(
        *(folder / name for name in ("ca.pem", "server.crt", "server.key", "both.pem"))
    )
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2"]
    authority: list[str | Path] = [
        *new,
        "-subj",
        "/CN=tests",
        "-keyout",
        "ca.key",
        "-out",
        made.authority,
    ]
    server: list[str | Path] = [
        *new,
        "-subj",
        "/CN=server",
        "-keyout",
        made.key,
        "-out",
        made.certificate,
    ]
    server += ["-CA", made.authority, "-CAkey", "ca.key"]
    server += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    server += ["-addext", "basicConstraints=critical,CA:FALSE"]
    for command in (authority, server):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    made.both.write_text(made.key.read_text() + made.certificate.read_text())
    return made
