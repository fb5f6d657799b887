"""Placement: fits, spreads, says why not, and never gives the same room twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.placement import lacking, need_of, place, total
from gateway.reservations import Reservations
from schemas.errors import ErrorCode
from schemas.hosts import HostInfo, Operation, OperationStatus, Resources
from schemas.ids import new_id
from schemas.vms import VmSpec

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
    reservations = Reservations()
    for spec in wanted:
        chosen = place(spec, hosts.values(), reservations.in_flight(hosts, NOW), NOW).host
        if chosen is None:
            held = reservations.in_flight(hosts, NOW)
            assert all(
                lacking(total((held.get(n, Resources()), need_of(spec))), h.free)
                for n, h in hosts.items()
            )
            continue
        reservations.hold(new_id(), chosen.host_id, need_of(spec), NOW + timedelta(seconds=60))
    for name, promised in reservations.in_flight(hosts, NOW).items():
        assert not lacking(promised, hosts[name].free)


def _operation(command_id: Any, status: OperationStatus, at: datetime) -> Operation:
    return Operation(
        operation_id=command_id,
        customer_id="acme",
        vm_id=new_id(),
        host_id="h",
        verb="create",
        status=status,
        created_at=NOW,
        deadline=NOW + timedelta(seconds=60),
        finished_at=at,
    )


def test_a_hold_ends_when_the_heartbeat_shows_the_vm() -> None:
    """Between the result and the next heartbeat the room is still counted as taken."""
    reservations, command_id = Reservations(), new_id()
    reservations.hold(command_id, "h", need_of(SPEC), NOW + timedelta(seconds=60))
    done = NOW + timedelta(seconds=2)
    reservations.take(_operation(command_id, OperationStatus.SUCCEEDED, done))
    assert reservations.in_flight({"h": host("h")}, done) == {"h": need_of(SPEC)}
    later = host("h", heartbeat_at=done + timedelta(seconds=1))
    assert reservations.in_flight({"h": later}, done) == {}


def test_a_hold_ends_with_a_failure_or_long_after_its_deadline() -> None:
    """Nothing is held for ever."""
    reservations, command_id = Reservations(), new_id()
    reservations.hold(command_id, "h", need_of(SPEC), NOW + timedelta(seconds=60))
    reservations.take(_operation(command_id, OperationStatus.FAILED, NOW))
    assert reservations.in_flight({}, NOW) == {}
    reservations.hold(new_id(), "h", need_of(SPEC), NOW + timedelta(seconds=60))
    assert reservations.in_flight({}, NOW + timedelta(seconds=60)) != {}
    assert reservations.in_flight({}, NOW + timedelta(seconds=71)) == {}
