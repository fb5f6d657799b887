"""What is installed where: the lock names no address, and a room needs its own extra only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

ROOMS = {
    "schemas": (),
    "runtime": (),
    "vm_agent": ("agent",),
    "collector": ("collector",),
    "batcher": ("batcher",),
    "gateway": ("gateway",),
    "decisec.sdk": ("cli",),
    "decisec.cli": ("cli",),
    "decisec.live": ("cli",),
    "decisec.streams": ("cli",),
}
"""Extras that make a package importable as a whole, its optional modules excepted."""

OPTIONAL = {"runtime.otlp"}
"""Imported where a setting asks for it; the setting's documentation names the extra."""

HEAVY = {"pyarrow", "chdb", "numpy", "clickhouse-connect"}

IMPORT_ALL = """
import importlib, json, pkgutil, sys

package, optional, forbidden = json.loads(sys.argv[1])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r} (not of this extra)", name=name)

sys.meta_path.insert(0, Absent())
root = importlib.import_module(package)
for module in pkgutil.walk_packages(root.__path__, f"{package}."):
    if module.name not in optional and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def closure(extras: tuple[str, ...]) -> set[str]:
    """Distributions that `decisec[extras]` brings, their own requirements included."""
    found: set[str] = set()
    wanted = [Requirement(f"decisec[{','.join(extras)}]" if extras else "decisec")]
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(canonicalize_name(requirement.name))
        for text in metadata.requires(requirement.name) or ():
            child = Requirement(text)
            markers = [{"extra": extra} for extra in ("", *requirement.extras)]
            if child.marker is None or any(child.marker.evaluate(m) for m in markers):
                wanted.append(child)
    return found


def modules_outside(extras: tuple[str, ...]) -> list[str]:
    """Top-level modules that are installed here and would not be with these extras only."""
    brought = closure(extras)
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not any(canonicalize_name(owner) in brought for owner in owners)
    )


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_needs_its_own_extra_only(package: str) -> None:
    """Every module imports although whatever its extra does not bring is away."""
    forbidden = modules_outside(ROOMS[package])
    assert "pytest" in forbidden
    arguments = json.dumps([package, sorted(OPTIONAL), forbidden])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_agent_host_gets_no_store() -> None:
    """Neither pyarrow nor chdb, nor what only batcher and collector compute with."""
    assert not HEAVY & closure(("agent",))
    assert HEAVY - {"chdb"} <= closure(("batcher",))


def test_the_lock_is_hashed_and_names_no_address() -> None:
    """Every requirement has a version and a hash; no registry's host stands anywhere."""
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,._-]+\])?==\S+ ", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_the_lock_covers_what_the_project_asks_for() -> None:
    """All extras and the development group are in it, at versions the project accepts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = dict(
        re.findall(
            r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)",
            (ROOT / "requirements.lock").read_text(),
            re.MULTILINE,
        )
    )
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *(text for name, texts in extras.items() if name != "all" for text in texts),
        *project["dependency-groups"]["dev"],
    ]
    for text in wanted:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text
