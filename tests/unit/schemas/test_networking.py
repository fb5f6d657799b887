"""What may be asked of the network, and what may not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.api import CreateVmRequest
from schemas.networking import Inbound, Networking, port_range
from schemas.vms import VmSpec

BAD: list[tuple[dict[str, Any], str]] = [
    ({"networking": {"ipv4": True}, "network": False}, "needs network"),
    ({"networking": {"inbound": "shut"}}, "shut"),
    ({"networking": {"ports": ["tcp/0"]}}, "regex"),
    ({"networking": {"ports": ["tcp/65536"]}}, "regex"),
    ({"networking": {"ports": ["icmp/1"]}}, "regex"),
    ({"networking": {"ports": ["tcp/1\n"]}}, "regex"),
    ({"networking": {"ports": ["tcp/1"] * 33}}, "length"),
    ({"networking": {"prefix": 56}}, "56"),
    ({"networking": {"mtu": 1279}}, ">= 1280"),
    ({"networking": {"mtu": 9001}}, "<= 9000"),
]


@pytest.mark.parametrize("kind", [VmSpec, CreateVmRequest])
@pytest.mark.parametrize(("fields", "words"), BAD)
def test_what_cannot_be_is_refused(kind: type, fields: dict[str, Any], words: str) -> None:
    """By request and by message alike."""
    body = msgspec.json.encode({"image": "tiny", **fields})
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(body, type=kind)


def test_a_request_becomes_a_spec() -> None:
    """And a spec from before networks had wishes is one without any."""
    wish = {"ipv4": True, "inbound": "closed", "ports": ["tcp/443"], "prefix": 64, "mtu": 1400}
    body = msgspec.json.encode({"image": "tiny", "networking": wish})
    spec = msgspec.json.decode(body, type=CreateVmRequest).to_spec()
    assert spec.networking == Networking(
        ipv4=True, inbound=Inbound.CLOSED, ports=("tcp/443",), prefix=64, mtu=1400
    )
    assert msgspec.json.decode(msgspec.json.encode(spec), type=VmSpec) == spec
    assert msgspec.json.decode(b'{"image":"tiny"}', type=VmSpec).networking == Networking()


def test_an_unknown_wish_is_a_mistake_in_a_request_only() -> None:
    """A message may come from a newer gateway."""
    body = b'{"image":"tiny","networking":{"vlan":5}}'
    with pytest.raises(msgspec.ValidationError, match="unknown field `vlan`"):
        msgspec.json.decode(body, type=CreateVmRequest)
    assert msgspec.json.decode(body, type=VmSpec).networking == Networking()


@given(st.sampled_from(["tcp", "udp"]), st.integers(1, 65535), st.integers(1, 65535))
def test_every_run_of_ports_can_be_said(protocol: str, one: int, other: int) -> None:
    """In either order; and the schema's pattern takes what the parser takes."""
    said = f"{protocol}/{one}-{other}"
    assert port_range(said) == (protocol, min(one, other), max(one, other))
    assert port_range(f"{protocol}/{one}") == (protocol, one, one)
    assert msgspec.convert({"ports": [said]}, Networking).ports == (said,)


@pytest.mark.parametrize("text", ["", "tcp/", "tcp/080", "tcp/1-", "TCP/1", "tcp/1-65536"])
def test_other_words_are_no_ports(text: str) -> None:
    """With a word on what would be."""
    with pytest.raises(ValueError, match="tcp/443"):
        port_range(text)
