"""Acts of operators: who says to do them, and why."""

from __future__ import annotations

import getpass
import os
import socket

from runtime.audit import audited, check_reason

__all__ = ["audited", "check_reason", "operator"]


def operator() -> str:
    """Who says to do it: a name for people, no proof."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:255]
