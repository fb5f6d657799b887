"""Who a service is on the bus: a credentials file, and what TLS takes.

A file of `decisec bus credentials issue` holds the seed of an nkey in the usual armour, and in
comments what the client must know of the server's layout (`# api: ...`). A `.creds` file with a
JWT, of a server that somebody else runs, is taken as well.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
import structlog

from runtime.errors import SettingsError
from runtime.settings import CommonSettings

_log = structlog.get_logger("decisec.bus")

API_PREFIX = "$JS.API"
"""What JetStream's requests begin with where a client is in the account of the streams."""

INBOXES = "_INBOX"
"""What the subjects begin with on which answers come; the next token is the asking user's key."""

REPLIES = "_R_"
"""The same for one who asks from another account: made, and kept apart, by the server."""

_SEED = re.compile(r"^(SU[A-Z2-7]{56})\s*$", re.M)
_JWT = "BEGIN NATS USER JWT"
_API = re.compile(r"^# api: ([A-Za-z0-9_$.-]{1,100})\s*$", re.M)
_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Credentials:
    """One user of the bus.

    Attributes:
        public_key: By which the server knows the user.
        seed: The secret; empty in what is not to be signed with.
        api: What JetStream's requests begin with.
        jwt_file: The `.creds` file, where the server wants a JWT.
    """

    public_key: str = ""
    seed: str = field(default="", repr=False)
    api: str = API_PREFIX
    jwt_file: str = ""

    @property
    def inbox_prefix(self) -> str:
        """What the user's inboxes begin with. Nobody else may subscribe there."""
        return inbox_prefix(self.public_key) if self.public_key else INBOXES


def inbox_prefix(public_key: str) -> str:
    """What the inboxes of a user begin with."""
    return f"{INBOXES}.{public_key}"


def is_inbox(subject: str) -> bool:
    """Whether answers may be sent there.

    Whoever asks names where the answer goes, and whoever answers may publish where the one who
    asks may not: an answer anywhere else would be a message in his name.
    """
    return subject.startswith((f"{INBOXES}.", f"{REPLIES}."))


def read_credentials(path: str) -> Credentials:
    """What a credentials file says; nothing for an empty path.

    Raises:
        SettingsError: It cannot be read, or holds no user's seed.
    """
    if not path:
        return Credentials()
    file = Path(path)
    try:
        text = file.read_text()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"DECISEC_NATS_CREDENTIALS: {path} cannot be read: {why}") from error
    if mode & _OTHERS:
        _log.warning("credentials.exposed", path=path, mode=f"{mode & 0o777:04o}", wanted="0600")
    found = _SEED.search(text)
    if found is None:
        raise SettingsError(f"DECISEC_NATS_CREDENTIALS: {path} holds no user's seed (SU...)")
    api = _API.search(text)
    return Credentials(
        public_key=public_key_of(found[1], path),
        seed=found[1],
        api=api[1] if api else API_PREFIX,
        jwt_file=path if _JWT in text else "",
    )


def public_key_of(seed: str, where: str = "the seed") -> str:
    """The public key of a user's seed.

    Raises:
        SettingsError: It is no such seed, or was damaged.
    """
    try:
        # The library itself does not look at the checksum.
        prefix, raw = nkeys.decode_seed(bytearray(seed.encode()))
        if nkeys.encode_seed(bytes(raw), prefix).decode() != seed:
            raise SettingsError(f"DECISEC_NATS_CREDENTIALS: {where} holds a damaged seed")
        pair = nkeys.from_seed(bytearray(seed.encode()))
        public_key = pair.public_key.decode()
        pair.wipe()
    except (nkeys.NkeysError, ValueError, TypeError) as error:
        raise SettingsError(f"DECISEC_NATS_CREDENTIALS: {where} holds a damaged seed") from error
    return str(public_key)


def tls_context(settings: CommonSettings) -> ssl.SSLContext | None:
    """How connections are encrypted; None where nothing asks for it.

    Raises:
        SettingsError: A file cannot be read, or half of a pair is missing.
    """
    wanted = "tls://" in settings.nats_url or settings.nats_ca or settings.nats_certificate
    if not wanted:
        return None
    if bool(settings.nats_certificate) != bool(settings.nats_key):
        raise SettingsError("DECISEC_NATS_CERTIFICATE and DECISEC_NATS_KEY go together")
    try:
        context = ssl.create_default_context(cafile=settings.nats_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"DECISEC_NATS_CA: {settings.nats_ca}: {_why(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.nats_certificate:
        try:
            context.load_cert_chain(settings.nats_certificate, settings.nats_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"DECISEC_NATS_CERTIFICATE: {settings.nats_certificate}: {_why(error)}"
            ) from error
    return context


def _why(error: OSError) -> str:
    return error.strerror or str(error)
