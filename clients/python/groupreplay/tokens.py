"""Bearer tokens: what one allows, and how a new one is made."""

import hashlib
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from groupreplay.errors import InvalidRequestError
from groupreplay.groups import check_name
from groupreplay.v1 import replay_service_pb2 as pb

PREFIX = "grt"
"""What every token begins with, so that scanners of leaked secrets can know one."""
SECRET_BYTES = 32


class Scope(StrEnum):
    """What a token allows; docs/howto/secure-the-service.md lists the calls."""

    PRODUCER = "producer"
    """Insert groups, ask for admission, beat; look at tables and the policy clock."""
    CONSUMER = "consumer"
    """Take batches and end them, make tables, publish policies, read groups."""
    ADMIN = "admin"
    """Everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as the service knows it: without its secret.

    Raises:
        InvalidRequestError: a name has characters that the service refuses, or expires_at_ms is below 0.
    """

    name: str
    """Names it in lists and in the audit log."""
    scope: Scope
    """What it allows: producer, consumer or admin."""
    run: str = ""
    """The only run that it is for; empty = all runs."""
    expires_at_ms: int = 0
    """Unix milliseconds; 0 = it does not expire."""
    created_at_ms: int = 0
    """Unix milliseconds."""

    def __post_init__(self) -> None:
        check_name(self.name, "token name")
        if self.run:
            check_name(self.run, "run")
        if not 0 <= self.expires_at_ms < 2**53:
            raise InvalidRequestError(f"expires_at_ms {self.expires_at_ms} is not in 0 to {2**53 - 1}; 0 = never")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token with its secret, which exists here and nowhere else."""

    token: Token
    secret: str = field(repr=False)
    """What callers show: grt.NAME.SECRET."""

    @classmethod
    def generate(cls, token: Token) -> Self:
        """Give a token a secret of 256 bits from the system's cryptographic source."""
        return cls(token=token, secret=f"{PREFIX}.{token.name}.{secrets.token_urlsafe(SECRET_BYTES)}")

    @property
    def secret_sha256(self) -> bytes:
        """What the service keeps of the secret."""
        return hash_secret(split_bearer(self.secret)[1])


def split_bearer(bearer: str) -> tuple[str, str]:
    """Return name and secret of a token as callers show it.

    Raises:
        ValueError: it is not of the form grt.NAME.SECRET. The message does not quote it.
    """
    prefix, _, rest = bearer.partition(".")
    name, _, secret = rest.rpartition(".")
    if prefix != PREFIX or not name or not secret:
        raise ValueError(f"it is not of the form {PREFIX}.NAME.SECRET")
    return name, secret


def hash_secret(secret: str) -> bytes:
    """Return the SHA-256 of a secret.

    A slow hash (bcrypt, Argon2) makes guessing dear where secrets are few, as passwords are. Of 2^256 equally likely
    ones nobody guesses any, however quick the hash is; a slow one would only cost every server time on every call.
    """
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def token_to_proto(token: Token) -> pb.Token:
    """Return the message of a token."""
    return pb.Token(
        name=token.name,
        scope=pb.Scope.Value(token.scope.name),
        run=token.run,
        expires_at_ms=token.expires_at_ms,
        created_at_ms=token.created_at_ms,
    )


def token_from_proto(message: pb.Token) -> Token:
    """Return the token of a message.

    Raises:
        InvalidRequestError: a field is missing or out of range.
    """
    if message.scope not in {pb.PRODUCER, pb.CONSUMER, pb.ADMIN}:
        raise InvalidRequestError(f"scope {message.scope} of token {message.name!r} is not producer, consumer or admin")
    return Token(
        name=message.name,
        scope=Scope[pb.Scope.Name(message.scope)],
        run=message.run,
        expires_at_ms=message.expires_at_ms,
        created_at_ms=message.created_at_ms,
    )
