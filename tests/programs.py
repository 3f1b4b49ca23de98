"""Programs that the tests need, installed from the distribution where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess


def program(name: str, *, otherwise: str = "") -> str:
    """Return the path of a program, of the Debian package of the same name where it is missing.

    Parameters
    ----------
    name
        Of the program and its package.
    otherwise
        What else would do, for the message.

    Raises
    ------
    RuntimeError
        If it cannot be installed. Tests must then fail, not be skipped.

    """
    found = shutil.which(name)
    if found is not None:
        return found
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", name]):
        command = [*as_root, "apt-get", *arguments]
        try:
            subprocess.run(command, env=environment, check=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(
                f"the tests need {name} and this machine has none: {otherwise}install it ({error})"
            ) from error
    found = shutil.which(name)
    assert found is not None
    return found
