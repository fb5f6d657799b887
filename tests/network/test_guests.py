"""The suite's cases from guests of real VMMs: their own virtio devices send the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from decisec.devkit.uv import DevkitError
from tests.network import real
from tests.network.cases import CASES
from tests.network.cases.base import VMS
from tests.network.relay.guest import BOOT_ARGS, RelayGuest, can_be_sent, linux_initrd
from tests.network.suite import SENDER, Sender, Suite, write_guest_report
from tests.support import fabric as fabrics
from tests.support.hypervisors import Lab, Rig, open_lab, rig
from tests.support.linux_guest import open_linux_lab
from vm_agent.drivers.abc import MachinePlan

pytestmark = [
    pytest.mark.hypervisor,
    pytest.mark.timeout(120),
    pytest.mark.skipif(fabrics.available() is not None, reason=fabrics.available() or "rules work"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The tiny guest, for Firecracker."""
    with open_lab(["firecracker"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def linux_lab() -> Iterator[Lab]:
    """A stock Linux, for QEMU."""
    with open_linux_lab() as opened:
        yield opened


async def test_a_guest_of_firecracker_gets_no_further(lab: Lab) -> None:
    """Each frame that its device can send goes where it should."""
    async with rig(lab, "firecracker") as made:
        start = starter(made, made.plan(disk=False, relay=1))
        async with real.suite(start) as suite:
            await judged(suite, "firecracker")


async def test_a_stock_linux_gets_no_further(linux_lab: Lab, tmp_path: Path) -> None:
    """The same, beside its own stack, which answers what comes to it."""
    async with rig(linux_lab, "qemu") as made:
        plan = made.plan(disk=False)
        assert plan.initrd is not None
        initrd = tmp_path / "initrd"
        try:
            linux_initrd(plan.initrd, initrd)
        except DevkitError as error:
            pytest.skip(str(error))
        words = " ".join(f"{name}={value}" for name, value in BOOT_ARGS.items())
        start = starter(
            made, replace(plan, initrd=initrd, kernel_args=f"{plan.kernel_args} {words}")
        )
        async with real.suite(start, stack=True) as suite:
            await judged(suite, "linux")


def starter(made: Rig, plan: MachinePlan) -> real.Start:
    """Starts the VM of a plan as the one that sends."""

    async def start(place: fabrics.Fabric, attach: real.Attach) -> Sender:
        vm = VMS[SENDER]
        nic = replace(await made.nic(), mac=vm.mac)
        vmm = await made.create(replace(plan, nic=nic))
        await attach(nic)
        await made.driver.boot(vmm)
        await made.says(vmm, "RELAY")
        return RelayGuest(place, made.driver.console(plan.run_dir))

    return start


async def judged(suite: Suite, guest: str) -> None:
    """Send all cases that can be sent, and leave the figures."""
    cases = list(filter(can_be_sent, CASES))
    problems = [problem for case in cases if (problem := await suite.wrong(case))]
    write_guest_report(guest, cases, len(cases) - len(problems))
    assert not problems, "\n".join(problems)
    assert len(cases) > 200
