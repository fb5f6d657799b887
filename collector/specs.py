"""The records of all VMs by VM id, fed by a mirror of the bucket `vm_specs`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from runtime.corrections import CorrectionIndex
from schemas.errors import InvalidIdError
from schemas.ids import parse_uuid
from schemas.subjects import vm_key
from schemas.vms import VmRecord

_log = structlog.get_logger("decisec.specs")

_MAX_MISSED = 65_536
DEFAULT_REGION = "local"


def missed_on(vm_id: bytes, host_id: str) -> bytes:
    """What to wait for where a VM's record names another host: it may just have moved."""
    return vm_id + host_id.encode()


def _unlabelled(record: VmRecord) -> VmRecord:
    """A record without what its owner may change at any time, and no sample depends on."""
    spec = msgspec.structs.replace(record.spec, labels={})
    return msgspec.structs.replace(record, spec=spec, name="", generation=1)


class SpecIndex:
    """VM id (16 bytes) to record. Records of deleted VMs stay as long as their bucket keeps them.

    Attributes:
        corrections: What operators have corrected of VMs' past.
        version: Grows with each change.
        missed_version: Grows when what was looked for in vain gets its record.
    """

    def __init__(self, wait_ns: int) -> None:
        self.corrections = CorrectionIndex()
        self.version = 0
        self.missed_version = 0
        self._wait_ns = wait_ns
        self._records: dict[bytes, VmRecord] = {}
        self._host_versions: dict[str, int] = {}
        self._regions: dict[str, str] = {}
        self._missed_at_ns: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    def get(self, vm_id: bytes) -> VmRecord | None:
        """The record of a VM."""
        return self._records.get(vm_id)

    def host_version(self, host_id: str) -> int:
        """Version of the last change that concerned a host."""
        return self._host_versions.get(host_id, 0)

    def region(self, host_id: str) -> str:
        """Region of the host's VMs, as the newest record of one says."""
        return self._regions.get(host_id, DEFAULT_REGION)

    def change(self, key: str, record: VmRecord | None) -> None:
        """Take over a change of the bucket; None for a key that is gone.

        A record that does not agree with its key, or claims a VM that is another customer's, is
        refused and logged: it could send one customer's usage to another one.
        """
        try:
            vm_id = parse_uuid(key.rpartition(".")[2]).bytes
        except InvalidIdError as error:
            _log.error("record.refused", key=key[:120], error=str(error))
            return
        old = self._records.get(vm_id)
        if old is not None and vm_key(old.customer_id, old.vm_id) != key:
            _log.error("record.refused", key=key, error="the VM is another customer's")
            return
        if record is None:
            self._records.pop(vm_id, None)
        elif vm_key(record.customer_id, record.vm_id) != key:
            _log.error("record.refused", key=key, error="key and value name different VMs")
            return
        else:
            self._records[vm_id] = record
            self._regions[record.host_id] = record.region
            if old is not None and _unlabelled(old) == _unlabelled(record):
                return  # no sample looks different for a name or a label
        self.version += 1
        for one in (old, record):
            for host_id in one.hosts if one is not None else ():
                self._host_versions[host_id] = self.version
        if record is not None:
            for missed in (vm_id, missed_on(vm_id, record.host_id)):
                if self._missed_at_ns.pop(missed, None) is not None:
                    self.missed_version = self.version

    def worth_waiting(self, missed: Iterable[bytes], now_ns: int) -> bool:
        """Whether any of these has been looked for only a short while.

        The gateway writes a record before the agent hears of the VM, so an unknown VM, or one
        that is on another host, is mostly one whose record is still on its way.

        Args:
            missed: Ids of VMs without a record, and `missed_on` of those that are elsewhere.
            now_ns: A clock that never goes back.
        """
        waiting = False
        for key in missed:
            since = self._missed_at_ns.get(key)
            if since is None:
                if len(self._missed_at_ns) >= _MAX_MISSED:
                    del self._missed_at_ns[next(iter(self._missed_at_ns))]
                self._missed_at_ns[key] = since = now_ns
            waiting = waiting or now_ns - since < self._wait_ns
        return waiting
