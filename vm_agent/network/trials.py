"""What the filter needs of a kernel, tried out in a network namespace that goes at once.

Kernels do not say what they can; modules are loaded when somebody asks. So each part is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv6Network

from vm_agent import namespace
from vm_agent.network import checksums
from vm_agent.network.nfnetlink import KernelSocket
from vm_agent.network.nft import LIBRARY, NftError, NftMissingError, NftSession
from vm_agent.network.plan import FabricPlan
from vm_agent.network.rules import render

Trial = tuple[str, str, str]
"""A part, what brings it, and commands that need it."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A part that is not there.

    Attributes:
        part: What it is.
        remedy: What brings it.
        reason: What library or kernel said.
    """

    part: str
    remedy: str
    reason: str


TRIALS: tuple[Trial, ...] = (
    (
        "tables of nftables for IP",
        "load nf_tables (CONFIG_NF_TABLES_INET)",
        "table inet trial { chain c { type filter hook forward priority 0; policy drop; }\n }",
    ),
    (
        "chains on an interface's ingress hook",
        "a kernel with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS",
        "table netdev trial { chain c {\n"
        'type filter hook ingress device "lo" priority 0; policy accept;\n}\n}',
    ),
    (
        "tables of nftables for ARP",
        "a kernel with CONFIG_NF_TABLES_ARP",
        "table arp trial { chain c { type filter hook input priority 0; policy drop; }\n }",
    ),
    (
        "sets of several fields, and maps to marks and verdicts",
        "a kernel of 5.6 or later",
        "table netdev trial {\n"
        "set s { typeof iifname . @th,64,128; }\n"
        "map m { type ifname . ether_addr : mark; }\n"
        "map v { type ifname : verdict; }\n"
        "chain a { iifname . @th,64,128 @s accept\n"
        "meta mark set iifname . ether saddr map @m\n"
        "iifname vmap @v\n}\n}",
    ),
    (
        "sets that packets write to, with counters, limits and timeouts",
        "a kernel of 5.11 or later with CONFIG_NFT_LIMIT",
        "table inet trial {\n"
        "set d { type ifname . mark; flags dynamic; size 16; counter; }\n"
        "set t { type ifname; flags dynamic, timeout; size 16; timeout 1m; }\n"
        "chain b { update @d { iifname . meta mark }\n"
        "update @t { iifname limit rate over 1/second burst 5 packets } drop\n}\n}",
    ),
    (
        "matches of extension headers",
        "a kernel with CONFIG_NFT_EXTHDR",
        "table inet trial { chain e { exthdr hbh exists drop\nrt type != 2 drop\n}\n}",
    ),
)


def absent(trials: Sequence[Trial] = TRIALS) -> list[Absent]:
    """All that is missing, nothing if the filter works here. Blocks for some 100 ms.

    Needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN; changes nothing on the host.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="trials") as pool:
        return pool.submit(_try_out, trials).result()


def _try_out(trials: Sequence[Trial]) -> list[Absent]:
    try:
        namespace.enter_new()
    except OSError as error:
        return [Absent("network namespaces", "run the agent as root", str(error))]
    try:
        session = NftSession()
    except NftMissingError as error:
        return [Absent(LIBRARY, "install libnftables1", str(error))]
    try:
        found = [
            Absent(part, remedy, said)
            for part, remedy, commands in trials
            if (said := _error(session, commands))
        ]
        if said := _error(session, checksums.commands(), then_rules=True):
            remedy = "load xt_CHECKSUM and nft_compat (CONFIG_NETFILTER_XT_TARGET_CHECKSUM)"
            found.append(Absent("checksums before rules", remedy, said))
        plan = FabricPlan(uplink="up0", prefix=IPv6Network("100::/64"))
        if not found and (said := _error(session, render(plan))):
            found.append(Absent("the rules themselves", "report it with this reason", said))
        return found
    finally:
        session.close()


def _error(session: NftSession, commands: str, *, then_rules: bool = False) -> str:
    """What is said against commands, or nothing."""
    try:
        session.run(commands)
        if then_rules:
            kernel = KernelSocket()
            try:
                kernel.transact(checksums.rules())
            finally:
                kernel.close()
    except NftError as error:
        return error.reason
    return ""
