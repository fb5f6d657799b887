"""Placement: fits, spreads, says why not, and never gives the same room twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.inventory import Inventory
from gateway.placement import Strategy, lacking, need_of, place, total
from schemas.errors import ErrorCode
from schemas.hosts import HostInfo, Resources
from schemas.ids import new_id
from schemas.vms import VmSpec
from schemas.wishes import Apart, PlacementWishes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOM = Resources(vcpus=8, memory_mib=8192, disk_mib=8192, slots=10)


def host(name: str, **changes: Any) -> HostInfo:
    base: dict[str, Any] = {
        "host_id": name,
        "run_id": new_id(),
        "boot_id": "b",
        "version": "1",
        "driver": "simulator",
        "images": ("tiny",),
        "capacity": ROOM,
        "free": ROOM,
        "heartbeat_at": NOW,
    }
    return HostInfo(**{**base, **changes})


SPEC = VmSpec(image="tiny", vcpus=2, memory_mib=1024, disk_mib=100)


def test_the_host_with_the_most_free_memory_is_chosen() -> None:
    """VMs spread by memory; what is under way counts as used."""
    small = host("a", free=Resources(vcpus=8, memory_mib=4096, disk_mib=8192, slots=10))
    large = host("b")
    assert place(SPEC, [small, large], {}, NOW).host is large
    busy = {"b": Resources(memory_mib=6000)}
    assert place(SPEC, [small, large], busy, NOW).host is small


def test_equal_hosts_are_told_apart_by_load_and_then_by_name() -> None:
    """The choice is the same whatever the order of the heartbeats."""
    a, b, c = host("a", vms=3), host("b"), host("c")
    assert place(SPEC, [c, b, a], {}, NOW).host is b
    assert place(SPEC, [a, b, c], {}, NOW).host is b


def test_each_reason_against_a_host_is_told() -> None:
    """Old heartbeat, draining, other pool, no room, refused before: counted by reason."""
    hosts = [
        host("old", heartbeat_at=NOW - timedelta(seconds=6)),
        host("draining", draining=True),
        host("pool", pool="gold"),
        host("region", region="moon"),
        host("cpu", free=Resources(vcpus=1, memory_mib=8192, disk_mib=8192, slots=1)),
        host("full", free=Resources(vcpus=8, memory_mib=8192, disk_mib=8192, slots=0)),
        host("refused"),
    ]
    found = place(SPEC, hosts, {}, NOW, avoid={"refused"})
    assert found.host is None
    assert found.reasons == {
        "not heard of": 1,
        "draining": 1,
        "other pool or region": 2,
        "short of vcpus": 1,
        "short of slots": 1,
        "refused it": 1,
    }
    assert found.error.code is ErrorCode.NO_CAPACITY
    assert place(SPEC, [host("just", heartbeat_at=NOW - timedelta(seconds=5))], {}, NOW).host


def test_an_image_that_no_host_has_is_unknown() -> None:
    """Waiting would not help; without any host it is a matter of capacity."""
    assert place(SPEC, [host("a", images=())], {}, NOW).error.code is ErrorCode.UNKNOWN_IMAGE
    assert place(SPEC, [], {}, NOW).error.code is ErrorCode.NO_CAPACITY


resources = st.builds(
    Resources,
    vcpus=st.integers(0, 20),
    memory_mib=st.integers(0, 10_000),
    disk_mib=st.integers(0, 10_000),
    slots=st.integers(0, 20),
)
specs = st.builds(
    VmSpec,
    image=st.just("tiny"),
    vcpus=st.integers(1, 4),
    memory_mib=st.integers(16, 2048),
    disk_mib=st.integers(0, 2048),
)


@given(st.lists(resources, min_size=1, max_size=4), st.lists(specs, max_size=40))
def test_no_host_is_ever_promised_more_than_it_has(
    free: list[Resources], wanted: list[VmSpec]
) -> None:
    """However many creates are under way at once, their sum fits each host's free room."""
    hosts = {f"h{i}": host(f"h{i}", free=amount) for i, amount in enumerate(free)}
    inventory = Inventory(clock=lambda: NOW)
    for name, info in hosts.items():
        inventory.take_host(name, info)
    promised: dict[str, list[Resources]] = {name: [] for name in hosts}
    for spec in wanted:
        chosen = inventory.choose(spec, NOW, pool="default", region="local").host
        held = {name: total(amounts) for name, amounts in promised.items()}
        if chosen is None:
            assert all(
                lacking(total((held[n], need_of(spec))), info.free) for n, info in hosts.items()
            )
            continue
        inventory.hold(new_id(), chosen.host_id, spec, NOW)
        promised[chosen.host_id].append(need_of(spec))
    for name, amounts in promised.items():
        assert not lacking(total(amounts), hosts[name].free)
        assert (inventory.taken(name) or Resources()) == total(amounts)


wished = st.builds(
    PlacementWishes,
    host_labels=st.dictionaries(st.sampled_from(["disk", "rack"]), st.just("a"), max_size=2),
    driver=st.sampled_from(["", "", "qemu"]),
    arch=st.sampled_from(["", "", "x86_64"]),
    apart=st.sampled_from(list(Apart)),
)
infos = st.fixed_dictionaries(
    {
        "free": resources,
        "vms": st.integers(0, 3),
        "pool": st.sampled_from(["default", "default", "gold"]),
        "draining": st.sampled_from([False, False, False, True]),
        "images": st.sampled_from([("tiny",), ("tiny",), ()]),
        "driver": st.sampled_from(["simulator", "qemu"]),
        "arch": st.sampled_from(["x86_64", ""]),
        "labels": st.dictionaries(
            st.sampled_from(["disk", "rack"]), st.sampled_from(["a", "a", "b"]), max_size=2
        ),
        "heartbeat_at": st.sampled_from([NOW, NOW, NOW - timedelta(seconds=6)]),
    }
)


