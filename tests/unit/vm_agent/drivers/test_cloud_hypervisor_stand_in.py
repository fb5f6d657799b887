"""The stand-in answers as v53 does: states, status codes, error chains and events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cloud_hypervisor.vmm import PretendedVmm

MS = 1_000_000


class Bench:
    """A VMM with a clock that stands still."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ns = 0
        self.console: list[str] = []
        self.events: list[str] = []
        self.kernel, self.disk = directory / "kernel", directory / "disk"
        self.kernel.touch()
        self.disk.touch()
        self.vmm = PretendedVmm(
            now_ns=lambda: self.now_ns,
            emit=lambda source, event: self.events.append(f"{source} {event}"),
            print_line=self.console.append,
        )

    def put(self, action: str, body: Any = None) -> tuple[int, list[str]]:
        """Status code and error chain."""
        content = b"" if body is None else json.dumps(body).encode()
        reply = self.vmm.handle("PUT", f"/api/v1/{action}", content)
        return reply.status, reply.body or []

    def get(self, action: str) -> tuple[int, Any]:
        """Status code and body."""
        reply = self.vmm.handle("GET", f"/api/v1/{action}", b"")
        return reply.status, reply.body

    def state(self) -> str:
        """As `vm.info` has it."""
        return str(self.get("vm.info")[1]["state"])

    def config(self, **changes: Any) -> dict[str, Any]:
        """A whole `vm.create`."""
        return {
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 64 * 1024 * 1024},
            "payload": {"kernel": str(self.kernel), "cmdline": "blkw=2 blkr=1 loop=4 hz=10"},
            "disks": [{"path": str(self.disk), "id": "disk", "image_type": "Raw"}],
            "serial": {"mode": "Tty"},
            "console": {"mode": "Off"},
            **changes,
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A VMM without a VM."""
    return Bench(tmp_path)


def test_a_life(bench: Bench) -> None:
    """Created, running, paused, running, off; each with its events."""
    assert bench.put("vm.create", bench.config()) == (204, [])
    assert bench.state() == "Created"
    assert bench.put("vm.boot") == (204, [])
    assert bench.state() == "Running"
    assert bench.put("vm.pause") == (204, [])
    assert bench.state() == "Paused"
    assert bench.put("vm.resume") == (204, [])
    assert bench.put("vm.power-button") == (204, [])
    assert bench.console == ["READY"]
    bench.vmm.advance()
    assert bench.vmm.exit_requested
    assert bench.console == ["READY", "BYE"]
    assert bench.events == [
        "vm booting", "vm booted", "vm pausing", "vm paused", "vm resuming", "vm resumed",
        "vm shutdown", "vm deleted", "vmm shutdown",
    ]  # fmt: skip


def test_the_guest_works_as_it_is_told(bench: Bench) -> None:
    """A round each 100 ms of its own time; a reset begins everything again."""
    bench.put("vm.create", bench.config())
    bench.put("vm.boot")
    for rounds in (1, 2):
        assert bench.get("vm.counters")[1]["disk"]["write_bytes"] == rounds * 2048
        assert bench.get("vm.counters")[1]["disk"]["read_bytes"] == rounds * 1024
        assert bench.vmm.advance() == pytest.approx(0.1)
        bench.now_ns += 100 * MS
    bench.put("vm.pause")
    bench.now_ns += 10_000 * MS
    assert bench.get("vm.counters")[1]["disk"]["write_bytes"] == 3 * 2048
    bench.put("vm.reboot")
    assert bench.get("vm.counters")[1]["disk"]["write_bytes"] == 2048
    bench.now_ns += 10_000 * MS
    assert bench.vmm.advance() is None
    assert bench.get("vm.counters")[1]["disk"]["write_bytes"] == 4 * 2048
    assert bench.console == ["READY", "READY", "DONE 4"]


def test_refusals(bench: Bench) -> None:
    """Status code and chain of each, with the cause last."""
    api = "Error from API"
    assert bench.get("vm.info") == (404, [api, "The VM info is not available", "VM is not created"])
    assert bench.put("vm.boot") == (404, [api, "The VM could not boot", "VM config is missing"])
    assert bench.put("vm.pause") == (500, [api, "The VM could not be paused", "VM is not running"])
    bench.put("vm.create", bench.config())
    assert bench.put("vm.create", bench.config()) == (
        500, [api, "The VM could not be created", "VM is already created"],
    )  # fmt: skip
    assert bench.get("vm.counters") == (
        500, [api, "The VM info is not available", "VM is not running"],
    )  # fmt: skip
    bench.put("vm.boot")
    assert bench.put("vm.resume")[1][-1] == (
        "Invalid transition: InvalidStateTransition(Running, Running)"
    )
    status, chain = bench.put("vm.snapshot", {"destination_url": f"file://{bench.directory}"})
    assert (status, chain[-1]) == (500, "Trying to snapshot while VM is running")


def test_a_kernel_is_missed_at_boot_only(bench: Bench) -> None:
    """As with the vendor's; the VM stays created."""
    bench.put("vm.create", bench.config(payload={"kernel": "/missing", "cmdline": ""}))
    assert bench.put("vm.boot") == (
        500,
        [
            "Error from API", "The VM could not boot", "Cannot open kernel file",
            "No such file or directory (os error 2)",
        ],
    )  # fmt: skip
    assert bench.state() == "Created"


