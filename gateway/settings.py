"""Settings of the gateway: section `gateway`, variables `DECISEC_GATEWAY_*`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from runtime.settings import CommonSettings, Port
from schemas.ids import RegionId
from schemas.limits import Burst, PerSecond
from schemas.tokens import MAX_TOKEN_LIFETIME_S

_ORIGINS = r"^(https?://[a-z0-9.:\[\]-]+(,https?://[a-z0-9.:\[\]-]+)*)?$(?!\n)"
"""Whole origins only: no wildcard, no path, no trailing slash."""
_POOLS = r"^([a-z0-9][a-z0-9-]{0,62}=(spread|pack)(,(?!$)|$))*$(?!\n)"
Places = Annotated[int, msgspec.Meta(ge=2, le=65_536)]


class GatewaySettings(CommonSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gateway takes besides the common settings.

    Attributes:
        api_host: Address of the HTTP API.
        api_port: Port of the same; 0 takes a free one and logs it.
        jwks: Where the issuer's keys (RS256, ES256, EdDSA) are: an `https://` address (`http://` on
            this machine only), or the path of a file.
        jwks_refresh_s: How often they are read; for an unknown `kid` at once.
        jwks_max_stale_s: So long they serve while they cannot be read; then requests are answered
            with 503.
        jwks_timeout_s: How long one reading may take.
        jwks_ca_file: Certificates (PEM) that the issuer's may be signed by, instead of the usual.
        revocations_max_stale_s: So long tokens are taken while the bus does not tell which ones
            are revoked; then requests are answered with 503.
        jwt_key: HS256 key for development tokens, as text of at least 32 bytes.
        jwt_key_file: File that holds that key instead; white space around it is dropped.
        jwt_key_id: Accepted value of a token's `kid`; a token without one is accepted as well.
        jwt_issuer: Required `iss`.
        jwt_audience: Required `aud`.
        jwt_leeway_s: Clock difference that `exp` and `nbf` may have.
        jwt_max_lifetime_s: Tokens that live longer, from `iat` to `exp`, are refused.
        customer_claim: Claim that names the customer.
        max_body_bytes: Larger request bodies are refused.
        command_deadline_s: An agent that has not begun a command by then leaves it.
        publish_limit_s: How long a command may take to reach its stream.
        usage_timeout_s: How long a usage query may take.
        cors_origins: Origins whose pages browsers may let call the API, comma separated, such as
            `https://console.example.com`; none by default.
        region: Only hosts of this region get VMs from here.
        placement: Which of the hosts that fit gets a VM: `spread` takes the one with the most free
            memory, `pack` the one with the least. The same on all gateways.
        placement_pools: The same for single pools: `gold=pack,dev=spread`.
        begin_within_s: A host that has not begun to make a VM after this loses it to another one
            that fits.
        reads_per_s: Reads that a customer may make in a second; 0 for no limit.
        reads_burst: Reads that a customer may make at once.
        mutations_per_s: The same of mutations.
        mutations_burst: The same of mutations.
        expensive_per_s: The same of requests that other services work for: usage, consoles.
        expensive_burst: The same of these.
        address_per_s: Requests without a good token that may come from an address; 0 for no limit.
        address_burst: Such requests at once.
        trusted_proxies: Networks whose `X-Forwarded-For` is believed, comma separated.
        max_connections: Connections at once; fewer where the process may not open so many files.
        max_connections_per_address: Connections at once from an address that is no trusted proxy.
        max_head_bytes: Larger request lines and headers, taken together, are refused.
        head_timeout_s: How long these may take to come in.
        body_timeout_s: How long a body may take to come in.
        max_in_flight: Reads, and mutations, that are worked on at once.
        max_expensive: Expensive requests that are worked on at once.
        max_waiting: Mutations that wait for their operation at once.
        queue_deadline_s: How long a request may wait for its turn.
        streams: Open event and metric streams (SSE) on this gateway at most.
        streams_per_customer: Of one customer.
        stream_heartbeat_s: A stream that has nothing to tell sends a comment this often.
        stream_buffer: Events that wait for a client that reads too slowly; with more it is cut off.
    """

    api_host: str = "127.0.0.1"
    api_port: Port = 8080
    jwks: str = ""
    jwks_refresh_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    jwks_max_stale_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] = 3600.0
    jwks_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    jwks_ca_file: str = ""
    revocations_max_stale_s: Annotated[float, msgspec.Meta(ge=15, le=3600)] = 60.0
    jwt_key: str = ""
    jwt_key_file: str = ""
    jwt_key_id: str = "dev"
    jwt_issuer: Annotated[str, msgspec.Meta(min_length=1)] = "decisec-dev"
    jwt_audience: Annotated[str, msgspec.Meta(min_length=1)] = "decisec"
    jwt_leeway_s: Annotated[int, msgspec.Meta(ge=0, le=300)] = 5
    jwt_max_lifetime_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKEN_LIFETIME_S)] = 604_800
    customer_claim: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "customer"
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=16_777_216)] = 65_536
    command_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    publish_limit_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    usage_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0
    cors_origins: Annotated[str, msgspec.Meta(pattern=_ORIGINS, max_length=4096)] = ""
    region: RegionId = "local"
    placement: Literal["spread", "pack"] = "spread"
    placement_pools: Annotated[str, msgspec.Meta(pattern=_POOLS)] = ""
    begin_within_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 5.0
    reads_per_s: PerSecond = 200.0
    reads_burst: Burst = 1000
    mutations_per_s: PerSecond = 50.0
    mutations_burst: Burst = 500
    expensive_per_s: PerSecond = 20.0
    expensive_burst: Burst = 100
    address_per_s: PerSecond = 10.0
    address_burst: Burst = 200
    trusted_proxies: str = ""
    max_connections: Places = 4096
    max_connections_per_address: Places = 512
    max_head_bytes: Annotated[int, msgspec.Meta(ge=10_240, le=1_048_576)] = 32_768
    head_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    max_in_flight: Places = 256
    max_expensive: Places = 64
    max_waiting: Places = 2048
    queue_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.25
    streams: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000
    streams_per_customer: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    stream_heartbeat_s: Annotated[float, msgspec.Meta(gt=0, le=300)] = 10.0
    stream_buffer: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256

    def __repr__(self) -> str:
        """Without the key, so that no log of the settings holds it."""
        shown = (
            f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
            if name != "jwt_key"
        )
        return f"GatewaySettings({', '.join(shown)})"
