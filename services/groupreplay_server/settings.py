"""Settings of the service: flags, or GROUPREPLAY_SERVE_* environment variables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the service runs."""

    grpc_listen: str = "127.0.0.1:50051"
    """host:port for gRPC; port 0 takes a free one."""
    http_listen: str = "127.0.0.1:8080"
    """host:port for /healthz, /readyz and /metrics; port 0 takes a free one."""
    redis_url: str = ""
    """Redis to use: redis://, rediss:// or unix://. Empty = run a private one in data_dir."""
    data_dir: Path = Path("groupreplay-data")
    """Folder of the private Redis: its append-only file and log."""
    redis_appendfsync: Literal["always", "everysec", "no"] = "everysec"
    """When the private Redis syncs to disk: always = an acknowledged group survives a power cut."""
    drain_s: float = 10.0
    """Seconds that running calls get to end on SIGTERM."""
    ready_file: Path | None = None
    """Write the addresses as JSON to this file once the service answers."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages to log."""
