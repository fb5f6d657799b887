"""Around every HTTP request that may change something: its key, and the answer that is kept.

Runs between the guard and the handler, and again when the answer stands; handlers know nothing of
it. The door on the bus does the same for its requests.
"""

from __future__ import annotations

from typing import Any, Self

from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway import acts
from gateway.acts import Act
from gateway.errors import RefusedError
from gateway.idempotency import Keys, check_key, digest
from gateway.problems import answer as problem
from gateway.routes.common import wait_s_of, who
from schemas.errors import ErrorCode
from schemas.idempotency import IDEMPOTENCY_HEADER, REPLAYED_HEADER, KeptAnswer

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Mutations:
    """What is done around them.

    Args:
        keys: Where answers are kept.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def __deepcopy__(self, _: Any) -> Self:
        """The same: Litestar copies the hooks of a router for each of its routes."""
        return self

    async def before(self, request: Request[Any, Any, Any]) -> Response[Any] | None:
        """Enter the act of a request that may change something, or give its earlier answer.

        Raises:
            RefusedError: BAD_REQUEST, IDEMPOTENCY_KEY_REUSED or REQUEST_IN_PROGRESS.
            TransientError: The keys cannot be had at the moment.
        """
        if request.method not in METHODS:
            return None
        act = Act()
        acts.enter(act)
        keys = request.headers.getall(IDEMPOTENCY_HEADER.lower(), [])
        if not keys:
            return None
        if len(keys) > 1:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"{IDEMPOTENCY_HEADER}: give one.")
        found = await self._keys.claim(
            who(request).customer_id,
            check_key(keys[0]),
            digest(
                b"http",
                request.method.encode(),
                request.scope["raw_path"],
                request.scope["query_string"],
                await request.body(),
            ),
            wait_s_of(request.headers.get("prefer", "")),
        )
        if not isinstance(found, KeptAnswer):
            act.take(found)
            return None
        return Response(
            found.body,
            status_code=found.status,
            headers={**found.headers, REPLAYED_HEADER: "true"},
            media_type=found.media_type,
        )

    async def after(self, response: Response[Any]) -> Response[Any]:
        """Keep a handler's answer under the request's key, if it came with one."""
        self._keep(response)
        return response

    def refused(self, request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        """The problem that an error is, kept as the answer if it was decided on."""
        response = problem(request, error)
        # What the framework itself refuses has not reached a service.
        self._keep(response, None if isinstance(error, HTTPException) else error)
        return response

    def _keep(self, response: Response[Any], error: Exception | None = None) -> None:
        act = acts.current()
        if act is None or act.claim is None:
            return
        claim, act.claim = act.claim, None
        self._keys.settle(
            claim,
            KeptAnswer(
                status=response.status_code or 200,
                body=response.content if isinstance(response.content, bytes) else b"",
                media_type=str(response.media_type),
                headers={str(name): str(value) for name, value in response.headers.items()},
            ),
            error,
        )
