"""`groupreplay token`: who may call the service."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table as Grid

from groupreplay import InvalidRequestError, NewToken, Scope, Token
from groupreplay.groups import now_ms
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.keeping import ARGUMENT
from groupreplay_admin.output import age, clean, console, to_json

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings(ServiceSettings):
    """What a new token allows.

    Raises:
        InvalidRequestError: expires_in is no duration.
    """

    scope: Scope | None = None
    """create: producer inserts groups; consumer takes batches, makes tables and publishes policies; admin does all."""
    run: str = ""
    """create: the only run that it is for. Default: all runs."""
    expires_in: str = ""
    """create: how long it is good, a number with s, m, h or d: 12h, 30d. Default: until it is revoked."""
    secret_file: Path | None = None
    """create: write the token to this new file, which only you can read, in place of standard output."""
    json: bool = False
    """Print JSON, for programs."""

    def __post_init__(self) -> None:
        self.expires_at_ms()

    def expires_at_ms(self) -> int:
        """Return when a token made now ends, Unix milliseconds; 0 = never."""
        if not self.expires_in:
            return 0
        found = re.fullmatch(r"(\d{1,6})([smhd])", self.expires_in)
        if found is None or not int(found[1]):
            raise InvalidRequestError(f"expires_in {self.expires_in!r} is no number with s, m, h or d, such as 30d")
        return now_ms() + int(found[1]) * _UNITS_S[found[2]] * 1000


_DEFAULTS = TokenSettings()


def token(
    what: Annotated[Literal["create", "list", "revoke"], ARGUMENT],
    name: Annotated[str, ARGUMENT] = "",
    /,
    *,
    settings: TokenSettings = _DEFAULTS,
) -> int:
    """Make, list or revoke the tokens that callers log in with. Needs a token of scope admin that is for all runs.

    A new token is printed once, and kept nowhere: the service has a hash of it.

    Parameters
    ----------
    what
        create = make one of this name; list = show all, without their secrets; revoke = take one back: every server
        refuses it within 5 seconds.
    name
        Name of the token, in lists and in the audit log.
    """
    if (what == "list") == bool(name):
        raise InvalidRequestError(f"token {what} takes {'no name' if name else 'the name of a token'}")
    if what == "create":
        return _create(name, settings)
    with open_client(settings) as client:
        if what == "list":
            _list(client.list_tokens(), as_json=settings.json)
        else:
            revoked = client.revoke_token(name)
            print(to_json(revoked) if settings.json else clean(f"revoked {describe(revoked)}"))
    return 0


def _create(name: str, settings: TokenSettings) -> int:
    if settings.scope is None:
        raise InvalidRequestError("token create needs --scope producer, consumer or admin; give as little as will do")
    wanted = Token(name=name, scope=settings.scope, run=settings.run, expires_at_ms=settings.expires_at_ms())
    new = NewToken.generate(wanted)
    with open_client(settings) as client:
        if settings.secret_file is not None:  # first, so that no token is made whose secret is nowhere
            settings.secret_file.touch(mode=0o600, exist_ok=False)
            settings.secret_file.write_text(new.secret + "\n")
        try:
            made = client.create_token(new)
        except BaseException:
            if settings.secret_file is not None:
                settings.secret_file.unlink()
            raise
    shown = {"secret": new.secret} if settings.secret_file is None else {"secret_file": str(settings.secret_file)}
    if settings.json:
        print(to_json({"token": made, **shown}))
        return 0
    print(clean(f"made {describe(made)}"), file=sys.stderr)
    if settings.secret_file is None:
        print(new.secret)
    return 0


def _list(tokens: Sequence[Token], *, as_json: bool) -> None:
    if as_json:
        print(to_json(tokens))
        return
    grid = Grid(box=None, pad_edge=False)
    for heading in ("token", "scope", "run", "made", "ends"):
        grid.add_column(heading)
    for it in tokens:
        made = f"{age((now_ms() - it.created_at_ms) / 1000)} ago"
        grid.add_row(it.name, it.scope, it.run or "(all)", made, _ends(it))
    console().print(grid if tokens else "no tokens; `groupreplay token create NAME --scope producer` makes one")


def _ends(token: Token) -> str:
    if not token.expires_at_ms:
        return "never"
    left_s = (token.expires_at_ms - now_ms()) / 1000
    return f"in {age(left_s)}" if left_s > 0 else "has expired"


def describe(token: Token) -> str:
    """Return a token in a line."""
    runs = f"run {token.run}" if token.run else "all runs"
    ends = f", ends {_ends(token)}" if token.expires_at_ms else ""
    return f"token {token.name}: {token.scope}, {runs}{ends}"
