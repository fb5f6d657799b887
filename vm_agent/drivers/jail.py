"""Firecracker's jailer: a root directory, a user, a PID and a network namespace per VM.

The jail is built by the agent before the jailer locks it: files are linked into it, so nothing
of the host is seen from inside but what this one VM needs. Its root belongs to the VM's user;
what a hostile VMM may do in there must not fool the agent, which is why the agent opens things
in a jail without following links.

Source: the vendor's `docs/jailer.md`; facts that it does not tell are in the comments.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vm_agent.drivers.abc import DriverError, MachinePlan
from vm_agent.drivers.paths import CONSOLE
from vm_agent.drivers.vmm_log import last_words
from vm_agent.namespace import NETNS_DIR
from vm_agent.process import ProcessId, VmmProcesses

ROOT_LINK = "root"
"""In the run directory: leads to the jail's root, wherever the jailer wants that to be."""

DISK = "disk.img"
_KERNEL, _INITRD = "kernel", "initrd"
_KVM = Path("/dev/kvm")
_OPEN_FILES = 1024
_JAILER_S = 3.0


def root_of(run_dir: Path) -> Path:
    """The directory that the VMM of a run directory works in; if it is jailed, sees as its root."""
    root = run_dir / ROOT_LINK
    return root if root.is_dir() else run_dir


def make_home(plan: MachinePlan, uid: int | None) -> MachinePlan:
    """Make a directory for a VMM that no jailer confines; the plan as it sees it from there.

    All names are relative: a user of its own cannot reach into the agent's directories.

    Raises:
        OSError: A file cannot be placed.
    """
    root = plan.run_dir / ROOT_LINK
    root.mkdir(mode=0o700)
    return _furnish(plan, root, uid, Path())


def _furnish(plan: MachinePlan, root: Path, uid: int | None, seen: Path) -> MachinePlan:
    """Place a plan's files in a VMM's root, which it sees as `seen`, and give it to its user."""
    place_readable(plan.kernel, root / _KERNEL)
    if plan.initrd is not None:
        place_readable(plan.initrd, root / _INITRD)
    if plan.disk is not None:
        # The very file, not a copy: what the guest writes has to stay.
        os.link(plan.disk, root / DISK)
    if uid is not None:
        os.chown(root, uid, uid)
        if plan.disk is not None:
            os.chown(root / DISK, uid, uid)
    return replace(
        plan,
        kernel=seen / _KERNEL,
        initrd=seen / _INITRD if plan.initrd else None,
        disk=seen / DISK if plan.disk else None,
        run_dir=seen,
    )


