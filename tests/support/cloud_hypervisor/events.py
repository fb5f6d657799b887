"""Events as the vendor's event monitor writes them."""

from __future__ import annotations

import json


def render_event(source: str, name: str, at_ns: int = 0, **properties: str) -> bytes:
    """One event and the empty line after it; `at_ns` counts from the VMM's start."""
    secs, nanos = divmod(at_ns, 1_000_000_000)
    fields = {
        "timestamp": {"secs": secs, "nanos": nanos},
        "source": source,
        "event": name,
        "properties": properties or None,
    }
    return json.dumps(fields, indent=2).encode() + b"\n\n"