@given(
    st.lists(infos, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), specs), max_size=8),
    specs,
    wished,
    st.dictionaries(st.integers(0, 7).map("h{}".format), st.integers(1, 2), max_size=4),
    st.sets(st.integers(0, 7).map("h{}".format), max_size=2),
    st.sets(st.integers(0, 7).map("h{}".format), max_size=2),
    st.sampled_from(list(Strategy)),
)
def test_the_ordered_search_finds_what_looking_at_each_host_finds(
    changes: list[dict[str, Any]],
    held: list[tuple[int, VmSpec]],
    spec: VmSpec,
    wishes: PlacementWishes,
    peers: dict[str, int],
    avoid: set[str],
    silent: set[str],
    strategy: Strategy,
) -> None:
    """Same host, same reasons, same word, whatever was held and in whatever order it came."""
    hosts = {f"h{i}": host(f"h{i}", **c) for i, c in enumerate(changes)}
    inventory = Inventory(clock=lambda: NOW)
    taken: dict[str, Resources] = {}
    half = len(held) // 2
    for number, one in held[:half]:
        inventory.hold(new_id(), f"h{number}", one, NOW)
    for name, info in hosts.items():
        inventory.take_host(name, info)
    for number, one in held[half:]:
        inventory.hold(new_id(), f"h{number}", one, NOW)
    for number, one in held:
        taken[f"h{number}"] = total((taken.get(f"h{number}", Resources()), need_of(one)))
    asked = msgspec.structs.replace(spec, placement=wishes)
    options: dict[str, Any] = {
        "pool": "default",
        "region": "local",
        "avoid": avoid,
        "silent": silent,
        "strategy": strategy,
        "peers": peers,
    }
    slow = place(asked, hosts.values(), taken, NOW, **options)
    fast = inventory.choose(asked, NOW, **options)
    assert (fast.host, fast.why) == (slow.host, slow.why)
    if slow.host is None:
        assert (fast.reasons, fast.image_known) == (slow.reasons, slow.image_known)


def test_a_pool_is_spread_or_packed() -> None:
    """Packed, the host with the least memory that will do is taken."""
    tight = host("a", free=Resources(vcpus=8, memory_mib=2048, disk_mib=8192, slots=10))
    wide, full = host("b"), host("c", free=Resources(vcpus=8, memory_mib=8, slots=9))
    hosts = [tight, wide, full]
    assert place(SPEC, hosts, {}, NOW).host is wide
    packed = place(SPEC, hosts, {}, NOW, strategy=Strategy.PACK)
    assert (packed.host, packed.why) == (tight, "pack")
    small = place(SPEC, hosts, {"a": need_of(SPEC)}, NOW, strategy=Strategy.PACK)
    assert small.host is tight
    twice = {"a": Resources(memory_mib=1025)}
    assert place(SPEC, hosts, twice, NOW, strategy=Strategy.PACK).host is wide


def test_a_vm_gets_the_host_that_it_wishes_for() -> None:
    """Driver, architecture and labels, each told apart as a reason."""
    hosts = [
        host("arm", arch="aarch64", driver="qemu", labels={"disk": "nvme"}),
        host("old", driver="qemu", labels={"disk": "nvme"}),
        host("sim", arch="x86_64", labels={"disk": "nvme"}),
        host("slow", arch="x86_64", driver="qemu", labels={"disk": "hdd"}),
    ]
    wishes = PlacementWishes(arch="x86_64", driver="qemu", host_labels={"disk": "nvme"})
    asked = msgspec.structs.replace(SPEC, placement=wishes)
    found = place(asked, hosts, {}, NOW)
    assert found.host is None
    assert found.reasons == {
        "of another architecture": 2,
        "with another driver": 1,
        "without the labels": 1,
    }
    right = host("z", arch="x86_64", driver="qemu", labels={"disk": "nvme", "rack": "7"})
    assert place(asked, [*hosts, right], {}, NOW).host is right


def test_vms_of_one_kind_go_apart() -> None:
    """To a host without one of them, else to the one with the fewest, or to none."""
    hosts = [host("a"), host("b", vms=5), host("c", vms=9)]
    peers = {"a": 2, "b": 1, "c": 3}
    asked = VmSpec(image="tiny", labels={"app": "db"}, placement=PlacementWishes(apart_by="app"))
    assert asked.kind == ("app", "db")
    found = place(asked, hosts, {}, NOW, peers={"a": 2, "b": 1})
    assert (found.host, found.why) == (hosts[2], "spread+apart")
    assert place(asked, hosts, {}, NOW, peers=peers).host is hosts[1]
    wishes = PlacementWishes(apart_by="app", apart=Apart.REQUIRED)
    must = msgspec.structs.replace(asked, placement=wishes)
    assert place(must, hosts, {}, NOW, peers={"a": 2, "b": 1}).host is hosts[2]
    assert place(must, hosts, {}, NOW, peers=peers).reasons == {"with a VM to be apart from": 3}
    assert msgspec.structs.replace(asked, labels={}).kind is None
