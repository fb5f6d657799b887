"""Settings from an optional TOML file and `DECISEC_*` variables, validated before anything starts.

A field `nats_url` of the common settings is `DECISEC_NATS_URL`, and a top-level key of the file;
a field `host_id` of the section `agent` is `DECISEC_AGENT_HOST_ID`, and a key of the table
`[agent]`. Variables win over the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from runtime.errors import SettingsError

PREFIX = "DECISEC_"

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every service takes.

    Attributes:
        nats_url: One or more addresses, comma separated; `tls://` encrypts, or does not connect.
        nats_credentials: Path of a file of `decisec bus credentials issue`; empty for none.
        nats_ca: PEM file of the authority that the servers' certificates come from; empty for
            those that the system trusts. Encrypts as `tls://` does.
        nats_certificate: PEM file of the certificate to show, where the servers want one.
        nats_key: PEM file of its key.
        http_host: Address for `/healthz`, `/readyz` and `/metrics`.
        http_port: Port for the same; 0 takes a free one and logs it.
        log_level: `debug`, `info`, `warning` or `error`.
        grace_s: How long a stop may take before what is left is cancelled.
        otlp_endpoint: Base address of an OTLP/HTTP collector for traces; empty for none.
    """

    nats_url: Annotated[str, msgspec.Meta(min_length=1)] = "nats://127.0.0.1:4222"
    nats_credentials: str = ""
    nats_ca: str = ""
    nats_certificate: str = ""
    nats_key: str = ""
    http_host: str = "127.0.0.1"
    http_port: Port = 0
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"
    grace_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 15.0
    otlp_endpoint: str = ""


S = TypeVar("S", bound=CommonSettings)


def load(
    kind: type[S],
    section: str,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """Read the settings of one service.

    Args:
        kind: A subclass of `CommonSettings`; its own fields form the section.
        section: The service's word in variables and file, such as `agent`.
        env: Variables; the process's own by default.
        file: A TOML file; by default the one that `DECISEC_CONFIG` names, if any.

    Raises:
        SettingsError: Something is missing, unknown or out of range. Says which variable or key.
    """
    env = os.environ if env is None else env
    if file is None and env.get(f"{PREFIX}CONFIG"):
        file = Path(env[f"{PREFIX}CONFIG"])
    common = set(CommonSettings.__struct_fields__)
    own = set(kind.__struct_fields__) - common
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    if file is not None:
        _take_file(file, section, common, values, names)
    for variable, value in env.items():
        if not variable.startswith(PREFIX):
            continue
        key = variable.removeprefix(PREFIX).lower()
        if key.startswith(f"{section}_"):
            key = key.removeprefix(f"{section}_")
            if key not in own | common:
                raise SettingsError(
                    f"{variable}: no such setting; the section '{section}' has "
                    f"{', '.join(sorted(own | common))}"
                )
        elif key not in common or f"{PREFIX}{section}_{key}".upper() in env:
            continue
        values[key] = value
        names[key] = variable
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), names, section)) from error


def _take_file(
    file: Path, section: str, common: set[str], values: dict[str, Any], names: dict[str, str]
) -> None:
    try:
        document = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from error
    table = document.get(section, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{file}: '{section}' must be a table")
    for key, value in document.items():
        if not isinstance(value, dict):
            if key not in common:
                raise SettingsError(f"{file}: no such setting: '{key}'")
            values[key] = value
            names[key] = f"'{key}' in {file}"
    for key, value in table.items():
        values[key] = value
        names[key] = f"'{section}.{key}' in {file}"


def _explain(message: str, names: Mapping[str, str], section: str) -> str:
    for key in sorted(names, key=len, reverse=True):
        if f"$.{key}" in message or f"`{key}`" in message:
            return f"{names[key]}: {message}"
    missing = message.rpartition("required field `")[2].rstrip("`")
    if missing and missing != message:
        return f"{PREFIX}{section}_{missing}".upper() + ": not set, and it has no default"
    return message
