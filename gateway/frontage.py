"""What stands before the routes: cheap refusals first, places and rates at the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway import problems
from gateway.addresses import Addresses
from gateway.admission import Admission, Place, lane_of
from gateway.errors import RefusedError
from gateway.limits import Limits, class_of_route, rate_headers
from gateway.rates import Verdict
from schemas.errors import ErrorCode

PRINCIPAL = "principal"
"""Key in a scope's `state` under which the guard puts whom it has let in."""
ADDRESS = "address"
"""The same for where the request comes from, as far as that can be believed."""

_MAX_HEADERS = 100
_OPERATORS = "!operators"
"""No customer can be called so."""
_VERDICT = "verdict"
_PLACE = "place"


class Frontage:
    """Wraps the routes.

    Args:
        app: The ASGI app with the routes.
        limits: Rates.
        admission: Places.
        addresses: Tells callers apart.
        turned_away: Called with the address and the refusal of each request that is refused here.

    Attributes:
        app: What is wrapped.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        admission: Admission,
        addresses: Addresses,
        turned_away: Callable[[str, RefusedError], None],
    ) -> None:
        self.app = app
        self._limits = limits
        self._addresses = addresses
        self._turned_away = turned_away
        self.desk = Desk(limits, admission)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or one turn of the lifespan protocol."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        address, bearer, encoding = self._read(scope)
        state[ADDRESS] = address
        charged = False
        try:
            if not bearer or not scope["path"].startswith("/v1/"):
                # Nobody will be asked who this is.
                charged = True
                self._limits.admit_address(address)
            _require_plain(encoding)
            _require_few(scope["headers"])
        except RefusedError as refused:
            self._turned_away(address, refused)
            await _answer(refused, scope, send)
            return
        replaced = False

        async def counted_send(message: Any) -> None:
            nonlocal replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                _leave(state)
                if PRINCIPAL not in state and not charged:
                    # A token that is no good, or a path that is none.
                    try:
                        self._limits.admit_address(address)
                    except RefusedError as refused:
                        replaced = True
                        self._turned_away(address, refused)
                        await _answer(refused, scope, send)
                        return
                verdict: Verdict | None = state.get(_VERDICT)
                if verdict is not None and verdict.admitted:
                    message["headers"] = [*message.get("headers", ()), *_raw(rate_headers(verdict))]
            await send(message)

        try:
            await self.app(scope, receive, counted_send)
        finally:
            _leave(state)

    def _read(self, scope: Any) -> tuple[str, bool, str]:
        """Address, whether there is a token, and the body's encoding."""
        bearer, encoding = False, ""
        forwarded: list[str] = []
        for name, value in scope["headers"]:
            if name == b"authorization":
                bearer = True
            elif name == b"content-encoding":
                encoding += value.decode("latin-1").strip().lower()
            elif name == b"x-forwarded-for":
                forwarded.append(value.decode("latin-1"))
        client = scope.get("client")
        return self._addresses.of(client[0] if client else "", forwarded), bearer, encoding


class Desk:
    """What the guard does once it knows who asks."""

    def __init__(self, limits: Limits, admission: Admission) -> None:
        self._limits = limits
        self._admission = admission

    async def admit(self, scope: Any, customer_id: str, prefer: str) -> None:
        """Count the request, and give it a place.

        Raises:
            RefusedError: RATE_LIMITED or UNAVAILABLE.
        """
        state = scope["state"]
        kind = class_of_route(scope["method"], scope["path"])
        # Operators without a customer are counted together.
        customer_id = customer_id or _OPERATORS
        state[_VERDICT] = self._limits.admit(customer_id, kind)
        lane = lane_of(kind, waits="wait" in prefer)
        state[_PLACE] = await self._admission.enter(customer_id, lane)


def _require_plain(encoding: str) -> None:
    """A body that grows when it is unpacked is not unpacked at all."""
    if encoding not in ("", "identity"):
        raise RefusedError(
            ErrorCode.UNSUPPORTED,
            "A body must be sent as it is, without Content-Encoding.",
            status=415,
            headers={"Accept-Encoding": "identity", "Connection": "close"},
        )


def _require_few(headers: Sequence[object]) -> None:
    if len(headers) > _MAX_HEADERS:
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"More than {_MAX_HEADERS} headers.",
            status=431,
            headers={"Connection": "close"},
        )


def _leave(state: dict[str, Any]) -> None:
    place: Place | None = state.pop(_PLACE, None)
    if place is not None:
        place.leave()


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


async def _answer(refused: RefusedError, scope: Any, send: Any) -> None:
    status, headers, body = problems.described(refused, scope["path"])
    headers = {**headers, "Content-Type": problems.MEDIA_TYPE, "Content-Length": str(len(body))}
    await send({"type": "http.response.start", "status": status, "headers": _raw(headers)})
    await send({"type": "http.response.body", "body": body})
