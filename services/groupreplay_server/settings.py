"""Settings of the service: flags, or GROUPREPLAY_SERVE_* environment variables."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from groupreplay.logs import LogFormat
from groupreplay.tracing import TraceSettings
from groupreplay_server.certificates import TlsFiles
from groupreplay_server.rate_limiter import RateLimits
from groupreplay_server.store.address import RedisAccess
from groupreplay_server.store.durability import WaitLimits


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the service runs."""

    grpc_listen: str = "127.0.0.1:50051"
    """host:port for gRPC; :port = on all addresses of the machine, port 0 = a free one."""
    http_listen: str = "127.0.0.1:8080"
    """host:port for REST, the page at /ui/, the Atropos API, /openapi.json, /healthz, /readyz and /metrics; as
    grpc_listen takes it."""
    atropos_table: str = ""
    """RUN/TABLE that the Atropos API serves at the root of http_listen too, for clients whose server URL has no path.
    Every table has it at /atropos/RUN/TABLE."""
    redis_url: str = field(default="", repr=False)
    """Redis to use: redis://HOST:PORT/0 or unix://PATH; redis+sentinel://HOST:PORT,HOST:PORT/SERVICE-NAME for the
    master behind Sentinels; redis+cluster://HOST:PORT,HOST:PORT for a Redis Cluster. rediss in place of redis = TLS.
    Empty = run a private one in data_dir."""
    redis_username: str = ""
    """ACL user of Redis, where the URL names none."""
    redis_password: str = field(default="", repr=False)
    """Password of Redis, where the URL has none; better in the environment or in a file than in a flag."""
    redis_password_file: Path | None = None
    """File with the password of Redis, read at the start."""
    redis_sentinel_username: str = ""
    """ACL user of the Sentinels, which have users of their own."""
    redis_sentinel_password_file: Path | None = None
    """File with the password of the Sentinels, read at the start."""
    redis_ca_file: Path | None = None
    """Certificates (PEM) that Redis must be signed by under TLS. Default: the system's."""
    redis_cert_file: Path | None = None
    """Our certificate (PEM) under TLS, where Redis asks for one."""
    redis_key_file: Path | None = None
    """Private key (PEM) of our certificate."""
    durability_min_replicas: int = 1
    """Replicas that have a change of durability `replicas` before it is acknowledged."""
    durability_wait_s: float = 5.0
    """Seconds after which a change that is not as durable as asked is answered with DURABILITY_NOT_REACHED."""
    data_dir: Path = Path("groupreplay-data")
    """Folder of the private Redis: its append-only file and log."""
    redis_appendfsync: Literal["always", "everysec", "no"] = "everysec"
    """When the private Redis syncs to disk: always = an acknowledged group survives a power cut."""
    payload_cache_bytes: int = 256 * 2**20
    """Bytes of payloads that this server keeps in memory beside Redis, those that it wrote or read last; a draw of
    them costs Redis next to nothing. 0 = none."""
    tokens: bool = False
    """Ask every caller for a token. `groupreplay token` makes them; the first comes from admin_token_file."""
    admin_token_file: Path | None = None
    """File with a token that may do everything, at least 32 characters; read again when it changes. Implies tokens."""
    insecure: bool = False
    """Listen beyond loopback without tokens, and without a warning where there is no TLS."""
    open_metrics: bool = False
    """Show /metrics without a token. It names runs and tables."""
    tls_cert_file: Path | None = None
    """Our certificate (PEM, the whole chain) for gRPC and HTTP; read again when it changes. Unset = no TLS."""
    tls_key_file: Path | None = None
    """Private key (PEM) of our certificate."""
    tls_client_ca_file: Path | None = None
    """Certificates (PEM) that clients must be signed by: mutual TLS. Unset = clients need no certificate."""
    audit_log: Path | None = None
    """Append a JSON line to this file for each call of an admin; they are in the log in any case."""
    max_calls_per_s: float | None = None
    """Calls per second of each token, on average, in this server; 2 seconds' worth at once. Unset = unlimited."""
    max_bytes_per_s: float | None = None
    """Bytes in and out per second of each token, on average, in this server. Unset = unlimited."""
    max_connection_age_s: float | None = None
    """Seconds after which a gRPC connection takes no more calls, so that its client looks for servers that came since;
    running calls go on. Unset = connections last; set it where there are several servers behind one name."""
    drain_s: float = 10.0
    """Seconds that running calls get to end on SIGTERM."""
    ready_file: Path | None = None
    """Write the addresses as JSON to this file once the service answers."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages to log."""
    log_format: LogFormat = "text"
    """text: lines for people; json: an object a line, with the request id and what the call was about."""
    trace: TraceSettings = field(default_factory=TraceSettings)

    def redis_access(self) -> RedisAccess:
        """Return how to log in to Redis.

        Raises:
            OSError: a password file cannot be read.
            ValueError: they contradict each other.
        """
        if self.redis_password and self.redis_password_file:
            raise ValueError("there are a redis_password and a redis_password_file; keep one of them")
        access = RedisAccess(
            username=self.redis_username,
            password=self.redis_password or _read_password(self.redis_password_file),
            sentinel_username=self.redis_sentinel_username,
            sentinel_password=_read_password(self.redis_sentinel_password_file),
            ca_file=self.redis_ca_file,
            cert_file=self.redis_cert_file,
            key_file=self.redis_key_file,
        )
        if not self.redis_url and access != RedisAccess():
            raise ValueError("users, passwords and certificates are for --redis-url, and that is empty")
        return access

    def wait_limits(self) -> WaitLimits:
        """Return how long to wait for durability, and for how many replicas."""
        return WaitLimits(min_replicas=self.durability_min_replicas, timeout_s=self.durability_wait_s)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether callers must show a token."""
        return self.tokens or self.admin_token_file is not None

    def tls_files(self) -> TlsFiles | None:
        """Return where our certificates lie; None = no TLS.

        Raises:
            OSError: one of the pair is missing.
        """
        if self.tls_cert_file is None and self.tls_key_file is None and self.tls_client_ca_file is None:
            return None
        if self.tls_cert_file is None or self.tls_key_file is None:
            raise OSError("TLS needs --tls-cert-file and --tls-key-file; pass both or neither")
        return TlsFiles(
            cert_file=self.tls_cert_file, key_file=self.tls_key_file, client_ca_file=self.tls_client_ca_file
        )

    def rate_limits(self) -> RateLimits:
        """Return the limits of each caller; the age of connections is checked with them.

        Raises:
            OSError: one is not above 0.
        """
        for name in ("max_calls_per_s", "max_bytes_per_s", "max_connection_age_s"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise OSError(
                    f"--{name.replace('_', '-')} {value} must be finite and above 0; leave it out for no limit"
                )
        return RateLimits(calls_per_s=self.max_calls_per_s, bytes_per_s=self.max_bytes_per_s)


def _read_password(path: Path | None) -> str:
    return path.read_text().rstrip("\r\n") if path else ""
