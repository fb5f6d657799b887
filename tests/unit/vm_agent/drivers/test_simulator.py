"""The stand-in answers like Firecracker, and its numbers add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm_agent.simulator.cpython import MAX_DEPTH, JsonError, parse, render
from vm_agent.simulator.disk import Disk
from vm_agent.simulator.load import Load
from vm_agent.simulator.machine import Machine

MS = 1_000_000
UPTIME = st.integers(0, 10**9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3) | st.lists(inner),
)


class Bench:
    """A machine with a clock that stands still."""

    def __init__(self, directory: Path) -> None:
        self.now_ns = 0
        self.console: list[str] = []
        self.metrics = directory / "metrics"
        self.kernel = directory / "kernel"
        self.kernel.touch()
        self.machine = Machine(
            "vm-1",
            now_ns=lambda: self.now_ns,
            wall_ms=lambda: 1,
            print_line=self.console.append,
            disk=Disk(),
        )

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status code and error message."""
        reply = self.machine.handle(method, path, json.dumps(body or {}).encode())
        fault = reply.body.get("fault_message", "") if isinstance(reply.body, dict) else ""
        return reply.status, str(fault)

    def start(self) -> None:
        """Configure everything and boot."""
        for path, body in (
            ("/metrics", {"metrics_path": str(self.metrics)}),
            ("/machine-config", {"vcpu_count": 2, "mem_size_mib": 128}),
            ("/boot-source", {"kernel_image_path": str(self.kernel)}),
            ("/drives/disk", {"drive_id": "disk", "path_on_host": str(self.kernel)}),
            ("/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0"}),
            ("/actions", {"action_type": "InstanceStart"}),
        ):
            assert self.ask("PUT", path, body) == (204, "")

    def act(self, action: str) -> tuple[int, str]:
        """PUT an action."""
        return self.ask("PUT", "/actions", {"action_type": action})

    def exit_code(self) -> int | None:
        """What the machine has ended with."""
        return self.machine.exit_code

    def lines(self) -> list[dict[str, Any]]:
        """What was flushed."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def reported(self) -> tuple[int, ...]:
        """The sums over all lines, in the order of `Usage`."""
        block, simulated = "block_disk", "simulated"
        places = (
            (simulated, "cpu_ns"), (block, "read_bytes"), (block, "write_bytes"),
            (simulated, "net_rx_bytes"), (simulated, "net_tx_bytes"),
        )  # fmt: skip
        return tuple(sum(line[group][name] for line in self.lines()) for group, name in places)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A new machine."""
    return Bench(tmp_path)


@given(st.text(max_size=20), st.integers(1, 32), UPTIME, UPTIME)
def test_a_load_never_goes_back_nor_over_its_cpus(
    identity: str, vcpus: int, one: int, other: int
) -> None:
    """Between any two moments, each counter grows, and CPU by no more than the vCPUs can."""
    load = Load(identity, vcpus=vcpus, disk=True, nic=True)
    first, last = sorted((one, other))
    used = [later - earlier for later, earlier in zip(load.at(last), load.at(first), strict=True)]
    assert min(used) >= 0
    assert used[0] <= (last - first) * MS * vcpus
    assert Load(identity, vcpus=vcpus, disk=True, nic=True).at(last) == load.at(last)


def test_without_devices_there_is_no_traffic() -> None:
    """No disk, no bytes; no interface, no frames."""
    used = Load("vm", vcpus=1, disk=False, nic=False).at(100_000)
    assert used[0] > 0
    assert used[1:] == (0, 0, 0, 0)


def test_flushes_hold_what_happened_since_the_one_before(bench: Bench) -> None:
    """The sum of all lines is the load at the machine's uptime; a pause adds nothing."""
    bench.start()
    for step_ms in (100, 0, 1, 12_345):
        bench.now_ns += step_ms * MS
        assert bench.act("FlushMetrics") == (204, "")
    assert bench.ask("PATCH", "/vm", {"state": "Paused"}) == (204, "")
    bench.now_ns += 1_000_000 * MS
    bench.act("FlushMetrics")
    assert bench.ask("PATCH", "/vm", {"state": "Resumed"}) == (204, "")
    bench.now_ns += 10 * MS
    bench.act("FlushMetrics")
    assert len(bench.lines()) == 6
    assert bench.reported() == Load("vm-1", vcpus=2, disk=True, nic=True).at(100 + 1 + 12_345 + 10)


