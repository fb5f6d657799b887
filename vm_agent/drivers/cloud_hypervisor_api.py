"""Cloud Hypervisor's API, as much of it as the driver speaks: names and shapes of v53.

Each class has the name of a schema in the vendor's OpenAPI file, and its fields the vendor's
names. What is sent is strict, so that a stand-in can check it; what is received may say more.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

API_ROOT = "/api/v1/"

DISK_ID = "disk"
NIC_ID = "nic"

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Sent(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Part of a request."""


class ConsoleMode(StrEnum):
    """What a serial port or console is connected to."""

    OFF = "Off"
    TTY = "Tty"


class ImageType(StrEnum):
    """How a disk's file is to be read.

    Never left to the VMM to guess: a guest could write a header of another format there.
    """

    RAW = "Raw"


class CpusConfig(Sent, frozen=True, kw_only=True):
    """Virtual CPUs."""

    boot_vcpus: _Positive
    max_vcpus: _Positive


class MemoryConfig(Sent, frozen=True, kw_only=True):
    """Guest memory; `size` in bytes."""

    size: _Positive


class PayloadConfig(Sent, frozen=True, kw_only=True):
    """What boots: paths, and the kernel command line."""

    kernel: str
    cmdline: str
    initramfs: str | None = None


class TokenBucket(Sent, frozen=True, kw_only=True):
    """A limit: `size` tokens at once, and as many again in each `refill_time` ms."""

    size: _Positive
    refill_time: _Positive


class RateLimiterConfig(Sent, frozen=True, kw_only=True):
    """Limits of bytes and of requests."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class DiskConfig(Sent, frozen=True, kw_only=True):
    """A disk."""

    path: str
    id: str
    image_type: ImageType
    rate_limiter_config: RateLimiterConfig | None = None


class NetConfig(Sent, frozen=True, kw_only=True):
    """A network interface on an existing tap."""

    tap: str
    mac: str
    id: str


class SerialConfig(Sent, frozen=True, kw_only=True):
    """The first serial port."""

    mode: ConsoleMode


class ConsoleConfig(Sent, frozen=True, kw_only=True):
    """The virtio console."""

    mode: ConsoleMode


class LandlockConfig(Sent, frozen=True, kw_only=True):
    """A path that the VMM may reach; `access` is `r`, `w` or `rw`."""

    path: str
    access: Annotated[str, msgspec.Meta(pattern="^rw?$|^w$")]


class VmConfig(Sent, frozen=True, kw_only=True):
    """Body of `vm.create`."""

    cpus: CpusConfig
    memory: MemoryConfig
    payload: PayloadConfig
    serial: SerialConfig
    console: ConsoleConfig
    disks: list[DiskConfig] | None = None
    net: list[NetConfig] | None = None
    pvpanic: bool = False
    landlock_enable: bool = False
    landlock_rules: list[LandlockConfig] | None = None


class VmSnapshotConfig(Sent, frozen=True, kw_only=True):
    """Body of `vm.snapshot`."""

    destination_url: str


class RestoreConfig(Sent, frozen=True, kw_only=True):
    """Body of `vm.restore`. The guest stays paused unless `resume` is set."""

    source_url: str
    resume: bool = False


class VmState(StrEnum):
    """What `vm.info` says of the guest; `Created` also of one that has been shut down."""

    CREATED = "Created"
    RUNNING = "Running"
    SHUTDOWN = "Shutdown"
    PAUSED = "Paused"


class VmInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `vm.info`. A debugger's states are in none of the vendor's schemas."""

    state: str


class VmmPingResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `vmm.ping`."""

    version: str
    pid: int = 0


class BlockCounters(msgspec.Struct, frozen=True, kw_only=True):
    """A disk's counters, in bytes; 0 at each start of the guest, a reset included."""

    read_bytes: _Count = 0
    write_bytes: _Count = 0


class VmCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `vm.counters`: by device id. The tap knows the interface's better."""

    disk: BlockCounters = msgspec.field(default_factory=BlockCounters)


encode = msgspec.json.encode
decode_info = msgspec.json.Decoder(VmInfo).decode
decode_counters = msgspec.json.Decoder(VmCounters).decode
_decode_messages = msgspec.json.Decoder(list[str]).decode


def file_url(folder: str) -> str:
    """How the API names a folder. It takes the path as it is, nothing is escaped."""
    return f"file://{folder}"


def reason_of(body: bytes) -> str:
    """The vendor's error body as one line: an array of messages, the cause last."""
    try:
        messages = _decode_messages(body)
    except msgspec.MsgspecError:
        # A request that never got as far as the API is answered by its HTTP server.
        return repr(body[:120]) if body else "no reason given"
    return ": ".join(" ".join(message.split()) for message in messages) or "no reason given"
