"""Peers: customers whose VMs one's own may reach, and who agrees."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, put
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.peers import PeerService
from gateway.routes import examples
from gateway.routes.common import Cursor, Token, answer, who
from schemas.network_peers import MAX_PEER_PAGE, PeerList, PeerState, PeerView

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PEER_PAGE, description="Customers on a page.")]
State = Annotated[PeerState | None, QueryParameter(name="state", description="Only customers so.")]


@get("/network/peers", summary="List peers", operation_class=examples.peer_list)
async def list_peers(
    request: StrictRequest, limit: Limit = 100, cursor: Cursor = "", peer_state: State = None
) -> Response[PeerList]:
    """Customers that you agree with or that agree with you, by name."""
    page = peers(request).page(who(request), peer_state, cursor=cursor, limit=limit)
    return answer(page)


@put(
    "/network/peers/{peer_id:str}",
    summary="Agree with a customer",
    status_code=200,
    operation_class=examples.peer,
)
async def add_peer(request: StrictRequest, peer_id: Token) -> Response[PeerView]:
    """Let your VMs and theirs reach each other where they share a host, once they agree as well.

    Whether there is such a customer is not told: `waiting` is all that is known of one who has not
    agreed. You can agree with 100 customers at most: 409 `conflict` beyond.
    """
    return answer(await peers(request).add(who(request), peer_id))


@delete(
    "/network/peers/{peer_id:str}",
    summary="Agree with a customer no more",
    status_code=200,
    operation_class=examples.former_peer,
)
async def remove_peer(request: StrictRequest, peer_id: Token) -> Response[PeerView]:
    """Take your half back; the VMs are cut off from each other within a second."""
    return answer(await peers(request).remove(who(request), peer_id))


def peers(request: StrictRequest) -> PeerService:
    """The service that the app was built around."""
    found: PeerService = request.app.state.peers
    return found


HANDLERS = (list_peers, add_peer, remove_peer)
