"""How admin commands reach the service: one place for its address, and for what it asks of its callers."""

from dataclasses import dataclass

from cyclopts import Parameter

from groupreplay import Client, Connection


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings(Connection):
    """Where the service is. Settings of commands extend it."""

    timeout_s: float = 10.0
    """Seconds to wait for the service."""


def open_client(settings: ServiceSettings, *, timeout_s: float | None = None) -> Client:
    """Return a client, to be entered; timeout_s holds for each call, None = that of the settings."""
    wait_s = settings.timeout_s if timeout_s is None else timeout_s
    return Client(settings.server, timeout_s=wait_s, **settings.login())