def test_ctrl_alt_del_is_a_reset_by_the_guest(bench: Bench) -> None:
    """A last line with the reset, BYE on the console, and the wish to exit."""
    bench.start()
    bench.act("SendCtrlAltDel")
    assert bench.exit_code() == 0
    assert bench.console == ["READY", "BYE"]
    assert bench.lines()[-1]["i8042"]["reset_count"] == 1


@pytest.mark.parametrize("resets", [0, 1])
def test_a_paused_guest_ends_when_it_goes_on(bench: Bench, resets: int) -> None:
    """A key that was pressed meanwhile is not lost; a triple fault needs a vCPU, too."""
    bench.start()
    bench.ask("PATCH", "/vm", {"state": "Paused"})
    if resets:
        bench.act("SendCtrlAltDel")
    else:
        bench.machine.end_guest(resets=0)
    assert bench.exit_code() is None
    bench.ask("PATCH", "/vm", {"state": "Resumed"})
    assert bench.exit_code() == 0
    assert [line["i8042"]["reset_count"] for line in bench.lines()] == [resets]
    assert bench.console == ["READY", "BYE"][: 1 + resets]


def test_refusals_have_the_vendors_words(bench: Bench) -> None:
    """As Firecracker 1.12.1 answered to the same requests."""
    before = "The requested operation is not supported before starting the microVM."
    after = "The requested operation is not supported after starting the microVM."
    assert bench.ask("PATCH", "/vm", {"state": "Paused"}) == (400, before)
    assert bench.act("SendCtrlAltDel") == (400, before)
    assert bench.act("FlushMetrics") == (400, before)
    assert bench.act("InstanceStart") == (
        400,
        "Start microvm error: Cannot start microvm without kernel configuration.",
    )
    status, words = bench.ask("PUT", "/machine-config", {"vcpu_count": 1})
    assert status == 400
    assert "missing field `mem_size_mib`" in words
    assert bench.ask("PUT", "/foo")[0] == 400
    bench.start()
    assert bench.act("InstanceStart") == (400, after)
    assert bench.ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1}) == (400, after)


@given(
    st.sampled_from(["GET", "PUT", "PATCH", "", "PUT\0"]),
    st.sampled_from(
        [
            *("/", "/actions", "/vm", "/metrics", "/drives/", "/drives/a/b", "//", "/boot-source"),
            *("/balloon", "/mmds", "/mmds/config", "/vm/config", "/drives/disk"),
            "/network-interfaces/eth0",
        ]
    ),
    st.one_of(
        st.binary(max_size=60),
        JSON.map(lambda value: json.dumps(value).encode()),
    ),
)
def test_no_request_breaks_the_machine(method: str, path: str, body: bytes) -> None:
    """Everything is answered, with a status that Firecracker has."""
    machine = Machine(
        "vm", now_ns=lambda: 0, wall_ms=lambda: 0, print_line=lambda _: None, disk=Disk()
    )
    assert machine.handle(method, path, body).status in {200, 204, 400}


@given(JSON)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    """With blanks around and between; and what is written can be read."""
    assert parse(json.dumps(value, indent=1).encode() + b"\r\n") == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse(render(value).encode()) == json.loads(render(value)) == value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


@given(st.binary(max_size=12) | st.text('[]{}:,"1truefalsn.- \\', max_size=12).map(str.encode))
def test_what_is_no_json_is_refused(text: bytes) -> None:
    """Exactly what the standard library refuses, and numbers that are none."""
    try:
        expected = json.loads(text.decode(), parse_float=_finite, parse_constant=_finite)
    except ValueError:
        with pytest.raises(JsonError):
            parse(text)
    else:
        assert parse(text) == expected


def test_json_that_is_nested_too_deep_is_refused() -> None:
    """It ends no process."""
    with pytest.raises(JsonError):
        parse(b"[" * 50_000)
    deepest = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert render(parse(deepest)).encode() == deepest
    with pytest.raises(JsonError, match="recursion"):
        parse(b"[" + deepest + b"]")


@pytest.mark.parametrize("text", [b"NaN", b"[-Infinity]", b"1e999"])
def test_numbers_that_are_none_are_no_json(text: bytes) -> None:
    """The standard library would take them."""
    with pytest.raises(JsonError):
        parse(text)
