"""The tiny guest: built from its sources, and put into the agent's image store."""

from __future__ import annotations

import hashlib

from decisec.dev.errors import StackError
from decisec.dev.programs import Programs
from decisec.dev.state import StateDir
from decisec.dev.supervisor import Report, Supervisor
from vm_agent.images import ImageError, ImageStore

IMAGE = "tiny"
ALLOWED_ARGS = ("blkr", "blkw", "hz", "loop", "spin", "tx")


async def prepare_guest(
    state: StateDir, supervisor: Supervisor, programs: Programs, report: Report
) -> None:
    """Build the guest, unless it stands, and import it as image `tiny`.

    Raises:
        StackError: It cannot be built; says what to install.
    """
    state.guest.parent.mkdir(parents=True, exist_ok=True)
    code, word = await supervisor.guard(
        supervisor.run(
            programs.tool("guest-build", "decisec.devkit.guest", "--dest", str(state.guest))
        )
    )
    if code:
        raise StackError(
            f"the tiny guest cannot be built: {word}. Install a C compiler "
            "(`apt install gcc`) or uv (`pip install uv`), and start again"
        )
    try:
        if _import(ImageStore(state.agent / "images"), state):
            report(f"image {IMAGE} imported")
    except ImageError as error:
        raise StackError(str(error)) from error


def _import(images: ImageStore, state: StateDir) -> bool:
    digest = hashlib.sha256(state.guest.read_bytes()).hexdigest()
    if IMAGE in images.names():
        manifest = images.open(IMAGE).manifest
        if (manifest.kernel_sha256, manifest.allowed_args) == (digest, ALLOWED_ARGS):
            return False
    images.add(IMAGE, state.guest, allowed_args=ALLOWED_ARGS)
    return True
