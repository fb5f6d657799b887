"""The development tools say in one line what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from decisec.devkit import firecracker, guest
from decisec.devkit.uv import DevkitError, run


def tool(module: str, *argv: str, path: str) -> subprocess.CompletedProcess[str]:
    """Call a tool with nothing but `path` on PATH."""
    return subprocess.run(
        [sys.executable, "-m", module, *argv],
        env={"PATH": path, "HOME": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_uv_fetching_says_so(tmp_path: Path) -> None:
    """Exit code 1 and one line."""
    done = tool("decisec.devkit.firecracker", "--dest", str(tmp_path / "bin"), path=str(tmp_path))
    if done.returncode == 0:
        pytest.skip("uv is installed as a package of this Python")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "uv" in done.stderr


def test_other_binaries_are_not_taken_for_the_pinned_ones(tmp_path: Path) -> None:
    """A name is not enough."""
    for name in firecracker.SHA256:
        (tmp_path / name).write_bytes(b"something else")
    assert not firecracker.is_present(tmp_path)


def test_a_guest_is_built_once(tmp_path: Path) -> None:
    """And again when asked for with another compiler."""
    compiler = guest.compilers()[0]
    if compiler == "zig":
        pytest.skip("there is no C compiler on PATH")
    made = tmp_path / "guest"
    assert guest.build(made)
    assert not guest.build(made)
    assert made.read_bytes().startswith(b"\x7fELF")
    assert guest.build(made, compiler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest", "guest.digest"]


def test_a_tool_that_fails_is_quoted() -> None:
    """With its last line."""
    with pytest.raises(DevkitError, match=r"^trying failed: second$"):
        run(["sh", "-c", "echo first; echo second >&2; exit 3"], what="trying")
    with pytest.raises(DevkitError, match="trying failed: exit 3"):
        run(["sh", "-c", "exit 3"], what="trying")
    with pytest.raises(DevkitError, match="trying failed"):
        run(["/nonexistent"], what="trying")
