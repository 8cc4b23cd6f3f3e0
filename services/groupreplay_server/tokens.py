"""The use cases of tokens, and who a shown token belongs to."""

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import replace

from groupreplay.errors import InvalidRequestError, QuotaExceededError, UnauthenticatedError
from groupreplay.groups import check_name, now_ms
from groupreplay.tokens import Token, hash_secret, split_bearer
from groupreplay_server.admin_token import AdminTokenFile
from groupreplay_server.store.token_store import StoredToken, TokenStore

REVOKED_WITHIN_S = 5.0
"""A token that another server revoked is refused after so many seconds at most."""
RELOAD_PAUSE_S = 0.05
"""Between two looks for names that are not known: whoever guesses names costs Redis 20 reads a second, not more."""
MAX_TOKENS = 10_000

_NO_SHA256 = bytes(32)


class Tokens:
    """All tokens, as Redis had them some seconds ago at most: a call costs no round trip of its own."""

    def __init__(
        self,
        store: TokenStore,
        admin: AdminTokenFile | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        """Tokens are those of the store, and the one in the admin's file. clock counts seconds."""
        self._store = store
        self._admin = admin
        self._clock = clock
        self._now_ms = wall_clock_ms
        self._known: dict[str, StoredToken] = {}
        self._read_at = float("-inf")
        self._changes = 0
        self._reading = asyncio.Lock()

    async def create(self, token: Token, secret_sha256: bytes) -> Token:
        """Make a token known; the same again changes nothing."""
        if len(secret_sha256) != 32:
            raise InvalidRequestError(f"secret_sha256 is {len(secret_sha256)} bytes long; SHA-256 has 32")
        if self._admin is not None and token.name == self._admin.NAME:
            raise InvalidRequestError(f"{token.name!r} is the token of --admin-token-file; take another name")
        if token.expires_at_ms and token.expires_at_ms <= self._now_ms():
            raise InvalidRequestError(f"token {token.name!r} would expire at {token.expires_at_ms}, which has passed")
        if await self._store.count() >= MAX_TOKENS:
            raise QuotaExceededError(f"there are {MAX_TOKENS} tokens, which is the most; revoke expired ones")
        created = await self._store.add(
            StoredToken(token=replace(token, created_at_ms=self._now_ms()), secret_sha256=secret_sha256)
        )
        self._read_anew()
        return created

    async def list(self) -> list[Token]:
        """Return all, by name."""
        return [stored.token for _, stored in sorted((await self._store.all()).items())]

    async def revoke(self, name: str) -> Token:
        """Take a token back; this server refuses it from now on."""
        check_name(name, "token name")
        revoked = await self._store.remove(name)
        self._read_anew()
        return revoked

    async def authenticate(self, bearer: str) -> Token:
        """Return the token that a caller showed.

        Raises:
            UnauthenticatedError: it is none of ours, was revoked or has expired. The message does not quote it.
        """
        if self._admin is not None and (admin := self._admin.match(bearer)):
            return admin
        try:
            name, secret = split_bearer(bearer)
        except ValueError as error:
            raise UnauthenticatedError(f"the token cannot be ours: {error}") from None
        stored = await self._find(name)
        # Compared for names that are unknown too, or the time would tell which names there are.
        matches = hmac.compare_digest(stored.secret_sha256 if stored else _NO_SHA256, hash_secret(secret))
        if stored is None or not matches:
            raise UnauthenticatedError(
                f"token {name[:128]!r} is not known, or its secret is another; `groupreplay token create` makes one"
            )
        if 0 < stored.token.expires_at_ms <= self._now_ms():
            raise UnauthenticatedError(f"token {name!r} has expired; ask an admin for a new one")
        return stored.token

    async def _find(self, name: str) -> StoredToken | None:
        asked_at = self._clock()
        if asked_at - self._read_at > REVOKED_WITHIN_S or name not in self._known:
            await self._read_after(asked_at)
        return self._known.get(name)

    async def _read_after(self, asked_at: float) -> None:
        """Return once all tokens were read, by this call or another, no earlier than asked_at."""
        async with self._reading:
            if self._read_at >= asked_at:
                return
            await asyncio.sleep(max(0.0, self._read_at + RELOAD_PAUSE_S - self._clock()))
            read_at, changes = self._clock(), self._changes
            self._known = await self._store.all()
            if changes == self._changes:  # or what was read may be from before the change
                self._read_at = read_at

    def _read_anew(self) -> None:
        """Let no call that comes from now on go by what was read before."""
        self._changes += 1
        self._read_at = float("-inf")
