"""What hosts say of VMs, and which of it counts: the word of the host that has the VM.

A status stands under the key `<host>.<customer>.<vm>`, and a host may write keys of its own only.
So whose word it is says the key, whatever stands in the status; two hosts never write over each
other, and which of them is heard decides the VM's record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import structlog

from runtime.telemetry import meter
from schemas.errors import InvalidIdError
from schemas.subjects import parse_status_key, vm_key
from schemas.vms import VmStatus

_log = structlog.get_logger("decisec.status_book")

_LOGGED_EVERY_S = 60.0

Forged = Callable[[str, str, str], None]
"""Called with the host that wrote, the key that it wrote, and what is wrong."""


class StatusBook:
    """Statuses by VM and host.

    Args:
        on_forged: Called with each status that is not what its key says.
    """

    def __init__(self, on_forged: Forged = lambda *_: None) -> None:
        self._on_forged = on_forged
        self._of_vm: dict[str, dict[str, VmStatus]] = {}
        self._logged_s: dict[str, float] = {}
        self._refused: Counter[str] = Counter()
        self._counter = meter().create_counter(
            "decisec_gateway_statuses_refused", description="Statuses that are not as their key"
        )

    def take(self, key: str, status: VmStatus | None) -> tuple[str, str] | None:
        """Take what was written under a key of the bucket, or that it was removed.

        Returns:
            The VM's key and the host whose word it is; None if it is nobody's.
        """
        try:
            host_id, customer_id, vm_id = parse_status_key(key)
        except InvalidIdError:
            self._refuse("", key, "bad_key")
            return None
        vm = vm_key(customer_id, vm_id)
        if status is None:
            told = self._of_vm.get(vm, {})
            told.pop(host_id, None)
            if not told:
                self._of_vm.pop(vm, None)
            return vm, host_id
        # Without a host the key is from before keys had one, and nobody can write it any more.
        writer = host_id or status.host_id
        if (status.host_id, status.customer_id, status.vm_id) != (writer, customer_id, vm_id):
            self._refuse(writer, key, "forged")
            return None
        told = self._of_vm.setdefault(vm, {})
        if host_id or writer not in told:
            told[writer] = status
        return vm, writer

    def get(self, key: str, host_id: str) -> VmStatus | None:
        """What a host last said of a VM."""
        told = self._of_vm.get(key)
        return told.get(host_id) if told is not None else None

    def _refuse(self, host_id: str, key: str, reason: str) -> None:
        self._counter.add(1, {"reason": reason})
        self._refused[reason] += 1
        self._on_forged(host_id, key, reason)
        now_s = time.monotonic()
        if now_s - self._logged_s.get(reason, -_LOGGED_EVERY_S) >= _LOGGED_EVERY_S:
            self._logged_s[reason] = now_s
            _log.error(
                "status.refused", reason=reason, written_by=host_id, key=key[:120],
                count=self._refused.pop(reason),
            )  # fmt: skip
