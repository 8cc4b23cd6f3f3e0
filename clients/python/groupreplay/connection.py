"""Where the service is and how to log in: the settings that every command has, and what a client makes of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from groupreplay.allocator import expect_large_blocks
from groupreplay.errors import InvalidRequestError
from groupreplay.group_messages import GroupStub
from groupreplay.request_ids import METADATA, current_request_id, new_request_id
from groupreplay.tracing import TRACEPARENT, current_traceparent
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub

_Metadata = tuple[tuple[str, str], ...]
File = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How a client shows who it is, and whom it trusts.

    Raises:
        InvalidRequestError: a certificate without its key or the reverse, or a token that cannot travel in a header.
    """

    token: str = field(default="", repr=False)
    tls: bool = False
    ca_file: File = None
    cert_file: File = None
    key_file: File = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidRequestError("a cert_file needs its key_file, and the reverse; pass both or neither")
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise InvalidRequestError("the token has characters that no token has; it is one word, grt.NAME.SECRET")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return what a channel needs for TLS; None = no TLS.

        Raises:
            OSError: a file cannot be read.
        """
        if not (self.tls or self.ca_file or self.cert_file):
            return None
        ca, key, cert = (Path(it).read_bytes() if it else None for it in (self.ca_file, self.key_file, self.cert_file))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def stub(self, channel: grpc.Channel | grpc.aio.Channel) -> Any:
        """Return the generated stub of the service, whose every call shows the token and has a request id."""
        return ReplayServiceStub(self._named(channel))

    def group_stub(self, channel: grpc.Channel | grpc.aio.Channel) -> GroupStub:
        """Return the stub of the calls that carry groups, which are named and show the token too."""
        return GroupStub(self._named(channel))

    def _named(self, channel: grpc.Channel | grpc.aio.Channel) -> grpc.Channel:
        metadata = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return cast(grpc.Channel, _LoggedInChannel(channel, metadata))


class _LoggedInChannel:
    """A channel whose every call carries metadata. (An interceptor would cost each message of a stream.)"""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: _Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return unary_unary and the like, as generated stubs call them."""
        make = getattr(self._channel, name)

        def prepared(*arguments: Any, **options: Any) -> Callable[..., Any]:
            call = make(*arguments, **options)

            def named(*arguments: Any, **options: Any) -> Any:
                name = current_request_id() or new_request_id()
                parent = current_traceparent()
                traced = ((TRACEPARENT, parent),) if parent else ()
                return call(*arguments, metadata=(*self._metadata, (METADATA, name), *traced), **options)

            return named

        return prepared


_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Servers are replicas: where a name stands for several, each call goes to the next that answers.
    ("grpc.lb_policy_name", "round_robin"),
    # By default a name is looked up every 30 s at most: as long as a call may take, while old servers go.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]


def open_channel(address: str, login: Login) -> grpc.Channel:
    """Return a channel to host:port, unix:path, or whatever else gRPC can resolve."""
    expect_large_blocks()
    credentials = login.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


def open_async_channel(address: str, login: Login) -> grpc.aio.Channel:
    """Return what open_channel does, for coroutines."""
    expect_large_blocks()
    credentials = login.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the service is, and how to log in. Settings of commands extend it."""

    server: str = "127.0.0.1:50051"
    """Address of the replay service, host:port; dns:///host:port where the name stands for several servers."""
    token: str = field(default="", repr=False)
    """Token to log in with, grt.NAME.SECRET; better in the environment (GROUPREPLAY_TOKEN does for all commands) or in
    a file than in a flag, which other users of the machine can see."""
    token_file: Path | None = None
    """File with the token, read at the start."""
    tls: bool = False
    """Connect by TLS, and trust the certificates that come with grpc."""
    ca_file: Path | None = None
    """Connect by TLS, and trust these certificates (PEM)."""
    cert_file: Path | None = None
    """Our certificate (PEM), where the service asks for one."""
    key_file: Path | None = None
    """Private key (PEM) of our certificate."""

    def login(self) -> dict[str, Any]:
        """Return the arguments of a client beside its address.

        Raises:
            InvalidRequestError: there are two tokens.
            OSError: the file of the token cannot be read.
        """
        if self.token and self.token_file:
            raise InvalidRequestError("there are a token and a token_file; keep one of them")
        return {
            "token": self.token_file.read_text().strip() if self.token_file else self.token,
            "tls": self.tls,
            "ca_file": self.ca_file,
            "cert_file": self.cert_file,
            "key_file": self.key_file,
        }
