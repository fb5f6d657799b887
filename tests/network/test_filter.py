"""The filter's rules for VMs: added, changed, removed and repaired, each in one transaction."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path

import pytest

from tests.support import fabric as fabrics
from tests.support.fabric import PLAN, Fabric, fabric, vm
from vm_agent.network import shortcut
from vm_agent.network.attachment import Attachment, Port
from vm_agent.network.filter import Filter, _additions
from vm_agent.network.nft import Nft, NftError
from vm_agent.network.reasons import Reason
from vm_agent.network.rules import entries

pytestmark = pytest.mark.skipif(
    fabrics.available() is not None, reason=fabrics.available() or "rules work"
)

OPEN = vm(1, "alice", 7)
CLOSED = vm(
    2,
    "bob",
    8,
    addresses=(IPv6Network("2001:db8:1:2::/64"),),
    ipv4=IPv4Address("192.0.2.2"),
    open_inbound=False,
    ports=(
        Port(protocol="tcp", first=22, last=22),
        Port(protocol="udp", first=5000, last=5010),
    ),
    peers=frozenset({7}),
)


@pytest.fixture
def place() -> Iterator[Fabric]:
    """Two taps."""
    with fabric([OPEN, CLOSED]) as made:
        yield made


@pytest.fixture
async def nft(place: Fabric) -> AsyncIterator[Nft]:
    """A session in the fabric."""
    made = Nft(place.netns)
    yield made
    await made.close()


@pytest.fixture
async def rules(nft: Nft) -> Filter:
    """A filter with its base rules."""
    made = Filter(nft)
    await made.install(PLAN)
    return made


async def test_base_rules_are_installed_once(rules: Filter) -> None:
    """A second time there is nothing to do."""
    assert not await rules.install(PLAN)
    assert await rules.actual() == {}


@pytest.mark.parametrize(
    "tampering",
    [
        "flush chain inet decisec na",
        "insert rule inet decisec forward accept",
        "delete element inet decisec denied6 { fc00::/7 }",
        "add element inet decisec gateway6 { 2001:db8::77 }",
        "flush chain ip6 mangle decisec_fill",
        "delete table arp decisec",
        "add chain inet decisec open2",
    ],
)
async def test_base_rules_that_somebody_changed_are_put_back(
    rules: Filter, nft: Nft, tampering: str
) -> None:
    """And VMs with them; then there is nothing to do again."""
    for one in (OPEN, CLOSED):
        await rules.add(one)
    assert not await rules.install(PLAN, [OPEN, CLOSED])
    await nft.run(tampering)
    assert await Filter(nft).install(PLAN, [OPEN, CLOSED])
    assert not await rules.install(PLAN, [OPEN, CLOSED])
    assert await rules.actual() == {one.tap: entries(one) for one in (OPEN, CLOSED)}


async def test_what_is_added_stands_in_the_kernel_and_goes_without_a_trace(rules: Filter) -> None:
    """Read back, a VM is the very entries that it was added with."""
    for one in (OPEN, CLOSED):
        await rules.add(one)
    assert await rules.actual() == {one.tap: entries(one) for one in (OPEN, CLOSED)}
    for one in (OPEN, CLOSED):
        await rules.remove(one.tap)
        await rules.remove(one.tap)
    assert await rules.actual() == {}


async def test_changes_are_what_another_agent_finds(rules: Filter, nft: Nft) -> None:
    """A filter that knows nothing of what stands changes it all the same."""
    await rules.add(CLOSED)
    for changed in (
        replace(CLOSED, quarantined=True),
        replace(CLOSED, ports=(Port(protocol="tcp", first=80, last=90),)),
        replace(CLOSED, open_inbound=True, ipv4=None, peers=frozenset()),
        CLOSED,
    ):
        await Filter(nft).change(changed)
        assert await rules.actual() == {changed.tap: entries(changed)}


async def test_a_refused_transaction_changes_nothing(rules: Filter, nft: Nft) -> None:
    """A VM of which the kernel refuses one thing has nothing at all in force."""
    await nft.run(f"add set inet decisec flow6_{CLOSED.tap} {{ type mark; }}")
    before = await rules.actual()
    with pytest.raises(NftError, match="nothing changed"):
        await rules.change(CLOSED)
    assert await rules.actual() == before
    await rules.add(OPEN)
    assert (await rules.actual())[OPEN.tap] == entries(OPEN)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(OPEN, mac="06:00:00:00:00:01 : 5 } } flush ruleset"),
        replace(OPEN, tenant=0),
        replace(OPEN, tenant=0xFFFF_0001),
        replace(OPEN, peers=frozenset({0})),
        replace(OPEN, open_inbound=False, ports=(Port(protocol="ip", first=1, last=1),)),
        replace(OPEN, open_inbound=False, ports=(Port(protocol="tcp", first=9, last=8),)),
        replace(OPEN, addresses=(IPv6Network("2001:db8::/63"),)),
    ],
)
def test_what_is_no_attachment_makes_no_rules(wrong: Attachment) -> None:
    """Nothing gets into the language of rules but what is what it should be."""
    with pytest.raises(ValueError, match=r" is n"):
        entries(wrong)


async def test_other_base_rules_take_over_with_all_vms(rules: Filter) -> None:
    """An upgrade leaves what VMs had, and no VM that was not given."""
    await rules.add(OPEN)
    await rules.add(CLOSED)
    assert await rules.install(replace(PLAN, services=()), [OPEN])
    assert await rules.actual() == {OPEN.tap: entries(OPEN)}


async def test_reconcile_repairs_just_what_is_wrong(rules: Filter, nft: Nft) -> None:
    """Elements that are missing or too many, chains, and VMs nobody wants."""
    await rules.add(OPEN)
    await rules.add(CLOSED)
    assert await rules.reconcile([OPEN, CLOSED]) == frozenset()
    await nft.run(f'delete element inet decisec source6 {{ "{OPEN.tap}" . {OPEN.link_local} }}')
    await nft.run(f'add element inet decisec reach {{ 0x63 . "{CLOSED.tap}" }}')
    assert await rules.reconcile([OPEN, CLOSED]) == {OPEN.tap, CLOSED.tap}
    await nft.run(f"delete chain netdev decisec {OPEN.tap}")
    assert await rules.reconcile([OPEN]) == {OPEN.tap, CLOSED.tap}
    assert await rules.actual() == {OPEN.tap: entries(OPEN)}


async def test_the_shortcut_says_what_the_language_says(rules: Filter, nft: Nft) -> None:
    """By netlink or by libnftables, the same stands in the kernel."""
    tables = ("netdev decisec", "inet decisec")
    one = replace(OPEN, ipv4=IPv4Address("192.0.2.1"), peers=frozenset({9}))
    assert shortcut.possible(entries(one))
    await rules.add(one)
    counts = re.compile(r"\tset (?:drops|control) \{\n(?:.*\n)*?\t\}\n")

    async def stands() -> list[str]:
        return [counts.sub("", await nft.read_text(f"list table {table}")) for table in tables]

    short = await stands()
    await rules.remove(one.tap)
    await nft.run("\n".join(_additions(entries(one))))
    assert await stands() == short


async def test_what_others_changed_is_in_nobodys_way(rules: Filter, nft: Nft) -> None:
    """A change that fails for what was tampered with looks again, and does it."""
    await rules.add(OPEN)
    await nft.run(f"delete chain netdev decisec {OPEN.tap}")
    await rules.remove(OPEN.tap)
    assert await rules.actual() == {}


async def test_a_tap_that_went_away_comes_back_with_rules(rules: Filter, place: Fabric) -> None:
    """Rules may outlive the tap, and are put anew on the next one of the name."""
    await rules.add(OPEN)
    place.unplug(OPEN.slot)
    place.plug(OPEN)
    await rules.add(OPEN)
    assert await rules.actual() == {OPEN.tap: entries(OPEN)}
    place.unplug(OPEN.slot)
    await rules.remove(OPEN.tap)
    assert await rules.actual() == {}


def test_all_reasons_are_explained() -> None:
    """`docs/network-filter.md` has a row for each, as the code says it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "network-filter.md").read_text()
    for reason in Reason:
        ordinary = "" if reason.suspicious else "yes"
        assert f"| `{reason.label}` | {reason.meaning} | {ordinary} |" in page
