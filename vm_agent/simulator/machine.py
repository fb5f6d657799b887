"""The pretended machine: Firecracker's states, requests, refusals and metrics lines."""

from __future__ import annotations

import os

from vm_agent.simulator.bodies import Refusal, map_of, number_in, readable, text_in
from vm_agent.simulator.cpython import render
from vm_agent.simulator.devices import Devices
from vm_agent.simulator.faults import fault_in
from vm_agent.simulator.load import Load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vm_agent.simulator.cpython import Json
    from vm_agent.simulator.disk import Disk
    from vm_agent.simulator.faults import Fault

VERSION = "1.12.1"
"""The API version that is spoken, and the vendor's release it was compared with."""

_NOT_BEFORE = "The requested operation is not supported before starting the microVM."
_NOT_AFTER = "The requested operation is not supported after starting the microVM."
_NS_PER_MS = 1_000_000


class Reply:
    """Status code and JSON body; a 204 has none."""

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: Json = None) -> None:
        self.status = status
        self.body = body


class Machine:
    """One VM. Plain state and a clock that is passed in; the server around it does the I/O.

    Attributes:
        exit_code: Set when the machine has ended: answer, then exit with it.
        fault: What the guest's kernel arguments say will go wrong.
        disk: Where it writes to.

    Args:
        identity: The VM's id.
        now_ns: A monotonic clock.
        wall_ms: Unix time, for the metrics lines.
        print_line: Writes to the guest's console.
        disk: Holds the metrics file.
    """

    def __init__(
        self,
        identity: str,
        *,
        now_ns: Callable[[], int],
        wall_ms: Callable[[], int],
        print_line: Callable[[str], None],
        disk: Disk,
    ) -> None:
        self.exit_code: int | None = None
        self.fault: Fault | None = None
        self.disk = disk
        self._identity = identity
        self._now_ns = now_ns
        self._wall_ms = wall_ms
        self._print = print_line
        self._state = "Not started"
        self._vcpus = 1
        self._memory_mib = 128
        self._kernel = False
        self._devices = Devices()
        self._metrics: int | None = None
        self._load = Load(identity, vcpus=1, disk=False, nic=False)
        self._ran_ns = 0
        self._running_since_ns = 0
        self._flushed = self._load.at(0)
        self._last_resets: int | None = None

    def handle(self, method: str, path: str, body: bytes) -> Reply:
        """Answer one request as Firecracker would."""
        try:
            return self._route(method, path, body)
        except Refusal as refusal:
            return Reply(400, {"fault_message": str(refusal)})

    def _route(self, method: str, path: str, body: bytes) -> Reply:
        match method, path.strip("/").split("/"):
            case "GET", [""]:
                return Reply(
                    200,
                    {
                        "id": self._identity,
                        "state": self._state,
                        "vmm_version": VERSION,
                        "app_name": "Firecracker",
                    },
                )
            case "GET", ["version"]:
                return Reply(200, {"firecracker_version": VERSION})
            case "PUT", ["metrics"]:
                self._configure_metrics(text_in(map_of(body), "metrics_path"))
            case "PUT", ["machine-config"]:
                self._before_start()
                config = map_of(body)
                self._vcpus = number_in(config, "vcpu_count", 1, 32)
                self._memory_mib = number_in(config, "mem_size_mib", 1, 1 << 20)
            case "PUT", ["boot-source"]:
                self._before_start()
                source = map_of(body)
                readable(text_in(source, "kernel_image_path"), "Boot source error")
                self.fault = _fault(source)
                self._kernel = True
            case "PUT", ["drives", name]:
                self._before_start()
                self._devices.put_drive(name, body)
            case "PUT", ["network-interfaces", name]:
                self._before_start()
                self._devices.put_interface(name, body)
            case "PUT", ["balloon"]:
                self._before_start()
                self._devices.put_balloon(body, self._memory_mib)
            case "PUT", ["mmds", "config"]:
                self._before_start()
                self._devices.put_service(body)
            case "PUT", ["mmds"]:
                self._devices.put_metadata(body)
            case "GET", ["balloon"]:
                return Reply(200, self._devices.balloon())
            case "GET", ["mmds"]:
                return Reply(200, self._devices.metadata())
            case "GET", ["vm", "config"]:
                return Reply(200, self._devices.config())
            case "PUT", ["actions"]:
                self._act(text_in(map_of(body), "action_type"))
            case "PATCH", ["vm"]:
                self._set_state(text_in(map_of(body), "state"))
            case _:
                raise Refusal(f"Invalid request method and/or path: {method} {path.strip('/')}.")
        return Reply(204)

    def _before_start(self) -> None:
        if self._state != "Not started":
            raise Refusal(_NOT_AFTER)

    def _after_start(self) -> None:
        if self._state == "Not started":
            raise Refusal(_NOT_BEFORE)

    def _configure_metrics(self, path: str) -> None:
        self._before_start()
        if self._metrics is not None:
            raise Refusal(
                "Metrics error: Cannot initialize the metrics system due to bad user input: "
                "Reinitialization of metrics not allowed."
            )
        try:
            # As the vendor does, so that a FIFO needs no reader.
            self._metrics = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise Refusal(f"Metrics error: {error.strerror}") from error

    def _act(self, action: str) -> None:
        match action:
            case "InstanceStart":
                self._before_start()
                if not self._kernel:
                    raise Refusal(
                        "Start microvm error: Cannot start microvm without kernel configuration."
                    )
                self._load = Load(
                    self._identity,
                    vcpus=self._vcpus,
                    disk=bool(self._devices.drives),
                    nic=bool(self._devices.interfaces),
                    disk_most=self._devices.disk_bytes_per_ms(),
                    rx_most=self._devices.net_bytes_per_ms("rx_rate_limiter"),
                    tx_most=self._devices.net_bytes_per_ms("tx_rate_limiter"),
                )
                self._state = "Running"
                self._running_since_ns = self._now_ns()
                if self.fault is not None:
                    self.fault.begin(self._running_since_ns)
                self._print("READY")
            case "FlushMetrics":
                self._after_start()
                try:
                    self._flush()
                except OSError as error:
                    raise Refusal(
                        "Internal VMM error: Metrics error: Failed to write metrics: "
                        f"{error.strerror} (os error {error.errno})"
                    ) from error
            case "SendCtrlAltDel":
                self._after_start()
                self.end_guest(resets=1)
            case _:
                raise Refusal(
                    "An error occurred when deserializing the json body of a request: "
                    f"unknown variant `{action[:40]}`, expected one of `FlushMetrics`, "
                    "`InstanceStart`, `SendCtrlAltDel`."
                )

    def _set_state(self, state: str) -> None:
        self._after_start()
        match state:
            case "Paused":
                if self._state == "Running":
                    self._ran_ns = self._uptime_ns()
                    self._state = "Paused"
            case "Resumed":
                if self._state == "Paused":
                    self._running_since_ns = self._now_ns()
                    self._state = "Running"
                    self._obey()
            case _:
                raise Refusal(
                    "An error occurred when deserializing the json body of a request: "
                    f"unknown variant `{state[:40]}`, expected `Paused` or `Resumed`."
                )

    def end_guest(self, *, resets: int) -> None:
        """Let the guest end as soon as it runs.

        Args:
            resets: 1 if it pulls the reset line, as on Ctrl-Alt-Del; 0 for a triple fault.
        """
        if self._last_resets is None:
            self._last_resets = resets
        self._obey()

    def fail(self) -> None:
        """End as Firecracker does when KVM reports an internal error."""
        if self.exit_code is None:
            self._end(1, resets=0)

    def _obey(self) -> None:
        if self._last_resets is not None and self._state == "Running" and self.exit_code is None:
            if self._last_resets:
                self._print("BYE")
            self._end(0, resets=self._last_resets)

    def _end(self, exit_code: int, *, resets: int) -> None:
        self.exit_code = exit_code
        try:
            self._flush(resets=resets)
        except OSError:
            return  # whoever ends has nobody left to tell

    def _uptime_ns(self) -> int:
        if self._state != "Running":
            return self._ran_ns
        return self._ran_ns + self._now_ns() - self._running_since_ns

    def _flush(self, *, resets: int = 0) -> None:
        """Append a line with what happened since the last one.

        What cannot be written is lost, as it is with Firecracker: it starts to count anew first.
        """
        if self._metrics is None:
            return
        usage = self._load.at(self._uptime_ns() // _NS_PER_MS)
        cpu_ns, read, written, received, sent = map(int.__sub__, usage, self._flushed)
        self._flushed = usage
        blocks: Json = {"read_bytes": read, "write_bytes": written}
        line: Json = {
            "utc_timestamp_ms": self._wall_ms(),
            "block": blocks,
            **{f"block_{name}": blocks for name in sorted(self._devices.drives)[:1]},
            "i8042": {"reset_count": resets},
            "simulated": {"cpu_ns": cpu_ns, "net_rx_bytes": received, "net_tx_bytes": sent},
        }
        self.disk.write(self._metrics, f"{render(line)}\n".encode())


def _fault(source: dict[str, Json]) -> Fault | None:
    try:
        return fault_in(text_in(source, "boot_args") if "boot_args" in source else "")
    except ValueError as error:
        raise Refusal(f"Boot source error: {error}") from error
