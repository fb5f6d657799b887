"""The ways into a deployment: its HTTP API, and its door on the bus. Each speaks for a customer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
import nats.errors

from decisec.sdk import ApiError, AsyncClient, NotFoundError, UnexpectedAnswerError
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.api import CreateVmRequest, VmAndOperation, VmView
from schemas.codec import decoder, encode
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.requests import CreateRequest, Reply, VmRequest
from schemas.subjects import usage_query, vm_request
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply

NOT_REACHED = "not_reached"
"""Stands beside the API's codes: the request was certainly not taken in."""
FOR_NOW = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE, ErrorCode.NO_CAPACITY})
"""What the API refuses for the moment only: 429 and 503."""
_REQUESTS_A_CLIENT = 50
_SERVER_ERRORS = 500
_ANSWER_S = 30.0
_GRACE_S = 2.0

_decode_reply = decoder(Reply)


class RefusedError(Exception):
    """The deployment does not do it.

    Attributes:
        code: Of the API, or `NOT_REACHED`.
        retry_after_s: When a further try makes sense, if it said so.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def for_now(self) -> bool:
        """Whether it makes sense to ask again."""
        return self.code == NOT_REACHED or self.code in FOR_NOW


class UnansweredError(Exception):
    """A request was sent, and nobody knows what became of it."""


class Door(ABC):
    """What a customer can do. Everything raises RefusedError or UnansweredError.

    Attributes:
        name: Of the way, for the report.
        customer: Who asks.
    """

    name: str
    customer: str

    @abstractmethod
    async def create(self, request: CreateVmRequest) -> VmAndOperation:
        """Make a VM; answers once that is accepted."""

    @abstractmethod
    async def act(self, vm_id: UUID, verb: str, *, wait_s: float = 0.0) -> VmAndOperation:
        """Do one of boot, shutdown, delete; answers once accepted, or done with `wait_s`."""

    @abstractmethod
    async def look(self, vm_id: UUID) -> VmView | None:
        """A VM; None if there is none (any more)."""

    @abstractmethod
    async def usage(self, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]) -> UsageReport:
        """What the VMs have used."""


class HttpDoor(Door):
    """The HTTP API, with several clients where one would be too narrow.

    Args:
        api_url: Its address.
        token: Says who asks.
        at_once: Requests at the same time.
    """

    name = "http"

    def __init__(self, api_url: str, token: str, at_once: int) -> None:
        self.customer = ""
        self._clients = [
            # A storm counts what is refused for now, and comes again by itself.
            AsyncClient(api_url, token, timeout_s=_ANSWER_S, come_again=False)
            for _ in range(-(-at_once // _REQUESTS_A_CLIENT))
        ]
        self._turn = 0
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """The door, once the API has said who asks.

        Raises:
            ApiError: It refuses the token.
            TransportError: It is not there.
        """
        async with AsyncExitStack() as exits:
            for client in self._clients:
                await exits.enter_async_context(client)
            self.customer = (await self.client.whoami()).customer_id
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._exits.aclose()

    @property
    def client(self) -> AsyncClient:
        """The next one in turn."""
        self._turn += 1
        return self._clients[self._turn % len(self._clients)]

    async def create(self, request: CreateVmRequest) -> VmAndOperation:
        try:
            return await self.client.create_vm(request)
        except (ApiError, httpx.TransportError) as error:
            raise refusal(error) from error

    async def act(self, vm_id: UUID, verb: str, *, wait_s: float = 0.0) -> VmAndOperation:
        client = self.client
        try:
            if verb == "shutdown":
                return await client.shutdown_vm(vm_id, grace_s=_GRACE_S, wait_s=wait_s)
            if verb == "boot":
                return await client.boot_vm(vm_id, wait_s=wait_s)
            return await client.delete_vm(vm_id, wait_s=wait_s)
        except (ApiError, httpx.TransportError) as error:
            raise refusal(error) from error

    async def look(self, vm_id: UUID) -> VmView | None:
        try:
            return await self.client.get_vm(vm_id)
        except NotFoundError:
            return None
        except (ApiError, httpx.TransportError) as error:
            raise refusal(error) from error

    async def usage(self, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]) -> UsageReport:
        try:
            return await self.client.usage(start=start, end=end, vm_ids=vm_ids)
        except (ApiError, httpx.TransportError) as error:
            raise refusal(error) from error


def refusal(error: ApiError | httpx.TransportError) -> RefusedError | UnansweredError:
    """What an error of the SDK means to a storm."""
    if isinstance(error, UnexpectedAnswerError) and error.status >= _SERVER_ERRORS:
        return UnansweredError(f"something before the API answered {error.status}")
    if isinstance(error, ApiError):
        return RefusedError(error.problem.code, str(error), error.retry_after_s)
    words = str(error) or type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return RefusedError(NOT_REACHED, words)
    return UnansweredError(words)


class BusDoor(Door):
    """`vm.req.<customer>.<verb>`: whoever may publish there speaks for the customer."""

    name = "bus"

    def __init__(self, bus: Bus, customer: str) -> None:
        self.customer = customer
        self._bus = bus

    async def create(self, request: CreateVmRequest) -> VmAndOperation:
        return _result(await self._ask("create", encode(CreateRequest(vm=request))))

    async def act(self, vm_id: UUID, verb: str, *, wait_s: float = 0.0) -> VmAndOperation:
        request = VmRequest(vm_id=vm_id, wait_s=min(wait_s, 60.0), grace_s=_GRACE_S)
        return _result(await self._ask(verb, encode(request), wait_s=wait_s))

    async def look(self, vm_id: UUID) -> VmView | None:
        try:
            return (await self._ask("get", encode(VmRequest(vm_id=vm_id)))).vm
        except RefusedError as error:
            if error.code == ErrorCode.NOT_FOUND:
                return None
            raise

    async def usage(self, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]) -> UsageReport:
        query = encode(UsageQuery(start=start, end=end, vm_ids=vm_ids))
        reply = decode_usage_reply(await self._request(usage_query(self.customer), query))
        if reply.report is None:
            raise _refused(reply.error)
        return reply.report

    async def _ask(self, verb: str, data: bytes, *, wait_s: float = 0.0) -> Reply:
        answer = await self._request(vm_request(self.customer, verb), data, wait_s)
        try:
            reply: Reply = _decode_reply(answer)
        except MalformedMessageError as error:
            raise UnansweredError(f"an answer that cannot be read: {error}") from error
        if reply.error is not None:
            raise _refused(reply.error)
        return reply

    async def _request(self, subject: str, data: bytes, wait_s: float = 0.0) -> bytes:
        try:
            answer = await self._bus.request(subject, data, timeout_s=_ANSWER_S + wait_s)
        except TransientError as error:
            if isinstance(error.__cause__, nats.errors.NoRespondersError):
                raise RefusedError(NOT_REACHED, str(error)) from error
            raise UnansweredError(str(error)) from error
        return answer.data


def _refused(error: ErrorInfo | None) -> RefusedError:
    if error is None:
        return RefusedError(ErrorCode.INTERNAL, "an answer without content")
    return RefusedError(error.code.value, error.message)


def _result(reply: Reply) -> VmAndOperation:
    if reply.result is None:
        raise UnansweredError("an answer without content")
    return reply.result
