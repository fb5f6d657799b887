"""What a VM's devices are told beside their sizes: rate limits, a balloon, metadata.

Metadata may hold secrets. Its values are shown to whoever may look at the VM, and nowhere else:
no log line, event, error message or printed object holds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from schemas.networking import Networking
from schemas.units import KIB

MAX_METADATA_VALUE_BYTES = KIB
MAX_METADATA_BYTES = 16 * KIB
"""All names and values together, in UTF-8. Twice that, as escaped JSON may be, is still less than
the 51,200 bytes that Firecracker takes in one request."""

MetadataName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$(?!\n)")]
MetadataValue = Annotated[
    str,
    # No control characters but tab and line breaks: JSON makes six bytes of one.
    msgspec.Meta(
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$(?!\n)", max_length=MAX_METADATA_VALUE_BYTES
    ),
]
Metadata = Annotated[dict[MetadataName, MetadataValue], msgspec.Meta(max_length=32)]

BalloonMib = Annotated[int, msgspec.Meta(ge=0, le=1_048_576)]
BytesPerS = Annotated[int, msgspec.Meta(ge=0, le=100_000_000_000)]
OpsPerS = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a guest may move per second; 0 means no limit.

    A guest that has been idle may use what one second allows at once: in `t` seconds it moves at
    most `t + 1` times the limit; twice that if its single requests are larger than one second
    allows.

    Attributes:
        disk_bytes_per_s: Read and written, together.
        disk_ops_per_s: Reads, writes and flushes, together; QEMU does not count flushes.
        net_rx_bytes_per_s: Received by the guest.
        net_tx_bytes_per_s: Sent by the guest. Where the host holds it to that, what is sent faster
            is dropped, and billed as sent.
    """

    disk_bytes_per_s: BytesPerS = 0
    disk_ops_per_s: OpsPerS = 0
    net_rx_bytes_per_s: BytesPerS = 0
    net_tx_bytes_per_s: BytesPerS = 0

    @property
    def of_disk(self) -> bool:
        """Whether the disk has a limit."""
        return self.disk_bytes_per_s > 0 or self.disk_ops_per_s > 0

    @property
    def of_network(self) -> bool:
        """Whether the network interface has a limit."""
        return self.net_rx_bytes_per_s > 0 or self.net_tx_bytes_per_s > 0


class Discreet(msgspec.Struct, frozen=True, kw_only=True):
    """A struct that prints the names in its `metadata`, and no value."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = msgspec.structs.asdict(self)
        if "metadata" in shown:
            shown["metadata"] = sorted(shown["metadata"])
        return list(shown.items())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


def check_devices(
    *,
    memory_mib: int,
    network: bool,
    metadata: Mapping[str, str],
    balloon_mib: int,
    limits: RateLimits,
    networking: Networking,
) -> None:
    """Check what no field can tell by itself.

    Raises:
        ValueError: Something is asked for that cannot be. No value of the metadata is shown.
    """
    if metadata and not network:
        raise ValueError("metadata is read over the network: it needs network")
    if limits.of_network and not network:
        raise ValueError("limits of the network need network")
    if not network and msgspec.structs.asdict(networking) != msgspec.structs.asdict(Networking()):
        raise ValueError("networking is of the network interface: it needs network")
    if balloon_mib >= memory_mib:
        raise ValueError(f"balloon_mib must be less than memory_mib, which is {memory_mib}")
    sizes = [(len(name.encode()), len(value.encode())) for name, value in metadata.items()]
    if any(value > MAX_METADATA_VALUE_BYTES for _, value in sizes):
        raise ValueError(f"a value of metadata is longer than {MAX_METADATA_VALUE_BYTES} bytes")
    if sum(map(sum, sizes)) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata is more than {MAX_METADATA_BYTES} bytes in all")
