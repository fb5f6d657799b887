"""The files of a pretended snapshot, named as the vendor names them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

_MEMORY_BYTES = 4096
# The vendor writes the whole configuration, with much that no request of ours had.
_MORE: dict[str, dict[str, Any]] = {
    "cpus": {"max_phys_bits": 46, "nested": True, "core_scheduling": "Vm"},
    "memory": {"hotplug_method": "Acpi", "shared": False, "thp": True},
    "disks": {"readonly": False, "num_queues": 1, "queue_size": 128, "sparse": True},
    "net": {"num_queues": 2, "queue_size": 256, "offload_tso": True},
}


def save_snapshot(folder: Path, config: dict[str, Any], guest: dict[str, int]) -> None:
    """Write all three files; none of them may exist.

    Raises:
        OSError: One does, or the folder cannot be written.
    """
    whole = deepcopy(config)
    for name, more in _MORE.items():
        parts = whole.get(name) or []
        for part in parts if isinstance(parts, list) else [parts]:
            part.update({key: value for key, value in more.items() if key not in part})
    whole["rng"] = {"src": "/dev/urandom"}
    files = {
        "config.json": json.dumps(whole).encode(),
        "state.json": json.dumps({"id": "vm", "guest": guest}).encode(),
        "memory-ranges": bytes(_MEMORY_BYTES),
    }
    for name, content in files.items():
        with (folder / name).open("xb") as file:
            file.write(content)


def load_snapshot(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Configuration and guest of a snapshot.

    Raises:
        OSError: A file cannot be read.
        ValueError, LookupError, TypeError: A file is damaged.
    """
    config = json.loads((folder / "config.json").read_bytes())
    state = json.loads((folder / "state.json").read_bytes())
    if len((folder / "memory-ranges").read_bytes()) != _MEMORY_BYTES:
        raise ValueError("memory-ranges is damaged")
    return dict(config), dict(state["guest"])
