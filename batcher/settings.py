"""Settings of the batcher."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from runtime.errors import SettingsError
from runtime.settings import CommonSettings

Days = Annotated[int, msgspec.Meta(ge=1, le=3650)]


class BatcherSettings(CommonSettings, frozen=True, kw_only=True):
    """What the batcher takes, on top of the common settings.

    Attributes:
        store_path: Directory of an embedded store (chDB), owned by this process alone.
        store_url: `http://user@host:8123` or `https://…` of a ClickHouse server instead.
        store_password: Password for `store_url`; best given as a variable.
        store_cluster: Keep the tables on all replicas of this cluster of the server's.
        database: Created if missing.
        flush_rows: A batch is sent once it holds this many rows,
        flush_bytes: or this many bytes of frames,
        flush_age_ms: or once its first frame has waited this long, in ms; longer, up to 500 ms,
            where the store is slow.
        samples_days: How long single ticks are kept.
        usage_days: How long the rollup per minute is kept; not shorter than ticks.
        usage_hour_days: How long the rollup per hour is kept; not shorter than minutes.
        usage_day_days: How long the rollup per day is kept; not shorter than hours.
        events_days: How long events of VMs and of metering are kept.
        audit_days: How long audit entries are kept.
        query_limit_s: Longest that a usage query may take.
        complete_margin_s: `complete_until` is never later than so long ago: what the ticks of a
            host that gets VMs may be behind (15 s), a record may take to be written (5 s), and
            the clocks of gateways and batchers may be apart.
    """

    store_path: str = ""
    store_url: str = ""
    store_password: str = ""
    store_cluster: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}$(?!\n)")] = ""
    database: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$(?!\n)")] = "decisec"
    flush_rows: Annotated[int, msgspec.Meta(ge=1, le=2_000_000)] = 200_000
    flush_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1_073_741_824)] = 67_108_864
    flush_age_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200
    samples_days: Days = 7
    usage_days: Days = 90
    usage_hour_days: Days = 730
    usage_day_days: Days = 2555
    events_days: Days = 730
    audit_days: Days = 2555
    query_limit_s: Annotated[int, msgspec.Meta(ge=1, le=300)] = 10
    complete_margin_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 30

    def __repr__(self) -> str:
        """Everything but the password."""
        shown = (
            f"{name}={'***' if name == 'store_password' else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"BatcherSettings({', '.join(shown)})"

    @property
    def embedded(self) -> bool:
        """Whether the store runs inside this process."""
        return bool(self.store_path)

    def check(self) -> None:
        """Refuse what no single field's type can.

        Raises:
            SettingsError: Not exactly one store is named, its address cannot be used, or something
                coarse is kept for a shorter time than what it is made of.
        """
        kept = ("samples_days", "usage_days", "usage_hour_days", "usage_day_days")
        for finer, coarser in pairwise(kept):
            if getattr(self, finer) > getattr(self, coarser):
                raise SettingsError(
                    f"DECISEC_BATCHER_{coarser.upper()} is less than "
                    f"DECISEC_BATCHER_{finer.upper()}: coarser figures are kept at least as long"
                )
        if bool(self.store_path) == bool(self.store_url):
            raise SettingsError(
                "set exactly one of DECISEC_BATCHER_STORE_PATH (embedded) and "
                "DECISEC_BATCHER_STORE_URL (ClickHouse server)"
            )
        if not self.store_url:
            if self.store_cluster:
                raise SettingsError(
                    "DECISEC_BATCHER_STORE_CLUSTER: an embedded store has no replicas; "
                    "give DECISEC_BATCHER_STORE_URL"
                )
            return
        try:
            parts = urlsplit(self.store_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError("DECISEC_BATCHER_STORE_URL: expected http[s]://[user@]host[:port]")
        if parts.password is not None:
            raise SettingsError(
                "DECISEC_BATCHER_STORE_URL: holds a password; "
                "give it as DECISEC_BATCHER_STORE_PASSWORD"
            )