@pytest.mark.parametrize(
    "changes",
    [
        {"serial": {"mode": "tty"}},
        {"serial": {"mode": "Tty", "path": "x"}},
        {"cpus": {"boot_vcpus": 0, "max_vcpus": 1}},
        {"memory": {"size": "64M"}},
        {"hotplug": True},
    ],
)
def test_a_body_must_be_the_projects_own(bench: Bench, changes: dict[str, Any]) -> None:
    """A field or a type that the driver does not know is a mistake of the driver's."""
    status, chain = bench.put("vm.create", bench.config(**changes))
    assert (status, chain[0]) == (400, "Failed to deserialize JSON")
    assert bench.get("vm.info")[0] == 404


def test_requests_that_are_none(bench: Bench) -> None:
    """Unknown path, wrong method, a body too much or too little."""
    assert bench.get("vm.nothing") == (404, ["Not Found"])
    assert bench.vmm.handle("GET", "/vm.info", b"").status == 404
    assert bench.get("vm.boot") == (400, ["Bad Request"])
    assert bench.put("vm.info") == (400, ["Bad Request"])
    assert bench.vmm.handle("PATCH", "/api/v1/vm.info", b"") == (400, None)
    assert bench.put("vm.boot", {}) == (400, ["Bad Request"])
    assert bench.put("vm.restore") == (400, ["Bad Request"])
    assert bench.put("vm.create") == (400, [])


def test_a_snapshot_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    """In a new VMM, with counters from zero; the files are there once and never overwritten."""
    bench.put("vm.create", bench.config())
    bench.put("vm.boot")
    bench.now_ns += 150 * MS
    bench.put("vm.pause")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    url = f"file://{folder}"
    assert bench.put("vm.snapshot", {"destination_url": url}) == (204, [])
    assert bench.put("vm.snapshot", {"destination_url": url})[0] == 500
    other = Bench(tmp_path)
    assert other.put("vm.restore", {"source_url": url}) == (204, [])
    assert other.state() == "Paused"
    assert other.get("vm.counters")[1]["disk"]["write_bytes"] == 0
    other.put("vm.resume")
    other.now_ns += 50 * MS
    assert other.get("vm.counters")[1]["disk"]["write_bytes"] == 2048
    other.now_ns += 1000 * MS
    other.vmm.advance()
    assert other.get("vm.counters")[1]["disk"]["write_bytes"] == 2 * 2048
    assert other.console == ["DONE 4"]
