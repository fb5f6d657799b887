"""The state machine as the agent applies it: which verb may start where, and refusals."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import ErrorCode, ErrorInfo
from schemas.vms import TRANSITIONS, VmState

_S = VmState

PERMITTED: Mapping[str, frozenset[VmState]] = {
    "boot": frozenset({_S.CREATED, _S.STOPPED}),
    "shutdown": frozenset({_S.RUNNING, _S.PAUSED}),
    "delete": frozenset(_S) - {_S.DELETED},
    "pause": frozenset({_S.RUNNING}),
    "resume": frozenset({_S.PAUSED}),
    "reboot": frozenset({_S.RUNNING, _S.PAUSED}),
    "snapshot": frozenset({_S.RUNNING, _S.PAUSED}),
    "restore": frozenset({_S.CREATED, _S.STOPPED}),
    "discard": frozenset(_S) - {_S.DELETED},
}
"""States in which a verb may begin. `create` begins where there is no VM."""


class RefusedError(Exception):
    """The command has no effect, for a reason that goes back to who asked.

    Attributes:
        info: The reason.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.info = ErrorInfo(code=code, message=message)


class IllegalTransitionError(RuntimeError):
    """The agent itself tried a transition that the state machine does not have."""


def permit(verb: str, state: VmState) -> None:
    """Refuse a verb that may not begin in this state.

    Raises:
        RefusedError: With `illegal_transition`, or `unsupported` for verbs that no driver has.
    """
    allowed = PERMITTED.get(verb)
    if allowed is None:
        raise RefusedError(ErrorCode.UNSUPPORTED, f"this host cannot {verb} a VM")
    if state not in allowed:
        raise RefusedError(ErrorCode.ILLEGAL_TRANSITION, f"cannot {verb} a VM that is {state}")


def advance(state: VmState, to: VmState) -> VmState:
    """The state `to`, if it may follow `state`.

    Raises:
        IllegalTransitionError: It may not.
    """
    if to not in TRANSITIONS[state]:
        raise IllegalTransitionError(f"{state} cannot become {to}")
    return to
