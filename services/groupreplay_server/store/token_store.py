"""Tokens in Redis: one hash, since they are few and read together."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from groupreplay.errors import InternalError, TokenExistsError, UnknownTokenError
from groupreplay.tokens import Scope, Token
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.keys import TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """A token, and what its secret is compared with."""

    token: Token
    secret_sha256: bytes = field(repr=False)


class TokenStore:
    """Tokens of all runs."""

    def __init__(self, redis: Backend) -> None:
        """Use this Redis, which the caller opens and closes."""
        self._redis = redis

    async def add(self, new: StoredToken) -> Token:
        """Keep a token; the same again changes nothing.

        Raises:
            TokenExistsError: another of this name is there.
        """
        name = new.token.name
        with translated_errors():
            await self._redis.hsetnx(TOKENS, name, _pack(new))
            found = await self._redis.hget(TOKENS, name)
        if found is None:  # revoked in between: the caller's order of events had it so
            return new.token
        existing = _unpack(name, text(found))
        if (existing.secret_sha256, _terms(existing.token)) != (new.secret_sha256, _terms(new.token)):
            raise TokenExistsError(f"there is a token {name!r} already; revoke it first, or take another name")
        return existing.token

    async def remove(self, name: str) -> Token:
        """Forget a token; return what it was.

        Raises:
            UnknownTokenError: there is none of this name.
        """
        with translated_errors():
            found = await self._redis.hget(TOKENS, name)
            removed = found is not None and await self._redis.hdel(TOKENS, name)
        if found is None or not removed:
            raise UnknownTokenError(f"there is no token {name!r}; list them to see which there are")
        return _unpack(name, text(found)).token

    async def count(self) -> int:
        """Return how many there are."""
        with translated_errors():
            return int(await self._redis.hlen(TOKENS))

    async def all(self) -> dict[str, StoredToken]:
        """Return all by name."""
        with translated_errors():
            found = await self._redis.hgetall(TOKENS)
        return {text(name): _unpack(text(name), text(packed)) for name, packed in found.items()}


def _terms(token: Token) -> tuple[Scope, str, int]:
    return token.scope, token.run, token.expires_at_ms


def _pack(stored: StoredToken) -> str:
    return json.dumps(asdict(stored.token) | {"secret_sha256": stored.secret_sha256.hex()})


def _unpack(name: str, packed: str) -> StoredToken:
    try:
        fields: dict[str, Any] = json.loads(packed)
        secret_sha256 = bytes.fromhex(fields.pop("secret_sha256"))
        return StoredToken(token=Token(**fields | {"scope": Scope(fields["scope"])}), secret_sha256=secret_sha256)
    except (ValueError, TypeError, KeyError) as error:
        raise InternalError(f"what Redis has of token {name!r} in {TOKENS} is not ours; HDEL it") from error