class Jail:
    """Jails of one Firecracker binary.

    Args:
        jailer: The vendor's jailer, of the same release.
        firecracker: The binary; the jailer copies it into each jail.
    """

    def __init__(self, jailer: Path, firecracker: Path) -> None:
        self._jailer = jailer
        self._firecracker = firecracker

    @property
    def missing(self) -> str | None:
        """Why nothing can be jailed here; None if it can."""
        if os.geteuid() != 0:
            return "only root can jail a VMM"
        if not self._jailer.is_file():
            return f"there is no jailer at {self._jailer}"
        return None

    def build(self, plan: MachinePlan) -> MachinePlan:
        """Make the jail of a plan; the plan as its VMM will see it, from inside.

        Raises:
            OSError: A file cannot be placed.
            DriverError: The plan has no user.
        """
        if plan.uid is None:
            raise DriverError("a jailed VMM needs a user of its own")
        root = self._root(plan)
        # First the link: whoever finds it half made can remove it all.
        (plan.run_dir / ROOT_LINK).symlink_to(root.relative_to(plan.run_dir))
        root.mkdir(mode=0o700, parents=True)
        return _furnish(plan, root, plan.uid, Path("/"))

    def command(self, plan: MachinePlan, arguments: Sequence[str]) -> list[str]:
        """The jailer's command line; the arguments after it are Firecracker's."""
        netns = ["--netns", str(NETNS_DIR / plan.nic.netns)] if plan.nic else []
        return [
            str(self._jailer),
            *("--id", str(plan.vm_id)),
            *("--exec-file", str(self._firecracker)),
            *("--uid", str(plan.uid), "--gid", str(plan.uid)),
            *("--chroot-base-dir", str(plan.run_dir)),
            *netns,
            # No limit of file sizes: at such a limit the VMM's API hangs for good.
            *("--resource-limit", f"no-file={_OPEN_FILES}"),
            "--new-pid-ns",
            "--",
            *arguments,
        ]

    async def enter(
        self, plan: MachinePlan, command: Sequence[str], processes: VmmProcesses
    ) -> ProcessId:
        """Run the jailer until it has forked the VMM and exited; the VMM.

        On failure or cancellation neither of them is left.

        Raises:
            OSError: The jailer cannot be started.
            DriverError: It failed.
        """
        jailer = processes.spawn(
            command,
            cwd=plan.run_dir,
            console=plan.run_dir / CONSOLE,
            doors=plan.group.doors if plan.group else (),
        )
        landed = asyncio.ensure_future(self._land(plan, jailer, processes))
        try:
            return await asyncio.shield(landed)
        except BaseException:
            # Cut short, it could leave a VMM that nobody has heard of yet; it takes 20 ms.
            await asyncio.wait([landed])
            if not landed.cancelled() and landed.exception() is None:
                vmm = landed.result()
                processes.kill(vmm.pid, vmm.start_ticks)
                await processes.wait_exit(vmm.pid, vmm.start_ticks)
                processes.forget(vmm.pid, vmm.start_ticks)
            raise

    async def _land(
        self, plan: MachinePlan, jailer: ProcessId, processes: VmmProcesses
    ) -> ProcessId:
        try:
            async with asyncio.timeout(_JAILER_S):
                status = await processes.wait_exit(jailer.pid, jailer.start_ticks)
        except TimeoutError as error:
            processes.kill(jailer.pid, jailer.start_ticks)
            await processes.wait_exit(jailer.pid, jailer.start_ticks)
            raise DriverError(f"the jailer was not done within {_JAILER_S:g} s") from error
        finally:
            processes.forget(jailer.pid, jailer.start_ticks)
        words = last_words(plan.run_dir / CONSOLE)
        if status.exit_code != 0:
            raise DriverError(f"the jailer failed: {words or f'exit code {status.exit_code}'}")
        try:
            # Written by the jailer before it exits; the guest does not run yet.
            pid = int((self._root(plan) / f"{self._executable}.pid").read_text())
            return processes.take_over(pid)
        except (OSError, ValueError) as error:
            raise DriverError(f"firecracker ended in its jail: {words or error}") from error

    @property
    def _executable(self) -> str:
        # The jailer resolves links, and names its directories after what it finds.
        return self._firecracker.resolve().name

    def _root(self, plan: MachinePlan) -> Path:
        return plan.run_dir / self._executable / str(plan.vm_id) / "root"


def kvm_groups() -> list[int]:
    """The group that may use KVM, for a VMM that is nobody; none if all may, or only root."""
    try:
        found = _KVM.stat()
    except OSError:
        return []
    return [found.st_gid] if found.st_gid and found.st_mode & 0o060 == 0o060 else []


def remove(run_dir: Path) -> None:
    """Remove the jail or home of a run directory, whose VMM is gone. Nothing if there is none."""
    root = run_dir / ROOT_LINK
    # Never follows a link, and takes away names only: a disk lives on under its own.
    if root.is_symlink():
        shutil.rmtree(run_dir / root.readlink().parts[0], ignore_errors=True)
        root.unlink()
    else:
        shutil.rmtree(root, ignore_errors=True)


def place_readable(source: Path, target: Path) -> None:
    """Give a read-only file another name, or copy it where that is another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o444)
