"""The pretended VMM: Cloud Hypervisor's states, requests, refusals and events."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.support.cloud_hypervisor import VERSION
from tests.support.cloud_hypervisor.guest import Guest
from tests.support.cloud_hypervisor.served import Reply, Served
from tests.support.cloud_hypervisor.snapshot import load_snapshot, save_snapshot
from vm_agent.drivers.cloud_hypervisor_api import (
    API_ROOT,
    RestoreConfig,
    VmConfig,
    VmSnapshotConfig,
)

T = TypeVar("T")

_GETS = ("vmm.ping", "vm.info", "vm.counters")


class RefusalError(Exception):
    """A request that the VMM refuses: the chain of errors, outermost first.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, *messages: str, status: int = 500) -> None:
        super().__init__(*messages)
        self.status = status


class PretendedVmm(Served):
    """One VMM with at most one VM.

    Args:
        now_ns: A monotonic clock.
        emit: Reports an event by source and name.
        print_line: Writes to the guest's serial port.
    """

    server_name = "Cloud Hypervisor API"

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        emit: Callable[[str, str], None],
        print_line: Callable[[str], None],
    ) -> None:
        self._now_ns = now_ns
        self._emit = emit
        self._print = print_line
        self._config: dict[str, Any] | None = None
        self._guest: Guest | None = None
        self._paused = False
        self._puts: dict[str, tuple[str, Callable[[], None]]] = {
            "vm.boot": ("The VM could not boot", self._boot),
            "vm.pause": ("The VM could not be paused", self._pause),
            "vm.resume": ("The VM could not resume", self._resume),
            "vm.shutdown": ("The VM could not shutdown", self._shut_down),
            "vm.reboot": ("The VM could not reboot", self._reboot),
            "vm.delete": ("The VM could not be deleted", self._delete),
            "vm.power-button": ("Error triggering power button", self._press),
        }
        self._puts_with_body: dict[str, tuple[str, Callable[[bytes], None]]] = {
            "vm.create": ("The VM could not be created", self._create),
            "vm.snapshot": ("The VM could not be snapshotted", self._snapshot),
            "vm.restore": ("The VM could not be restored", self._restore),
        }

    def handle(self, method: str, path: str, body: bytes) -> Reply:
        """Answer one request as v53 would."""
        try:
            return self._route(method, path, body)
        except RefusalError as refusal:
            return Reply(refusal.status, list(refusal.args))

    def refuse(self, message: str) -> Reply:
        """Answer what is no request, as the vendor's HTTP server does."""
        text = f"{message}\nAll previous unanswered requests will be dropped."
        return Reply(400, {"error": text})

    def advance(self) -> float | None:
        """Let the guest work, and go off if it has been asked to: the VMM then ends too."""
        if self._guest is None:
            return None
        due_s = self._guest.advance(self._now_ns())
        if self._guest.obeys(self._now_ns()):
            self.end()
            return 0.0
        return due_s

    def end(self) -> None:
        """End in order, as on a guest's shutdown or a SIGTERM."""
        self._delete()
        self._emit("vmm", "shutdown")
        self.exit_requested = True

    def _route(self, method: str, path: str, body: bytes) -> Reply:
        action = path.removeprefix(API_ROOT)
        gets, puts, puts_with_body = _GETS, self._puts, self._puts_with_body
        known = action in gets or action in puts or action in puts_with_body
        if action == path or not (known or action == "vmm.shutdown"):
            raise RefusalError("Not Found", status=404)
        if method not in {"GET", "PUT"}:
            return Reply(400)
        if (method == "GET") != (action in gets):
            raise RefusalError("Bad Request", status=400)
        if method == "GET":
            return Reply(200, self._get(action))
        if action == "vmm.shutdown":
            self.end()
            return Reply(200)
        if bool(body) != (action in puts_with_body):
            # This one handler says nothing of it.
            if action == "vm.create":
                return Reply(400)
            raise RefusalError("Bad Request", status=400)
        try:
            if body:
                puts_with_body[action][1](body)
            else:
                puts[action][1]()
        except RefusalError as refusal:
            if refusal.status == 400:
                raise
            what = puts_with_body[action][0] if body else puts[action][0]
            raise RefusalError(
                "Error from API", what, *refusal.args, status=refusal.status
            ) from refusal
        return Reply(204)

    def _get(self, action: str) -> dict[str, Any]:
        if action == "vmm.ping":
            return {
                "build_version": f"v{VERSION}",
                "version": VERSION,
                "pid": os.getpid(),
                "features": ["kvm"],
            }
        chain = ("Error from API", "The VM info is not available")
        if action == "vm.info":
            if self._config is None:
                raise RefusalError(*chain, "VM is not created", status=404)
            state = "Created" if self._guest is None else "Paused" if self._paused else "Running"
            size = self._config["memory"]["size"]
            return {"config": self._config, "state": state, "memory_actual_size": size}
        if self._guest is None:
            raise RefusalError(*chain, "VM is not running")
        self._guest.advance(self._now_ns())
        counters = {net["id"]: {"rx_bytes": 0, "tx_bytes": 0} for net in self._devices("net")}
        for disk in self._devices("disks"):
            counters[disk["id"]] = {
                "read_bytes": self._guest.read_bytes,
                "write_bytes": self._guest.write_bytes,
                # What the vendor has while there is none.
                "read_latency_min": 2**64 - 1,
            }
        return counters

    def _devices(self, kind: str) -> list[dict[str, Any]]:
        return (self._config or {}).get(kind) or []

    def _limiter(self) -> dict[str, Any] | None:
        return next((disk.get("rate_limiter_config") for disk in self._devices("disks")), None)

    def _create(self, body: bytes) -> None:
        config = _parse(body, VmConfig)
        if self._config is not None:
            raise RefusalError("VM is already created")
        self._config = msgspec.to_builtins(config)
        _check_landlock(self._config)

    def _boot(self) -> None:
        if self._guest is not None:
            raise RefusalError("VM is already created")
        self._emit("vm", "booting")
        if self._config is None:
            raise RefusalError("VM config is missing", status=404)
        self._guest = self._start(self._config)
        self._emit("vm", "booted")

    def _start(self, config: dict[str, Any]) -> Guest:
        self._check_files(config)
        guest = Guest(
            config["payload"]["cmdline"],
            disk=bool(self._devices("disks")),
            limiter=self._limiter(),
            print_line=self._write_serial,
        )
        self._paused = False
        guest.run(self._now_ns())
        return guest

    def _check_files(self, config: dict[str, Any]) -> None:
        _open(config["payload"]["kernel"], "Cannot open kernel file")
        if initramfs := config["payload"].get("initramfs"):
            _open(initramfs, "Cannot open initramfs file")
        for disk in config.get("disks") or ():
            _open(disk["path"], "Error from device manager", "Failed to open disk", write=True)

    def _pause(self) -> None:
        guest = self._require_guest()
        self._emit("vm", "pausing")
        self._transit("Paused", "Cannot pause VM", "Failed to pause migratable component")
        guest.pause(self._now_ns())
        self._paused = True
        self._emit("vm", "paused")

    def _resume(self) -> None:
        guest = self._require_guest()
        self._emit("vm", "resuming")
        self._transit("Running", "Cannot resume VM", "Failed to resume migratable component")
        self._paused = False
        guest.run(self._now_ns())
        self._emit("vm", "resumed")

    def _transit(self, state: str, *chain: str) -> None:
        now = "Paused" if self._paused else "Running"
        if now == state:
            raise RefusalError(
                *chain, f"Invalid transition: InvalidStateTransition({now}, {state})"
            )

    def _shut_down(self) -> None:
        self._require_guest()
        self._guest = None
        self._emit("vm", "shutdown")

    def _reboot(self) -> None:
        self._emit("vm", "rebooting")
        if self._guest is None or self._config is None:
            raise RefusalError("VM is not created", status=404)
        self._guest = None
        self._guest = self._start(self._config)
        self._emit("vm", "rebooted")

    def _delete(self) -> None:
        if self._config is None:
            return
        if self._guest is not None:
            self._shut_down()
        self._config = None
        self._emit("vm", "deleted")

    def _press(self) -> None:
        self._require_guest().press()

    def _snapshot(self, body: bytes) -> None:
        url = _parse(body, VmSnapshotConfig).destination_url
        guest = self._require_guest()
        self._emit("vm", "snapshotting")
        if not self._paused:
            raise RefusalError(
                "Cannot snapshot VM",
                "Failed to snapshot migratable component",
                "Trying to snapshot while VM is running",
            )
        self._emit("vm", "snapshotted")
        chain = ("Cannot send VM snapshot", "Failed to send migratable component snapshot")
        try:
            save_snapshot(_folder(url, *chain), self._config or {}, guest.save())
        except OSError as error:
            raise RefusalError(*chain, _os_error(error)) from error

    def _restore(self, body: bytes) -> None:
        request = _parse(body, RestoreConfig)
        if self._config is not None:
            raise RefusalError("VM is already created")
        chain = ("Cannot restore VM", "Failed to receive migratable component snapshot")
        try:
            config, saved = load_snapshot(_folder(request.source_url, *chain))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RefusalError(*chain, str(error)) from error
        self._check_files(config)
        _check_landlock(config)
        self._emit("vm", "restoring")
        self._config = config
        self._guest = Guest(
            config["payload"]["cmdline"],
            disk=bool(self._devices("disks")),
            limiter=self._limiter(),
            print_line=self._write_serial,
            saved=saved,
        )
        self._paused = True
        self._emit("vm", "restored")
        if request.resume:
            self._resume()

    def _write_serial(self, line: str) -> None:
        if (self._config or {})["serial"]["mode"] == "Tty":
            self._print(line)

    def _require_guest(self) -> Guest:
        if self._guest is None:
            raise RefusalError("VM is not running")
        return self._guest


def _parse(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise RefusalError("Failed to deserialize JSON", str(error), status=400) from error


def _folder(url: str, *chain: str) -> Path:
    folder = Path(url.removeprefix("file://"))
    if not url.startswith("file://"):
        raise RefusalError(*chain, f"Could not extract path from URL: {url}")
    if not folder.is_dir():
        raise RefusalError(*chain, f"Destination is not a directory: {json.dumps(str(folder))}")
    return folder


def _open(path: str, *chain: str, write: bool = False) -> None:
    try:
        os.close(os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))
    except OSError as error:
        raise RefusalError(*chain, _os_error(error)) from error


def _check_landlock(config: dict[str, Any]) -> None:
    for rule in config.get("landlock_rules") or ():
        if not Path(rule["path"]).exists():
            path = json.dumps(rule["path"])
            raise RefusalError(
                "Failed to validate config",
                f"Path {path} provided in landlock-rules does not exist",
            )


def _os_error(error: OSError) -> str:
    return f"{error.strerror} (os error {error.errno})"
