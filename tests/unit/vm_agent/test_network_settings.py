"""What an operator may say about the network, and what is refused by name."""

from __future__ import annotations

import pytest

from runtime.errors import SettingsError
from runtime.settings import load
from vm_agent.settings import AgentSettings


def loaded(**given: str) -> AgentSettings:
    """The settings of an agent whose variables say this."""
    variables = {f"DECISEC_AGENT_{name.upper()}": value for name, value in given.items()}
    return load(AgentSettings, "agent", env={"DECISEC_AGENT_HOST_ID": "h1", **variables})


def test_without_a_prefix_vms_are_not_connected() -> None:
    """Which is how an agent comes."""
    assert loaded().ranges is None


def test_all_of_it_can_be_said() -> None:
    """As values that the rest of the agent takes."""
    settings = loaded(
        net_prefix="2001:db8:1::/56", net_ipv4="203.0.113.0/28", net_uplink="eth1",
        net_next_hop="fe80::1", net_dns="2001:db8::53, 2001:db8::54",
        net_protected="198.51.100.0/24,2001:db8:5::/48", net_mtu="9000",
    )  # fmt: skip
    ranges = settings.ranges
    assert ranges is not None
    assert ranges.names() == ("2001:db8:1::/56", "203.0.113.0/28")
    assert (ranges.networks, ranges.ipv4_addresses) == (255, 16)
    assert [str(one) for one in settings.name_servers] == ["2001:db8::53", "2001:db8::54"]
    assert [str(one) for one in settings.protected] == ["198.51.100.0/24", "2001:db8:5::/48"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"net_prefix": "2001:db8:1::1/64"}, "net_prefix: .*host bits"),
        ({"net_prefix": "2001:db8:1::/80"}, "net_prefix must be a /40 to /64"),
        ({"net_prefix": "2001:db8::/32"}, "net_prefix must be a /40 to /64"),
        ({"net_prefix": "2001:db8::/64", "net_ipv4": "203.0.113.1/28"}, "net_ipv4: .*host bits"),
        ({"net_prefix": "2001:db8::/64", "net_ipv4": "10.0.0.0/8"}, "net_ipv4 must be a /16"),
        ({"net_prefix": "2001:db8::/64", "net_dns": "192.0.2.1"}, "net_dns: "),
        ({"net_prefix": "2001:db8::/64", "net_protected": "here"}, "net_protected: "),
        ({"net_prefix": "2001:db8::/64", "net_uplink": "eth1"}, "needs net_next_hop"),
        (
            {"net_prefix": "2001:db8::/64", "net_uplink": "eth1", "net_next_hop": "2001:db8::1"},
            "needs net_next_hop",
        ),
        ({"net_uplink": "a/b"}, "NET_UPLINK"),
        ({"net_mtu": "1279"}, "NET_MTU"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, str], words: str) -> None:
    """Before anything starts."""
    with pytest.raises(SettingsError, match=words):
        loaded(**given)
