"""The batcher's settings: one store, and no password where it could be read."""

from __future__ import annotations

import pytest

from batcher.settings import BatcherSettings
from runtime.errors import SettingsError
from runtime.settings import load


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"store_path": "/x", "store_url": "http://db"}, "exactly one"),
        ({"store_url": "clickhouse://db"}, "http"),
        ({"store_url": "http://"}, "http"),
        ({"store_url": "http://db:port"}, "http"),
        ({"store_url": "http://u:secret@db"}, "STORE_PASSWORD"),
        ({"store_path": "/x", "store_cluster": "main"}, "no replicas"),
    ],
)
def test_an_unusable_store_is_refused(settings: dict[str, str], words: str) -> None:
    """The error names the variable and does not repeat a password."""
    with pytest.raises(SettingsError, match=words) as caught:
        BatcherSettings(**settings).check()  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_coarser_figures_are_kept_at_least_as_long_as_finer_ones() -> None:
    """Hours that expire before the minutes they are made of would leave a hole in the answers."""
    wrong = BatcherSettings(store_path="/x", usage_days=365, usage_hour_days=364)
    with pytest.raises(SettingsError, match=r"USAGE_HOUR_DAYS is less than .*USAGE_DAYS"):
        wrong.check()


def test_the_password_is_not_shown() -> None:
    """Neither `repr` nor `str` of the settings holds it."""
    settings = BatcherSettings(store_url="http://u@db:8123", store_password="hunter2")
    settings.check()
    assert "hunter2" not in f"{settings} {settings!r}"


def test_databases_and_clusters_are_plain_names() -> None:
    """What goes into a statement as it is may hold no quote."""
    with pytest.raises(SettingsError, match="DECISEC_BATCHER_DATABASE"):
        load(BatcherSettings, "batcher", env={"DECISEC_BATCHER_DATABASE": "a`b"})
    with pytest.raises(SettingsError, match="DECISEC_BATCHER_STORE_CLUSTER"):
        load(BatcherSettings, "batcher", env={"DECISEC_BATCHER_STORE_CLUSTER": "a'b"})
