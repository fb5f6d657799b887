"""`decisec token …`: tokens for development, keys to sign them with, and revoking any."""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from decisec.cli import revocations
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, endpoint, state_of
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show, show_json

app = typer.Typer(invoke_without_command=True)
revocations.register(app)

_DURATION = re.compile(r"(\d{1,9})(s|m|h|d)?", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ASKED_WITHIN_S = 5.0


class Algorithm(StrEnum):
    """Kinds of keys that a gateway takes from a key set."""

    EDDSA = "EdDSA"
    ES256 = "ES256"
    RS256 = "RS256"


KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="Sign with this key: a private JWK (from `keygen`), or a shared secret.",
        dir_okay=False,
        show_default="that of the local stack",
    ),
]


@app.callback(epilog=EPILOG)
def token(
    context: typer.Context,
    customer: Annotated[
        str, typer.Option(help="Whose token; none for --scope admin alone.", show_default="demo")
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What for: vms:read, vms:write, usage:read, admin; repeatable.",
            show_default="all of a customer's",
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="So long it is good: 90s, 15m, 12h, 7d.")] = "7d",
    subject: Annotated[str, typer.Option(help="Who asks: stands in the audit.")] = "developer",
    key: KeyFile = None,
    issuer: Annotated[str, typer.Option(help="With --key: what the gateway expects.")] = "",
    audience: Annotated[str, typer.Option(help="With --key: what the gateway expects.")] = "",
    api_url: ApiUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
    as_json: Json = False,
) -> int:
    """Print a token for development; make keys; revoke tokens.

    The token is one that the stack on a state directory takes, or, with --key, one for a gateway
    that takes that key. Where the gateway is known (it runs here, or is named by --api-url) it is
    asked; a token that it does not take ends with exit code 5.
    """
    if context.invoked_subcommand is not None:
        return Exit.OK
    from decisec.devkit.keys import NotAKeyError
    from decisec.devkit.tokens import AUDIENCE, ISSUER, mint

    scopes = _scopes(scope)
    state_dir = state_of(state_dir)
    whose = _customer(customer, scopes)
    ttl_s = _seconds(expires)
    if (issuer or audience) and key is None:
        raise CommandError("--issuer and --audience: only with --key", Exit.USAGE, "usage")
    try:
        minted = mint(
            _key(key, state_dir),
            whose,
            scopes,
            ttl_s,
            issuer or ISSUER,
            audience or AUDIENCE,
            subject,
        )
    except NotAKeyError as error:
        raise CommandError(f"--key: {error}", Exit.USAGE, "usage") from error
    accepted = _accepted(minted, api_url, state_dir, ttl_s)
    if as_json:
        show_json(
            {
                "token": minted,
                "customer": whose,
                "scopes": scopes,
                "expires_in_s": ttl_s,
                "accepted": accepted,
            }
        )
    else:
        sys.stdout.write(f"{minted}\n")
    return Exit.DENIED if accepted is False else Exit.OK


@app.command(epilog=EPILOG)
def keygen(
    alg: Annotated[Algorithm, typer.Option(help="Kind of key.")] = Algorithm.EDDSA,
    key: Annotated[
        Path, typer.Option(help="Where the private key goes; must be new.", dir_okay=False)
    ] = Path("token-key.json"),
    jwks: Annotated[
        Path,
        typer.Option(
            help="Key set for gateways; the public key is added if there is one.", dir_okay=False
        ),
    ] = Path("jwks.json"),
    as_json: Json = False,
) -> None:
    """Make a key pair: a private key to sign with, and its public part in a key set (JWKS).

    Give the set to gateways as DECISEC_GATEWAY_JWKS, and the private key to nobody.
    """
    from decisec.dev.state import write_private
    from decisec.devkit.keys import NotAKeyError, generate, key_set, public_of

    if key.exists():
        raise CommandError(
            f"--key: {key} exists; tokens may be signed with it. Take another name",
            Exit.USAGE,
            "exists",
        )
    private = generate(alg.value)
    try:
        known = jwks.read_bytes() if jwks.exists() else None
        published = key_set(known, public_of(private))
        write_private(key, json.dumps(private, indent=2).encode() + b"\n")
        # The set is for everybody to read; nobody ever finds half of it.
        fresh = jwks.with_name(f".{jwks.name}.fresh")
        fresh.write_bytes(published)
        fresh.chmod(0o644)
        fresh.replace(jwks)
    except NotAKeyError as error:
        raise CommandError(f"--jwks: {error}", Exit.USAGE, "usage") from error
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", Exit.FAILED, "failed") from error
    if as_json:
        show_json({"kid": private["kid"], "alg": alg.value, "key": str(key), "jwks": str(jwks)})
        return
    show(f"{alg.value} key {private['kid']}: private in {key}, public in {jwks}")


def _scopes(given: list[str] | None) -> list[str]:
    from decisec.devkit.tokens import ADMIN, ALL_SCOPES

    if not given:
        return list(ALL_SCOPES)
    found = [word for text in given for word in text.split()]
    for word in found:
        if word not in (*ALL_SCOPES, ADMIN):
            raise CommandError(
                f"--scope: {word[:40]!r} is none of {', '.join((*ALL_SCOPES, ADMIN))}",
                Exit.USAGE,
                "usage",
            )
    return found


def _customer(given: str, scopes: list[str]) -> str | None:
    from decisec.devkit.tokens import ADMIN
    from schemas.errors import InvalidIdError
    from schemas.ids import token as checked

    if not given and set(scopes) == {ADMIN}:
        return None
    try:
        return checked(given or "demo")
    except InvalidIdError as error:
        raise CommandError(f"--customer: {error}", Exit.USAGE, "usage") from error


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS_S[found[2] or "s"] if found else 0
    if not 0 < seconds < 2**40:
        raise CommandError(
            f"--expires: {text[:40]!r} is no time such as 90s, 15m, 12h or 7d", Exit.USAGE, "usage"
        )
    return seconds


def _key(file: Path | None, state_dir: Path) -> bytes:
    from decisec.dev.state import StateDir

    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:
            raise CommandError(f"--key: {file}: {error.strerror}", Exit.USAGE, "usage") from error
    state = StateDir(state_dir)
    if not state.key_file.exists():
        raise CommandError(
            f"no stack has run on {state_dir}: start `decisec dev` first, or give --key",
            Exit.NOT_FOUND,
            "no_stack",
        )
    return state.key()


def _accepted(minted: str, api_url: str, state_dir: Path, ttl_s: int) -> bool | None:
    """Whether the gateway that the token is for takes it; None if it cannot be asked."""
    import httpx

    from schemas.tokens import MAX_TOKEN_LIFETIME_S

    if ttl_s > MAX_TOKEN_LIFETIME_S:
        say("no gateway takes this token: it lives longer than 30 days")
        return False
    local = endpoint(state_dir)
    url = api_url or (local.api_url if local else "")
    if not url:
        say(f"no gateway runs on {state_dir} now, and none is named: the token is not tried")
        return None
    headers: dict[str, Any] = {"Authorization": f"Bearer {minted}"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/v1/whoami", headers=headers, timeout=_ASKED_WITHIN_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        say(f"the gateway at {url} cannot be asked whether it takes the token: {error}")
        return None
    match answer.status_code:
        case httpx.codes.OK:
            return True
        case httpx.codes.UNAUTHORIZED:
            say(
                f"the gateway at {url} does not take this token: its key, issuer, audience or "
                "lifetime is not what the gateway is set to"
            )
            return False
        case status:
            say(f"the gateway at {url} cannot say whether it takes the token: it answers {status}")
            return None
