"""The tiny guest: built from its sources, and put into the agent's image store."""

from __future__ import annotations

import hashlib

from decisec.dev.errors import StackError
from decisec.dev.programs import Programs
from decisec.dev.state import StateDir
from decisec.dev.supervisor import Report, Supervisor
from vm_agent.images import ImageError, ImageStore
from vm_agent.simulator import faults

IMAGE = "tiny"
GUEST_ARGS = ("blkr", "blkw", "hz", "loop", "spin", "tx")


def allowed_args(driver: str) -> tuple[str, ...]:
    """What a VM's kernel may be told: on the simulator, if that was asked for, its faults too."""
    return tuple(sorted((*GUEST_ARGS, *(faults.ARGUMENTS if driver == "simulator" else ()))))


async def prepare_guest(
    driver: str, state: StateDir, supervisor: Supervisor, programs: Programs, report: Report
) -> None:
    """Build the guest, unless it stands, and import it as image `tiny`.

    Args:
        driver: `auto`, or the one hypervisor to take.
        state: Where the guest and the agent's images are.
        supervisor: Runs the build.
        programs: How the build is called.
        report: Told of an import.

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
        if _import(ImageStore(state.agent / "images"), state, allowed_args(driver)):
            report(f"image {IMAGE} imported")
    except ImageError as error:
        raise StackError(str(error)) from error


def _import(images: ImageStore, state: StateDir, allowed: tuple[str, ...]) -> bool:
    digest = hashlib.sha256(state.guest.read_bytes()).hexdigest()
    if IMAGE in images.names():
        manifest = images.open(IMAGE).manifest
        if (manifest.kernel_sha256, manifest.allowed_args) == (digest, allowed):
            return False
    images.add(IMAGE, state.guest, allowed_args=allowed)
    return True
