"""The folder that a server's configuration is made in: settings, registry, keys, and what it reads.

`bus.json` (settings), `credentials.json` (registry), `audit.log`, `nats-server.conf`,
`accounts.conf`, `local.conf`, `tls/`, `credentials/`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from decisec.bus.accounts import accounts, rendered
from decisec.bus.certificates import make_authority, make_certificate
from decisec.bus.files import write_secret, write_whole
from decisec.bus.keys import checked_public_key, new_seed
from decisec.bus.registry import Credential, Registry, read_registry, write_registry
from decisec.bus.roles import EDGE_API, Roles, shipped
from decisec.bus.server import process_of, reload, try_out
from runtime.clock import utc_now
from runtime.credentials import API_PREFIX, inbox_prefix, public_key_of
from runtime.errors import FatalError
from runtime.streams import Replicas, declared
from schemas.errors import InvalidIdError
from schemas.ids import RESERVED_CUSTOMERS, token

_CUSTOMER = "customer"
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class BusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs from one server to the next.

    Attributes:
        listen: `host:port` for clients.
        monitor: The same for what the server tells of itself; of this machine only.
        store_dir: Where the streams are.
        max_storage_bytes: What they may take together, on this server.
        replicas: Copies of each stream; the account's limit counts all of them.
        certificate: PEM file; relative ones are below the folder.
        key: PEM file.
        authority: PEM file of the CA.
        client_certificates: Whether clients must show one, too.
    """

    server_name: _Text
    listen: _Text
    monitor: _Text = "127.0.0.1:8222"
    store_dir: _Text
    max_storage_bytes: Annotated[int, msgspec.Meta(gt=0)]
    replicas: Replicas = 1
    certificate: _Text = "tls/server.pem"
    key: _Text = "tls/server.key"
    authority: _Text = "tls/ca.pem"
    client_certificates: bool = False


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A new credential.

    Attributes:
        path: Its file; None where the seed is somebody else's.
        inbox_prefix: What its inboxes begin with.
    """

    credential: Credential
    inbox_prefix: str
    path: str | None = None


class BusFolder:
    """One such folder.

    Args:
        root: Where it is.
        roles: What each role may do; those that ship by default.
    """

    def __init__(self, root: Path, roles: Roles | None = None) -> None:
        self.root = root.absolute()
        self.roles = roles or shipped()
        self.config = self.root / "nats-server.conf"
        self.authority = self.root / "tls" / "ca.pem"
        self._authority_key = self.root / "tls" / "ca.key"
        self._pid_file = self.root / "nats-server.pid"

    def init(self, settings: BusSettings, tls_hosts: Sequence[str]) -> None:
        """Make the folder. Where `tls/ca.pem` or the server's certificate are there, they stay.

        Raises:
            FatalError: It is one already, or cannot be made.
        """
        if (self.root / "bus.json").exists():
            raise FatalError(f"{self.root} is a bus already; see `decisec bus config`")
        try:
            for folder in (self.root, self.root / "tls", self.root / "credentials"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FatalError(f"{self.root} cannot be made: {error.strerror}") from error
        if not self._path(settings.certificate).exists():
            if not self.authority.exists():
                make_authority(self.authority, self._authority_key, "decisec bus")
            self.certificate("server", tls_hosts)
        if not (self.root / "local.conf").exists():
            write_whole(self.root / "local.conf", b"# What this machine needs besides.\n")
        write_whole(self.root / "bus.json", _pretty(settings))
        self.write_config()
        self._audit("bus.initialised", listen=settings.listen)

    def certificate(self, name: str, hosts: Sequence[str]) -> tuple[Path, Path]:
        """Make a certificate from the folder's own authority, for a server or a client.

        Raises:
            FatalError: The name is none or taken, or the authority is elsewhere.
        """
        try:
            token(name)
        except InvalidIdError as error:
            raise FatalError(str(error)) from error
        made, key = self.root / "tls" / f"{name}.pem", self.root / "tls" / f"{name}.key"
        make_certificate(self.authority, self._authority_key, made, key, name, hosts)
        return made, key

    @property
    def settings(self) -> BusSettings:
        """What `init` was told.

        Raises:
            FatalError: There is no bus here.
        """
        path = self.root / "bus.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=BusSettings)
        except FileNotFoundError as error:
            raise FatalError(f"there is no bus in {self.root}: `decisec bus init`") from error
        except (OSError, msgspec.DecodeError) as error:
            raise FatalError(f"{path} cannot be read: {error}") from error

    @property
    def registry(self) -> Registry:
        """Who was given credentials."""
        return read_registry(self.root / "credentials.json")

    def issue(
        self, role: str, name: str, *, public_key: str = "", out: Path | None = None
    ) -> tuple[Issued, str]:
        """Give somebody credentials. They are good once the server has read its configuration.

        Args:
            role: Of `roles`.
            name: The host or customer, or what tells one from the next.
            public_key: Of a seed that was made elsewhere, and stays there.
            out: The file to write; below the folder by default.

        Returns:
            What was issued, and the seed, empty where it was made elsewhere.

        Raises:
            FatalError: There is no such role, the name or key is none or reserved, or a file is in
                the way.
        """
        if role not in self.roles.names:
            raise FatalError(f"there is no role {role!r}; there are {', '.join(self.roles.names)}")
        try:
            token(name)
        except InvalidIdError as error:
            raise FatalError(str(error)) from error
        if role == _CUSTOMER and name in RESERVED_CUSTOMERS:
            raise FatalError(f"no customer can be called {name}: the name is reserved")
        seed = "" if public_key else new_seed()
        key = checked_public_key(public_key) if public_key else public_key_of(seed)
        with self._locked():
            registry = self.registry.issued(role, name, key, utc_now())
            path: Path | None = None
            if seed:
                path = out or self.root / "credentials" / f"{role}-{name}-{key[1:9].lower()}.creds"
                write_secret(path, self._credentials_file(role, name, key, seed))
            self._write_config(registry)
            write_registry(self.root / "credentials.json", registry)
            self._audit("credentials.issued", role=role, name=name, public_key=key)
        issued = Issued(
            credential=registry.credentials[-1],
            inbox_prefix=inbox_prefix(key),
            path=str(path) if path else None,
        )
        return issued, seed

    def revoke(self, public_keys: Sequence[str]) -> tuple[Credential, ...]:
        """Take credentials back; effective once the server has read its configuration.

        Raises:
            FatalError: One was never issued, or is revoked already.
        """
        with self._locked():
            known = {one.public_key: one for one in self.registry.good}
            for key in public_keys:
                if key not in known:
                    raise FatalError(f"no credentials with the public key {key} are good")
            registry = self.registry.revoked(public_keys, utc_now())
            # In this order: whatever fails now, the next configuration is without them.
            write_registry(self.root / "credentials.json", registry)
            self._write_config(registry)
            for key in public_keys:
                one = known[key]
                self._audit("credentials.revoked", role=one.role, name=one.name, public_key=key)
        return tuple(one for one in registry.credentials if one.public_key in public_keys)

    def write_config(self) -> None:
        """Make the server's configuration anew; the former one stays if the server refuses it.

        Raises:
            FatalError: The server would refuse it, or it cannot be written.
        """
        with self._locked():
            self._write_config(self.registry)

    def _write_config(self, registry: Registry) -> None:
        settings = self.settings
        unknown = {one.role for one in registry.good} - set(self.roles.names)
        if unknown:
            raise FatalError(f"credentials.json has roles that are none: {', '.join(unknown)}")
        max_bytes = settings.max_storage_bytes * settings.replicas
        found = accounts(self.roles, registry.good, declared(), max_bytes)
        new = {
            self.root / "accounts.conf": rendered(found).encode(),
            self.config: self._server_config(settings).encode(),
        }
        former = {path: path.read_bytes() for path in new if path.exists()}
        for path, data in new.items():
            write_whole(path, data)
        try:
            try_out(self.config)
        except BaseException:
            for path, data in former.items():
                write_whole(path, data)
            raise

    def reload(self) -> bool:
        """Have the server on this machine go by its configuration; false if none runs.

        Raises:
            TransientError: It does not.
        """
        pid = process_of(self._pid_file)
        if pid is None:
            return False
        reload(pid, self.settings.monitor)
        return True

    def _server_config(self, settings: BusSettings) -> str:
        text = resources.files("infra").joinpath("nats").joinpath("server.conf").read_text()
        values = {
            "server_name": json.dumps(settings.server_name),
            "listen": json.dumps(settings.listen),
            "monitor": json.dumps(settings.monitor),
            "pid_file": json.dumps(str(self._pid_file)),
            "certificate": json.dumps(str(self._path(settings.certificate))),
            "key": json.dumps(str(self._path(settings.key))),
            "ca": json.dumps(str(self._path(settings.authority))),
            "verify": json.dumps(settings.client_certificates),
            "store_dir": json.dumps(settings.store_dir),
            "max_storage": str(settings.max_storage_bytes),
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        return text

    def _credentials_file(self, role: str, name: str, public_key: str, seed: str) -> bytes:
        api = EDGE_API if role in self.roles.edge else API_PREFIX
        return (
            "# Credentials for decisec's bus. Whoever has this file is who it says: keep it 0600.\n"
            f"# role: {role}\n# name: {name}\n# public key: {public_key}\n"
            f"# inbox prefix: {inbox_prefix(public_key)}\n# api: {api}\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ).encode()

    def _path(self, given: str) -> Path:
        return self.root / given

    def _audit(self, event: str, **fields: str) -> None:
        line = {"at": utc_now().isoformat(), "event": event, "by": _who(), **fields}
        descriptor = os.open(
            self.root / "audit.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode=0o600
        )
        with os.fdopen(descriptor, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time."""
        self.settings  # noqa: B018 - says that there is no bus here
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _who() -> str:
    return f"{os.environ.get('SUDO_USER') or os.environ.get('USER') or os.getuid()}"


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
