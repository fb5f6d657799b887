"""Where a running stack can be reached: written while it runs, so that commands find it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from decisec.dev.state import StateDir, write_private


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `dev.json`. It holds a token, so only its owner may read the file."""

    api_url: str
    docs_url: str
    nats_url: str
    token: str
    customer: str
    host_id: str
    state_dir: str
    pid: int


def write_endpoint(state: StateDir, endpoint: Endpoint) -> None:
    """Make the stack known."""
    write_private(state.endpoint_file, msgspec.json.format(msgspec.json.encode(endpoint)))


def read_endpoint(root: Path) -> Endpoint | None:
    """The stack that runs on a state directory now, or None.

    A file that a killed stack left behind counts for nothing.
    """
    state = StateDir(root)
    try:
        content = state.endpoint_file.read_bytes()
    except OSError:
        return None
    if not state.running:
        return None
    try:
        return msgspec.json.decode(content, type=Endpoint)
    except msgspec.DecodeError:
        return None
