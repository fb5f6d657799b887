"""Metadata, balloon and rate limits in a spec: what may be asked for, and what is never shown."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from schemas.api import CreateVmRequest
from schemas.codec import encode
from schemas.devices import MAX_METADATA_BYTES, RateLimits
from schemas.vms import VmSpec

SECRET = "hunter2"
FIRECRACKER_TAKES_BYTES = 51_200

BAD: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {"a": "b"}, "network": False}, "needs network"),
    ({"metadata": {"A": "b"}}, "regex"),
    ({"metadata": {"a.b": "c"}}, "regex"),
    ({"metadata": {"a": f"{SECRET}\x00"}}, "regex"),
    ({"metadata": {"a": f"{SECRET}\x7f"}}, "regex"),
    ({"metadata": {"a": SECRET + "x" * 1024}}, "length"),
    ({"metadata": {"a": SECRET + "é" * 600}}, "1024 bytes"),
    ({"metadata": {f"a{n}": "" for n in range(33)}}, "length"),
    ({"metadata": {f"a{n}": SECRET + "x" * 600 for n in range(32)}}, "16384 bytes"),
    ({"metadata": {"a": 1}}, "str"),
    ({"balloon_mib": 128}, "less than memory_mib"),
    ({"balloon_mib": 64, "memory_mib": 64}, "less than memory_mib, which is 64"),
    ({"balloon_mib": -1}, ">= 0"),
    ({"limits": {"disk_bytes_per_s": -1}}, ">= 0"),
    ({"limits": {"disk_ops_per_s": 10_000_001}}, "<= 10000000"),
    ({"limits": {"net_rx_bytes_per_s": 10**12}}, "<= 100000000000"),
    ({"limits": {"net_rx_bytes_per_s": 1}, "network": False}, "need network"),
    ({"limits": {"net_tx_bytes_per_s": 1}, "network": False}, "need network"),
]


@pytest.mark.parametrize("kind", [VmSpec, CreateVmRequest])
@pytest.mark.parametrize(("fields", "words"), BAD)
def test_what_cannot_be_is_refused(kind: type, fields: dict[str, Any], words: str) -> None:
    """By request and by message alike; and no value is repeated."""
    body = msgspec.json.encode({"image": "tiny", **fields})
    with pytest.raises(msgspec.ValidationError, match=words) as caught:
        msgspec.json.decode(body, type=kind)
    assert SECRET not in str(caught.value)


def test_a_limit_of_another_name_is_a_mistake_in_a_request_only() -> None:
    """A message may come from a newer gateway."""
    body = b'{"image":"tiny","limits":{"disk_bps":5}}'
    with pytest.raises(msgspec.ValidationError, match="unknown field `disk_bps`"):
        msgspec.json.decode(body, type=CreateVmRequest)
    assert msgspec.json.decode(body, type=VmSpec).limits == RateLimits()


def test_what_is_asked_for_is_what_the_spec_says() -> None:
    """Also after a journey, and for a reader that compares."""
    body = (
        b'{"image":"tiny","metadata":{"user-data":"#!/bin/sh\\n\\techo \xc3\xa9\\n"},'
        b'"balloon_mib":127,"limits":{"disk_ops_per_s":7,"net_tx_bytes_per_s":100000000000}}'
    )
    spec = msgspec.json.decode(body, type=CreateVmRequest).to_spec()
    assert spec == VmSpec(
        image="tiny",
        metadata={"user-data": "#!/bin/sh\n\techo é\n"},
        balloon_mib=127,
        limits=RateLimits(disk_ops_per_s=7, net_tx_bytes_per_s=100_000_000_000),
    )
    assert msgspec.json.decode(encode(spec), type=VmSpec) == spec


def test_a_spec_of_old_has_none_of_it() -> None:
    """Records that were written before there was any of this."""
    spec = msgspec.json.decode(b'{"image":"tiny","network":false}', type=VmSpec)
    assert (spec.metadata, spec.balloon_mib, spec.limits) == ({}, 0, RateLimits())


def test_a_printed_spec_tells_no_value() -> None:
    """Nor do the things that hold one, nor rich."""
    wanted = {"image": "tiny", "metadata": {"password": SECRET}}
    for kind in (VmSpec, CreateVmRequest):
        made = msgspec.convert(wanted, kind)
        page = io.StringIO()
        Console(file=page, width=200).print(made, [made])
        for shown in (repr(made), str([made]), f"{made}", page.getvalue()):
            assert "password" in shown
            assert "image='tiny'" in shown
            assert SECRET not in shown


def test_without_its_secrets_a_spec_keeps_the_names() -> None:
    """And everything else."""
    spec = VmSpec(image="tiny", vcpus=3, metadata={"a": SECRET, "b": ""})
    assert spec.without_secrets() == VmSpec(image="tiny", vcpus=3, metadata={"a": "", "b": ""})


texts = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\\n\t'), max_size=80)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True), texts, max_size=32))
def test_any_metadata_that_may_be_fits_into_a_request(metadata: dict[str, str]) -> None:
    """However much of it must be escaped."""
    blown_up = {name: (value * (1024 // (4 * len(value) + 1))) for name, value in metadata.items()}
    try:
        spec = msgspec.convert({"image": "tiny", "metadata": blown_up}, VmSpec)
    except msgspec.ValidationError:
        return
    assert len(msgspec.json.encode(spec.metadata)) < FIRECRACKER_TAKES_BYTES - 1024


def test_the_most_that_metadata_may_be_fits_into_a_request() -> None:
    """Every byte of the values doubled by its escape."""
    worst = {f"n{at}": '"' * 1000 for at in range(16)}
    left = MAX_METADATA_BYTES - sum(len(name) + len(value) for name, value in worst.items())
    spec = VmSpec(image="tiny", metadata={**worst, "rest": '"' * (left - 4)})
    assert len(msgspec.json.encode(spec.metadata)) < FIRECRACKER_TAKES_BYTES - 1024
