"""nftables in process: commands for one network namespace, each a transaction of the kernel.

libnftables is the library behind the tool `nft`; a call of it for one VM takes a millisecond, the
tool as a process ten. The library's context talks to the namespace that its thread was in when it
was made, so each has a thread of its own. The library is Debian's package libnftables1.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from vm_agent import low_files, namespace
from vm_agent.network.nfnetlink import KernelSocket, Message, NftError

__all__ = ["LIBRARY", "PACKAGE", "Nft", "NftError", "NftMissingError", "NftSession", "read_objects"]

T = TypeVar("T")

LIBRARY = "libnftables.so.1"
PACKAGE = "libnftables1"

# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_NUMERIC_SYMBOL = 1 << 9
_OUTPUT_TERSE = 1 << 11


class NftMissingError(Exception):
    """The library cannot be used. The message says what to do."""


class NftSession:
    """A context of the library; one thread may use it, and it stays in its first namespace.

    Its descriptor has to be a low one; `vm_agent.low_files` keeps some.

    Raises:
        NftMissingError: The library is not there, or too many files are open.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._lent = False
        if not low_files.is_any_free():
            self._lent = low_files.give_up_one()
        sockets = low_files.sockets()
        self._context: int | None = self._library.nft_ctx_new(0)
        if self._context is None:
            raise NftMissingError(f"{LIBRARY} gave no context")
        # The library waits with select(2), and ends the process where that cannot be.
        if not low_files.sockets() - sockets:
            self.close()
            raise NftMissingError(
                f"{LIBRARY} needs a descriptor below {low_files.SELECT_MOST}, and so many files "
                "are open: open the session before all others"
            )
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str, *, terse: bool = False, json: bool = True) -> bytes:
        """Run commands in one transaction: all or nothing. Returns what they list, as JSON.

        A list that is terse leaves out what is in sets, and the kernel is not asked for it. One
        that is no JSON is in the language of nft(8).

        Raises:
            NftError: The library or the kernel refused.
        """
        flags = _OUTPUT_NUMERIC_SYMBOL | json * _OUTPUT_JSON | terse * _OUTPUT_TERSE
        self._library.nft_ctx_output_set_flags(self._context, flags)
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        error: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            raise NftError(_first_error(error.decode(errors="replace")))
        return output

    def close(self) -> None:
        """Free the context; may be called twice."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
            low_files.keep(int(self._lent))


class Nft:
    """A session in a namespace, in a thread that does nothing else.

    Args:
        netns: A name below `/run/netns`; None is where the agent is.
    """

    def __init__(self, netns: str | None) -> None:
        self._netns = netns
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nft")
        self._session: NftSession | None = None
        self._kernel: KernelSocket | None = None

    async def run(self, commands: str) -> None:
        """Put commands in force, all in one transaction or none.

        A cancellation waits for the kernel's answer first, so that what stands is known.

        Raises:
            NftError: Refused; nothing changed.
            NftMissingError: The library is not there.
            OSError: There is no such namespace.
        """
        await self.in_thread(lambda: self._opened().run(commands))

    async def transact(self, messages: Sequence[Message]) -> None:
        """Put changes in force without the library, all or none.

        Raises:
            NftError: Refused; nothing changed.
            OSError: There is no such namespace.
        """

        def work() -> None:
            if self._kernel is None:
                self._kernel = KernelSocket()
            self._kernel.transact(messages)

        await self.in_thread(work)

    async def read(self, command: str, *, terse: bool = False) -> list[dict[str, Any]]:
        """What a command lists, as the objects of libnftables-json(5).

        Raises:
            NftError: There is nothing of that name.
            NftMissingError: The library is not there.
            OSError: There is no such namespace.
        """
        output = await self.in_thread(lambda: self._opened().run(command, terse=terse))
        return read_objects(output)

    async def read_text(self, command: str, *, terse: bool = False) -> str:
        """What a command lists, in the language of nft(8).

        Raises:
            NftError: There is nothing of that name.
        """
        output = await self.in_thread(lambda: self._opened().run(command, terse=terse, json=False))
        return output.decode()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something else in the session's thread, and therefore in its namespace."""

        def entered() -> T:
            self._opened()
            return work()

        future = asyncio.get_running_loop().run_in_executor(self._thread, entered)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def close(self) -> None:
        """Free the session and end its thread."""
        for one in (self._session, self._kernel):
            if one is not None:
                await asyncio.get_running_loop().run_in_executor(self._thread, one.close)
        self._thread.shutdown(wait=False)

    def _opened(self) -> NftSession:
        if self._session is None:
            if self._netns is not None:
                namespace.enter(self._netns)
            self._session = NftSession()
        return self._session


def read_objects(output: bytes) -> list[dict[str, Any]]:
    """The objects in an answer, which may be several documents one after the other."""
    found: list[dict[str, Any]] = []
    for document in output.splitlines():
        if document:
            found += msgspec.json.decode(document)["nftables"]
    return [thing for thing in found if "metainfo" not in thing]


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NftMissingError(
            f"{LIBRARY} cannot be loaded; install the package {PACKAGE} ({error})"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _first_error(text: str) -> str:
    """The first complaint and the line it is about, which the library underlines with ^^^."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("^ ")]
    if not lines:
        return "the library gives no reason; is the agent root?"
    return ": ".join(line.partition("Error: ")[2] or line for line in lines[:2])[:400]
