"""The pretended machine: Firecracker's states, requests, refusals and metrics lines."""

from __future__ import annotations

import os

from vm_agent.simulator.cpython import JsonError, parse, render
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

    def __init__(self, status: int, body: dict[str, Json] | None = None) -> None:
        self.status = status
        self.body = body


class _Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that Firecracker answers with 400 and this message."""


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
        self._kernel = False
        self._drives: set[str] = set()
        self._interfaces: set[str] = set()
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
        except _Refusal as refusal:
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
                self._configure_metrics(_text(_object(body), "metrics_path"))
            case "PUT", ["machine-config"]:
                self._before_start()
                config = _object(body)
                self._vcpus = _number(config, "vcpu_count", 1, 32)
                _number(config, "mem_size_mib", 1, 1 << 20)
            case "PUT", ["boot-source"]:
                self._before_start()
                source = _object(body)
                _readable(_text(source, "kernel_image_path"), "Boot source error")
                self.fault = _fault(source)
                self._kernel = True
            case "PUT", ["drives", name]:
                self._before_start()
                drive = _object(body)
                if _text(drive, "drive_id") != name:
                    raise _Refusal("The id from the path does not match the id from the body!")
                _readable(_text(drive, "path_on_host"), "Drive config error")
                self._drives.add(name)
            case "PUT", ["network-interfaces", name]:
                self._before_start()
                interface = _object(body)
                if _text(interface, "iface_id") != name:
                    raise _Refusal("The id from the path does not match the id from the body!")
                _text(interface, "host_dev_name")
                self._interfaces.add(name)
            case "PUT", ["actions"]:
                self._act(_text(_object(body), "action_type"))
            case "PATCH", ["vm"]:
                self._set_state(_text(_object(body), "state"))
            case _:
                raise _Refusal(f"Invalid request method and/or path: {method} {path.strip('/')}.")
        return Reply(204)

    def _before_start(self) -> None:
        if self._state != "Not started":
            raise _Refusal(_NOT_AFTER)

    def _after_start(self) -> None:
        if self._state == "Not started":
            raise _Refusal(_NOT_BEFORE)

    def _configure_metrics(self, path: str) -> None:
        self._before_start()
        if self._metrics is not None:
            raise _Refusal(
                "Metrics error: Cannot initialize the metrics system due to bad user input: "
                "Reinitialization of metrics not allowed."
            )
        try:
            # As the vendor does, so that a FIFO needs no reader.
            self._metrics = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise _Refusal(f"Metrics error: {error.strerror}") from error

    def _act(self, action: str) -> None:
        match action:
            case "InstanceStart":
                self._before_start()
                if not self._kernel:
                    raise _Refusal(
                        "Start microvm error: Cannot start microvm without kernel configuration."
                    )
                self._load = Load(
                    self._identity,
                    vcpus=self._vcpus,
                    disk=bool(self._drives),
                    nic=bool(self._interfaces),
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
                    raise _Refusal(
                        "Internal VMM error: Metrics error: Failed to write metrics: "
                        f"{error.strerror} (os error {error.errno})"
                    ) from error
            case "SendCtrlAltDel":
                self._after_start()
                self.end_guest(resets=1)
            case _:
                raise _Refusal(
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
                raise _Refusal(
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
            **{f"block_{name}": blocks for name in sorted(self._drives)[:1]},
            "i8042": {"reset_count": resets},
            "simulated": {"cpu_ns": cpu_ns, "net_rx_bytes": received, "net_tx_bytes": sent},
        }
        self.disk.write(self._metrics, f"{render(line)}\n".encode())


def _object(body: bytes) -> dict[str, Json]:
    try:
        value = parse(body)
    except JsonError as error:
        raise _Refusal(
            f"An error occurred when deserializing the json body of a request: {error}."
        ) from error
    if not isinstance(value, dict):
        raise _Refusal(
            "An error occurred when deserializing the json body of a request: "
            "invalid type, expected a map."
        )
    return value


def _text(body: dict[str, Json], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise _Refusal(
            f"An error occurred when deserializing the json body of a request: "
            f"missing field `{name}`."
        )
    return value


def _number(body: dict[str, Json], name: str, least: int, most: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _Refusal(
            f"An error occurred when deserializing the json body of a request: "
            f"missing field `{name}`."
        )
    if not least <= value <= most:
        raise _Refusal(f"The value of `{name}` is not between {least} and {most}.")
    return value


def _readable(path: str, what: str) -> None:
    if not os.access(path, os.R_OK):
        raise _Refusal(f"{what}: cannot open {path}: No such file or directory (os error 2)")


def _fault(source: dict[str, Json]) -> Fault | None:
    try:
        return fault_in(_text(source, "boot_args") if "boot_args" in source else "")
    except ValueError as error:
        raise _Refusal(f"Boot source error: {error}") from error
