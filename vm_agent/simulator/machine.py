"""The pretended machine: Firecracker's states, requests, refusals and metrics lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from vm_agent.simulator.load import Load, Usage

VERSION = "1.12.1"
"""The API version that is spoken, and the vendor's release it was compared with."""

_NOT_BEFORE = "The requested operation is not supported before starting the microVM."
_NOT_AFTER = "The requested operation is not supported after starting the microVM."
_NS_PER_MS = 1_000_000


class Reply(NamedTuple):
    """Status code and JSON body; a 204 has none."""

    status: int
    body: dict[str, Any] | None = None


class _Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that Firecracker answers with 400 and this message."""


class Machine:
    """One VM. Plain state and a clock that is passed in; the server around it does the I/O.

    Attributes:
        exit_requested: The guest pulled the reset line: answer, then exit with code 0.

    Args:
        identity: The VM's id.
        now_ns: A monotonic clock.
        wall_ms: Unix time, for the metrics lines.
        print_line: Writes to the guest's console.
    """

    def __init__(
        self,
        identity: str,
        *,
        now_ns: Callable[[], int],
        wall_ms: Callable[[], int],
        print_line: Callable[[str], None],
    ) -> None:
        self.exit_requested = False
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
        self._flushed = Usage()
        self._stop_pending = False
        self._resets = 0

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
                _readable(_text(_object(body), "kernel_image_path"), "Boot source error")
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
                self._print("READY")
            case "FlushMetrics":
                self._after_start()
                self._flush()
            case "SendCtrlAltDel":
                self._after_start()
                self._stop_pending = True
                self._obey()
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

    def _obey(self) -> None:
        """The guest sees Ctrl-Alt-Del as soon as it runs, and pulls the reset line."""
        if self._stop_pending and self._state == "Running" and not self.exit_requested:
            self._print("BYE")
            self._resets = 1
            self.exit_requested = True
            with suppress(_Refusal):
                self._flush()

    def _uptime_ns(self) -> int:
        if self._state != "Running":
            return self._ran_ns
        return self._ran_ns + self._now_ns() - self._running_since_ns

    def _flush(self) -> None:
        """Append a line with what happened since the last one."""
        if self._metrics is None:
            return
        usage = self._load.at(self._uptime_ns() // _NS_PER_MS)
        delta = usage.minus(self._flushed)
        blocks = {"read_bytes": delta.disk_read_bytes, "write_bytes": delta.disk_write_bytes}
        line = {
            "utc_timestamp_ms": self._wall_ms(),
            "block": blocks,
            **{f"block_{name}": blocks for name in sorted(self._drives)[:1]},
            "i8042": {"reset_count": self._resets},
            "simulated": {
                "cpu_ns": delta.cpu_ns,
                "net_rx_bytes": delta.net_rx_bytes,
                "net_tx_bytes": delta.net_tx_bytes,
            },
        }
        # Deltas are forgotten first: a line for which there is no room is lost, as the vendor's.
        self._flushed = usage
        self._resets = 0
        unwritten = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            while unwritten:
                unwritten = unwritten[os.write(self._metrics, unwritten) :]
        except OSError as error:
            raise _Refusal(
                "Internal VMM error: Metrics error: Failed to write metrics: "
                f"{error.strerror} (os error {error.errno})"
            ) from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refusal(
            f"An error occurred when deserializing the json body of a request: {error}."
        ) from error
    if not isinstance(value, dict):
        raise _Refusal(
            "An error occurred when deserializing the json body of a request: "
            "invalid type, expected a map."
        )
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise _Refusal(
            f"An error occurred when deserializing the json body of a request: "
            f"missing field `{name}`."
        )
    return value


def _number(body: dict[str, Any], name: str, least: int, most: int) -> int:
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
