"""The folder that names of network namespaces stand in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SHARE_TWICE = """
from pathlib import Path
from vm_agent import namespace
folder = Path("{folder}")
for _ in range(2):
    namespace.share(folder)
lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
print(*(fields[6].partition(":")[0] for fields in lines if fields[4] == str(folder)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_the_folder_is_one_shared_mount_however_often_it_is_asked_for(tmp_path: Path) -> None:
    """As ip-netns(8) makes it; else its first `ip netns add` would hide the names in there."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    program = _SHARE_TWICE.format(folder=tmp_path)
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-c", program],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.split() == ["shared"]
