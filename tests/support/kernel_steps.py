"""What a process changes in the kernel's network, call by call, by whatever library it does so.

`kernel_steps.c` stands between the process and libc; this gives the calls names: what a message of
netlink changes, which setting of a tap, which namespace. Questions have none.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_IFF_UP, _IFLA_NET_NS_FD = 1, 28
_ROUTE, _NETFILTER = 0, 12
_NF_TABLES = 10
_BATCH = (0x10, 0x11)

# linux/rtnetlink.h: four numbers each, for new, del, get and set.
_THINGS = {
    16: "LINK", 20: "ADDR", 24: "ROUTE", 28: "NEIGH", 32: "RULE", 36: "QDISC", 40: "TCLASS",
    44: "TFILTER", 48: "ACTION", 64: "NEIGHTBL", 80: "NETCONF", 84: "MDB", 88: "NSID", 92: "STATS",
    100: "CHAIN",
}  # fmt: skip
_VERBS = ("NEW", "DEL", "GET", "SET")
# linux/netfilter/nf_tables.h
_NFT = (
    "NEWTABLE", "GETTABLE", "DELTABLE", "NEWCHAIN", "GETCHAIN", "DELCHAIN", "NEWRULE", "GETRULE",
    "DELRULE", "NEWSET", "GETSET", "DELSET", "NEWSETELEM", "GETSETELEM", "DELSETELEM",
)  # fmt: skip
_TUN = {202: "TUNSETIFF", 203: "TUNSETPERSIST", 204: "TUNSETOWNER"}
_IDS = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}\b")


class Kind(IntEnum):
    """Calls, as the C source numbers them."""

    NETLINK = 1
    TUN = 2
    MOUNT = 3
    UNMOUNT = 4
    UNSHARE = 5
    UNLINK = 6


_TELLER = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_long
)


def build(folder: Path) -> Path:
    """The library that a process to be watched has to be started with (`LD_PRELOAD`).

    Raises:
        subprocess.CalledProcessError: There is no compiler that can.
    """
    library = folder / "kernel_steps.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(_SOURCE)]
    subprocess.run(command, check=True)
    return library


def watch(tell: Callable[[str], None]) -> object:
    """Be told of every step of this process, before it and after it. Keep what is returned.

    Raises:
        AttributeError: The process was started without the library.
    """

    def told(after: int, kind: int, number: int, data: int | None, size: int) -> None:
        content = ctypes.string_at(data, size) if data else b""
        name = _name(Kind(kind), number, content)
        if name is not None:
            tell(f"{'after' if after else 'before'} {name}")

    teller = _TELLER(told)
    ctypes.CDLL(None).decisec_watch(teller)
    return teller


def _name(kind: Kind, number: int, content: bytes) -> str | None:
    match kind:
        case Kind.NETLINK if number == _ROUTE:
            return _named("rtnetlink", [_route_change(*message) for message in _messages(content)])
        case Kind.NETLINK if number == _NETFILTER:
            return _nft_change(content)
        case Kind.NETLINK:
            return None
        case Kind.TUN:
            return f"ioctl {_TUN.get(number, number)}"
        case Kind.UNSHARE:
            return "unshare"
        case Kind.MOUNT | Kind.UNMOUNT | Kind.UNLINK:
            return f"{kind.name.lower()} {_IDS.sub('_', content.decode())}"


def _messages(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each."""
    start = 0
    while start + _HEADER.size <= len(content):
        size, kind, *_ = _HEADER.unpack_from(content, start)
        if size < _HEADER.size:
            return
        yield kind, content[start + _HEADER.size : start + size]
        start += (size + 3) & ~3


def _route_change(kind: int, body: bytes) -> str | None:
    """What a message of rtnetlink changes; None if it asks."""
    verb, thing = _VERBS[kind % 4], _THINGS.get(kind & ~3, str(kind & ~3))
    if verb == "GET":
        return None
    words = [verb + thing]
    if thing == "LINK" and verb != "DEL":
        _, _, _, flags, change = _LINK.unpack_from(body)
        if _IFLA_NET_NS_FD in _attributes(body[_LINK.size :]):
            words.append("move")
        if flags & change & _IFF_UP:
            words.append("up")
    return " ".join(words)


def _attributes(body: bytes) -> set[int]:
    found, start = set(), 0
    while start + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, start)
        if size < _ATTRIBUTE.size:
            break
        found.add(kind & 0x3FFF)
        start += (size + 3) & ~3
    return found


def _nft_change(content: bytes) -> str | None:
    """What a transaction of nf_tables changes; None if it asks."""
    kinds = [kind for kind, _ in _messages(content)]
    if not kinds or kinds[0] not in _BATCH:
        return None
    changes = (kind & 0xFF for kind in kinds if kind not in _BATCH and kind >> 8 == _NF_TABLES)
    return _named("nftables", [_NFT[one] if one < len(_NFT) else str(one) for one in changes])


def _named(protocol: str, changes: list[str | None] | list[str]) -> str | None:
    words = list(dict.fromkeys(change for change in changes if change is not None))
    return f"{protocol} {' + '.join(words)}" if words else None
