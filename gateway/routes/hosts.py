"""Hosts, for operators: looked at, drained, declared lost and found."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, StrictRequest
from gateway.hosts import HostQuery, HostService, no_such_host
from gateway.routes import examples_admin as examples
from gateway.routes.common import COMMITS, Cursor, Token, answer, who
from schemas.admin_hosts import (
    DrainRequest,
    FoundRequest,
    HostList,
    HostState,
    HostView,
    HostVmList,
    LossRequest,
)
from schemas.errors import InvalidIdError
from schemas.ids import token

Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Hosts on a page.")]
VmLimit = Annotated[int, QueryParameter(ge=1, le=1000, description="VMs on a page.")]
State = Annotated[HostState | None, QueryParameter(name="state", description="Only hosts so.")]
Pool = Annotated[
    str, QueryParameter(description="Only hosts that are heard of and of this pool.", max_length=63)
]
Order = JSONBody[DrainRequest | None]
Found = JSONBody[FoundRequest | None]


@get("/hosts", summary="List hosts", operation_class=examples.host_list)
async def list_hosts(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    host_state: State = None,
    pool: Pool = "",
) -> Response[HostList]:
    """Hosts that are heard of, ordered to drain, declared lost or named by a VM, by name."""
    query = HostQuery(state=host_state, pool=pool)
    return answer(hosts(request).page(who(request), query, cursor=cursor, limit=limit))


@get("/hosts/{host_id:str}", summary="Look at a host", operation_class=examples.host)
async def get_host(request: StrictRequest, host_id: Token) -> Response[HostView]:
    """One host: its heartbeat, what is ordered, whether it is declared lost."""
    return answer(await hosts(request).get(who(request), _host_of(host_id)))


@get(
    "/hosts/{host_id:str}/vms", summary="List the VMs of a host", operation_class=examples.host_vms
)
async def list_host_vms(
    request: StrictRequest, host_id: Token, limit: VmLimit = 100, cursor: Cursor = ""
) -> Response[HostVmList]:
    """VMs whose records name the host, of all customers; none for a host that there is not."""
    name = _host_of(host_id)
    return answer(hosts(request).vms(who(request), name, cursor=cursor, limit=limit))


@post(
    "/hosts/{host_id:str}/drain",
    opt={BODY: DrainRequest, COMMITS: True},
    summary="Let a host take no new VM",
    status_code=200,
    operation_class=examples.drain,
)
async def drain_host(
    request: StrictRequest, host_id: Token, data: Order = None
) -> Response[HostView]:
    """Order it; the host's agent obeys as soon as it runs, and the order stands until `undrain`.

    VMs that are there run on: nothing is moved by itself. The host's `state` is `draining` once it
    obeys, and `empty` once all are deleted.
    """
    return await _order(request, host_id, data, draining=True)


@post(
    "/hosts/{host_id:str}/undrain",
    opt={BODY: DrainRequest, COMMITS: True},
    summary="Let a host take VMs again",
    status_code=200,
    operation_class=examples.undrain,
)
async def undrain_host(
    request: StrictRequest, host_id: Token, data: Order = None
) -> Response[HostView]:
    """Take an order to drain back; what the agent's own settings say does not count any more."""
    return await _order(request, host_id, data, draining=False)


@post(
    "/hosts/{host_id:str}/lost",
    opt={BODY: LossRequest, COMMITS: True},
    summary="Declare a host lost",
    status_code=200,
    operation_class=examples.lost,
)
async def declare_host_lost(
    request: StrictRequest, host_id: Token, data: JSONBody[LossRequest]
) -> Response[HostView]:
    """Let usage answers wait for the host's frames no longer; they name it from then on.

    409 `conflict` while it is heard of, or frames of it are on their way to the store. What comes
    all the same counts, and changes answers that were complete. What stands is not changed.
    """
    name = _host_of(host_id)
    return answer(
        await hosts(request).declare_lost(who(request), name, reason=data.reason, force=data.force)
    )


@post(
    "/hosts/{host_id:str}/found",
    opt={BODY: FoundRequest, COMMITS: True},
    summary="Take back that a host is lost",
    status_code=200,
    operation_class=examples.found,
)
async def declare_host_found(
    request: StrictRequest, host_id: Token, data: Found = None
) -> Response[HostView]:
    """Let usage answers wait for the host's frames again."""
    reason = (data or FoundRequest()).reason
    return answer(
        await hosts(request).declare_found(who(request), _host_of(host_id), reason=reason)
    )


async def _order(
    request: StrictRequest, host_id: str, data: DrainRequest | None, *, draining: bool
) -> Response[HostView]:
    asked = data or DrainRequest()
    host = await hosts(request).drain(
        who(request),
        _host_of(host_id),
        draining=draining,
        reason=asked.reason,
        force=asked.force,
    )
    return answer(host)


def hosts(request: StrictRequest) -> HostService:
    """The service that the app was built around."""
    found: HostService = request.app.state.hosts
    return found


def _host_of(text: str) -> str:
    try:
        return token(text)
    except InvalidIdError:
        raise no_such_host() from None


HANDLERS = (
    list_hosts,
    get_host,
    list_host_vms,
    drain_host,
    undrain_host,
    declare_host_lost,
    declare_host_found,
)
