"""Settings: where they come from, and errors that name the variable or key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from runtime.errors import SettingsError
from runtime.settings import CommonSettings, load


class AgentLike(CommonSettings, frozen=True, kw_only=True):
    """A service's settings as in the services."""

    host_id: str
    period_ms: Annotated[int, msgspec.Meta(ge=10, le=1000)] = 100


def test_variables_win_over_the_file_and_own_over_common(tmp_path: Path) -> None:
    """File, then DECISEC_X, then DECISEC_AGENT_X."""
    file = tmp_path / "decisec.toml"
    file.write_text('nats_url = "nats://file:1"\nlog_level = "debug"\n[agent]\nhost_id = "file"\n')
    env = {
        "DECISEC_NATS_URL": "nats://env:1",
        "DECISEC_HTTP_PORT": "1",
        "DECISEC_AGENT_HTTP_PORT": "2",
        "DECISEC_AGENT_PERIOD_MS": "200",
        "DECISEC_GATEWAY_HOST_ID": "someone-elses",
        "PATH": "/bin",
    }
    got = load(AgentLike, "agent", env=env, file=file)
    assert (got.nats_url, got.log_level, got.host_id) == ("nats://env:1", "debug", "file")
    assert (got.http_port, got.period_ms) == (2, 200)


def test_the_file_is_named_by_a_variable(tmp_path: Path) -> None:
    """DECISEC_CONFIG is the file."""
    file = tmp_path / "x.toml"
    file.write_text('[agent]\nhost_id = "h9"\n')
    assert load(AgentLike, "agent", env={"DECISEC_CONFIG": str(file)}).host_id == "h9"


@pytest.mark.parametrize(
    ("env", "text", "named"),
    [
        ({}, "", "DECISEC_AGENT_HOST_ID: not set"),
        ({"DECISEC_AGENT_HOST_ID": "h", "DECISEC_AGENT_PERIOD_MS": "5"}, "", "PERIOD_MS"),
        ({"DECISEC_AGENT_HOST_ID": "h", "DECISEC_AGENT_PERIOD_MS": "soon"}, "", "PERIOD_MS"),
        ({"DECISEC_AGENT_HOST_ID": "h", "DECISEC_AGENT_PERIODS": "1"}, "", "AGENT_PERIODS"),
        ({"DECISEC_AGENT_HOST_ID": "h", "DECISEC_LOG_LEVEL": "loud"}, "", "DECISEC_LOG_LEVEL"),
        ({"DECISEC_AGENT_HOST_ID": "h", "DECISEC_HTTP_PORT": "70000"}, "", "DECISEC_HTTP_PORT"),
        ({"DECISEC_AGENT_HOST_ID": "h"}, "nats = 1", "'nats'"),
        ({}, "[agent]\nhost_id = 3", "'agent.host_id'"),
        ({}, "[agent]\nhost_id = 'h'\nhots = 1", "'agent.hots'"),
        ({}, "agent = 3", "'agent' must be a table"),
        ({}, "= =", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, env: dict[str, str], text: str, named: str) -> None:
    """Missing, unknown, mistyped and out of range: the error names the variable or key."""
    file = tmp_path / "decisec.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(named)):
        load(AgentLike, "agent", env=env, file=file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that was named must be there."""
    with pytest.raises(SettingsError, match="cannot be read"):
        load(AgentLike, "agent", env={}, file=tmp_path / "none.toml")
