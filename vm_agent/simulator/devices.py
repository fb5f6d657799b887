"""The devices of a pretended machine, as its API was told to make them."""

from __future__ import annotations

from vm_agent.simulator.bodies import (
    Refusal,
    as_map,
    flag_in,
    malformed,
    map_of,
    number_in,
    readable,
    text_in,
    value_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vm_agent.simulator.cpython import Json

OP_BYTES = 4096
"""What each read or write of a pretended guest moves."""

_ADDRESS = "169.254.169.254"
_MOST = 2**64 - 1


class Devices:
    """Drives, interfaces, balloon and metadata service of one machine.

    Attributes:
        drives: What was asked for, by name.
        interfaces: The same.
    """

    def __init__(self) -> None:
        self.drives: dict[str, dict[str, Json]] = {}
        self.interfaces: dict[str, dict[str, Json]] = {}
        self._balloon: dict[str, Json] | None = None
        self._service: dict[str, Json] | None = None
        self._metadata: Json = {}

    def put_drive(self, name: str, body: bytes) -> None:
        """Make or change a drive."""
        drive = map_of(body)
        if text_in(drive, "drive_id") != name:
            raise Refusal("The id from the path does not match the id from the body!")
        readable(text_in(drive, "path_on_host"), "Drive config error")
        self.drives[name] = {**drive, "rate_limiter": _limiter(drive, "rate_limiter")}

    def put_interface(self, name: str, body: bytes) -> None:
        """Make or change a network interface."""
        interface = map_of(body)
        if text_in(interface, "iface_id") != name:
            raise Refusal("The id from the path does not match the id from the body!")
        text_in(interface, "host_dev_name")
        limiters = {n: _limiter(interface, n) for n in ("rx_rate_limiter", "tx_rate_limiter")}
        self.interfaces[name] = interface | limiters

    def put_balloon(self, body: bytes, memory_mib: int) -> None:
        """Make or change the balloon."""
        wanted = map_of(body, ("amount_mib", "deflate_on_oom", "stats_polling_interval_s"))
        amount = number_in(wanted, "amount_mib", 0, 2**32 - 1)
        deflate = flag_in(wanted, "deflate_on_oom")
        every_s = number_in({"stats_polling_interval_s": 0, **wanted},
                            "stats_polling_interval_s", 0, 2**16 - 1)  # fmt: skip
        if amount > memory_mib:
            raise Refusal("Balloon config error: Amount of pages requested is too large.")
        self._balloon = {
            "amount_mib": amount,
            "deflate_on_oom": deflate,
            "stats_polling_interval_s": every_s,
        }

    def balloon(self) -> dict[str, Json]:
        """What `GET /balloon` answers."""
        if self._balloon is None:
            raise Refusal("Balloon config error: No balloon device found.")
        return self._balloon

    def put_service(self, body: bytes) -> None:
        """Say through which interfaces the guest can read metadata."""
        wanted = map_of(body, ("version", "network_interfaces", "ipv4_address"))
        version = wanted.get("version", "V1")
        if not isinstance(version, str) or version not in {"V1", "V2"}:
            raise malformed("unknown variant of `version`, expected `V1` or `V2`")
        interfaces = wanted.get("network_interfaces")
        if not isinstance(interfaces, list):
            raise malformed("missing field `network_interfaces`")
        # The vendor's own spelling.
        if not interfaces:
            raise Refusal(
                "MMMDS config error: The list of network interface IDs that allow forwarding MMDS "
                "requests is empty."
            )
        if not all(isinstance(name, str) and name in self.interfaces for name in interfaces):
            raise Refusal(
                "MMMDS config error: The list of network interface IDs provided contains at least "
                "one ID that does not correspond to any existing network interface."
            )
        address = text_in({"ipv4_address": _ADDRESS, **wanted}, "ipv4_address")
        if not address.startswith("169.254."):
            raise Refusal("MMMDS config error: The MMDS IPv4 address is not link local.")
        self._service = {
            "version": version,
            "network_interfaces": interfaces,
            "ipv4_address": address,
        }

    def put_metadata(self, body: bytes) -> None:
        """Replace what the guest can read."""
        self._metadata = value_of(body)

    def metadata(self) -> Json:
        """What `GET /mmds` answers."""
        return self._metadata

    def config(self) -> dict[str, Json]:
        """The devices' part of what `GET /vm/config` answers."""
        return {
            "balloon": self._balloon,
            "drives": list(self.drives.values()),
            "network-interfaces": list(self.interfaces.values()),
            "mmds-config": self._service,
        }

    def disk_bytes_per_ms(self) -> int | None:
        """The most that the drives move, rounded down; None without a limit."""
        return _least(
            limit
            for drive in self.drives.values()
            for limit in (
                _per_ms(drive["rate_limiter"], "bandwidth"),
                _per_ms(drive["rate_limiter"], "ops", OP_BYTES),
            )
        )

    def net_bytes_per_ms(self, limiter: str) -> int | None:
        """The most that the interfaces move in the direction of a limiter, rounded down."""
        return _least(_per_ms(each[limiter], "bandwidth") for each in self.interfaces.values())


def _limiter(device: dict[str, Json], name: str) -> Json:
    """A rate limiter as Firecracker tells of it; None if there is none."""
    if device.get(name) is None:
        return None
    kinds = ("bandwidth", "ops")
    wanted = as_map(device[name], kinds)
    return {kind: _bucket(wanted.get(kind)) for kind in kinds}


def _bucket(wanted: Json) -> Json:
    if wanted is None:
        return None
    bucket = as_map(wanted, ("size", "one_time_burst", "refill_time"))
    burst = bucket.get("one_time_burst")
    if burst is not None:
        number_in(bucket, "one_time_burst", 0, _MOST)
    return {
        "size": number_in(bucket, "size", 0, _MOST),
        "one_time_burst": burst,
        "refill_time": number_in(bucket, "refill_time", 0, _MOST),
    }


def _per_ms(limiter: Json, kind: str, times: int = 1) -> int | None:
    bucket = limiter.get(kind) if isinstance(limiter, dict) else None
    if not isinstance(bucket, dict):
        return None
    size, refill_ms = bucket["size"], bucket["refill_time"]
    if not isinstance(size, int) or not isinstance(refill_ms, int) or not size or not refill_ms:
        return None  # a bucket of no size, or that is always full, is none
    return size * times // refill_ms


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
