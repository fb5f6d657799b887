"""What a host lacks to connect VMs: nothing here, and by name where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.connected_agent import lack, surroundings
from vm_agent import namespace
from vm_agent.network.examination import advice, lacks, try_out
from vm_agent.network.settings import NetworkSettings

pytestmark = pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing")


async def test_a_host_that_has_all_is_found_to_and_is_as_before() -> None:
    """A fabric was made and is gone."""
    before = set(namespace.NETNS_DIR.iterdir())
    assert list(lacks()) == []
    assert await try_out() is None
    left = {p.name for p in set(namespace.NETNS_DIR.iterdir()) - before}
    assert not [name for name in left if "trial" in name or "fabric" in name]


async def test_a_host_that_does_not_route_is_told_to() -> None:
    """Where the way out leads; nothing is said where an interface is the way out."""
    settings = NetworkSettings(net_prefix="2001:db8::/64", net_ipv4="203.0.113.0/28")
    async with surroundings() as around:
        routing = NetworkSettings(
            net_prefix="2001:db8::/64", net_ipv4="203.0.113.0/28", net_outside=around.host
        )
        assert await advice(routing) == []
        await namespace.in_own_thread(lambda: _stop_routing(around.host))
        (advised,) = await advice(routing)
        assert str(advised) == "the host does not route: sysctl -w net.ipv6.conf.all.forwarding=1"
    (advised,) = await advice(NetworkSettings())
    assert advised.remedy == "set DECISEC_AGENT_NET_PREFIX"
    interface = NetworkSettings(
        net_prefix="2001:db8::/64", net_uplink="eth1", net_next_hop="fe80::1"
    )
    assert await advice(interface) == []
    gone = NetworkSettings(net_prefix=settings.net_prefix, net_outside="is-not-there")
    (advised,) = await advice(gone)
    assert "cannot be seen" in advised.what


def _stop_routing(netns: str) -> None:
    namespace.enter(netns)
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("0")


@pytest.mark.parametrize(("prefix", "code"), [("2001:db8::/64", 0), ("2001:db8::1/64", 2)])
def test_the_doctor_says_so_on_the_command_line(prefix: str, code: int) -> None:
    """With the agent's own variables."""
    done = subprocess.run(
        [sys.executable, "-m", "decisec", "doctor", "network", "--json"],
        env={**os.environ, "DECISEC_AGENT_NET_PREFIX": prefix},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code == 0:
        said = json.loads(done.stdout)
        assert (said["works"], said["missing"]) == (True, [])
    else:
        assert "net_prefix" in done.stderr
