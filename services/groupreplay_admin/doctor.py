"""`groupreplay doctor`: is this deployment well, and if not, what to do."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cyclopts import Parameter
from rich.text import Text

from groupreplay import (
    Client,
    GroupReplayError,
    PermissionDeniedError,
    ServerInfo,
    ServiceUnavailableError,
    UnauthenticatedError,
)
from groupreplay.groups import now_ms
from groupreplay_admin.certificates import check_files, check_served, client_context
from groupreplay_admin.checks import (
    Check,
    Verdict,
    check_disk,
    check_open,
    check_redis,
    check_service,
    check_tokens,
    ok,
    problem,
)
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.output import clean, console, to_json
from groupreplay_admin.probes import ask_redis, check_http, check_port
from groupreplay_admin.statuses import Status

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSettings(ServiceSettings):
    """What to look at."""

    server: str = "127.0.0.1:50051"
    """Address of the replay service, host:port; none = look at no service, only at what the other flags name."""
    http: str = ""
    """host:port of the service's HTTP; none = not looked at. Default: port 8080 on the host of --server."""
    redis_url: str = field(default="", repr=False)
    """A Redis to look at by itself: redis://, rediss:// or unix://. That of the service needs no flag."""
    redis_ca_file: Path | None = None
    """Certificates (PEM) that the Redis of --redis-url must be signed by under TLS. Default: the system's."""
    grpc_listen: str = ""
    """host:port that a service shall listen on for gRPC: is it free?"""
    http_listen: str = ""
    """host:port that a service shall listen on for HTTP: is it free?"""
    tls_cert_file: Path | None = None
    """Certificate (PEM) that a service shall show: how long is it good?"""
    tls_key_file: Path | None = None
    """Its private key (PEM): do they fit?"""
    data_dir: Path | None = None
    """Folder that a service shall keep its Redis in: is there room?"""
    strict: bool = False
    """Exit with 3 for warnings too."""
    json: bool = False
    """Print a JSON list of checks, for programs."""

    @property
    def host_port(self) -> str:
        """host:port of the service; of any server that its name stands for."""
        return self.server.removeprefix("dns:///")


_DEFAULTS = DoctorSettings()


def doctor(settings: DoctorSettings = _DEFAULTS) -> int:
    """Check the service, its Redis, clocks, certificates and disk, and say what to mend.

    Takes nothing and changes nothing. What a service knows of its Redis it tells; --redis-url, --grpc-listen,
    --http-listen and --data-dir look at a place before a service runs there. Exits with 0 when nothing must be mended,
    3 when something must.
    """
    checks = []
    for check in _checks(settings):
        checks.append(check)
        if not settings.json:
            _print(check)
    if settings.json:
        print(to_json(checks))
    bad = {Verdict.PROBLEM, Verdict.WARNING} if settings.strict else {Verdict.PROBLEM}
    return Status.NOT_READY if any(check.verdict in bad for check in checks) else Status.DONE


def _print(check: Check) -> None:
    out = console()
    out.print(Text(f"{check.verdict.value:<8}", style=_STYLES[check.verdict]) + Text(clean(check.found)))
    if check.advice:
        out.print(Text(f"         -> {clean(check.advice)}"))


def _checks(settings: DoctorSettings) -> Iterator[Check]:
    if settings.server != "none":
        yield from _service_checks(settings)
    if settings.redis_url:
        yield from _redis_checks(settings)
    if settings.grpc_listen:
        yield check_port("grpc_port", settings.grpc_listen)
    if settings.http_listen:
        yield check_port("http_port", settings.http_listen)
    if settings.tls_cert_file:
        yield from check_files(settings.tls_cert_file, settings.tls_key_file)
    if settings.data_dir:
        usage = shutil.disk_usage(_existing(settings.data_dir))
        yield check_disk(str(settings.data_dir), usage.free, usage.total)


def _service_checks(settings: DoctorSettings) -> Iterator[Check]:
    context = client_context(settings)
    if context is not None:
        yield check_served(settings.host_port, context, timeout_s=settings.timeout_s)
    if settings.cert_file is not None:
        yield from check_files(settings.cert_file, None)
    with open_client(settings) as client:
        try:
            info, ahead_ms, took_ms = _ask(client)
        except GroupReplayError as error:
            yield _no_answer(settings.server, error)
            return
        yield ok("grpc", f"{settings.server} answers in {took_ms:.1f} ms")
        if settings.http != "none":
            address = settings.http or f"{settings.host_port.rpartition(':')[0] or '127.0.0.1'}:8080"
            yield check_http(address, is_named=bool(settings.http), timeout_s=settings.timeout_s, context=context)
        yield from check_service(info, ahead_ms=ahead_ms)
        tables = client.list_tables()
        yield _check_tokens(client, settings)
    for server in info.redis:
        yield from check_redis(server, tables, min_replicas=info.durability_min_replicas, now_ms=now_ms())


def _ask(client: Client) -> tuple[ServerInfo, float, float]:
    """Return what the service says, its clock minus ours in milliseconds, and how long it took to say so."""
    client.list_tables()  # connects
    asked_ms, started = time.time() * 1000, time.perf_counter()
    client.list_tables()
    took_ms = (time.perf_counter() - started) * 1000
    asked_ms = time.time() * 1000
    info = client.server_info()
    answered_ms = time.time() * 1000
    # The service looks at its clock somewhere between question and answer.
    ahead_ms = max(0.0, info.time_ms - answered_ms) or min(0.0, info.time_ms + 1 - asked_ms)
    return info, ahead_ms, took_ms


def _check_tokens(client: Client, settings: DoctorSettings) -> Check:
    """Judge who may call: everybody, or those with tokens that are still good."""
    tokens = client.list_tokens()
    if not (settings.token or settings.token_file):  # and yet it answered
        return check_open(settings.host_port)
    return check_tokens(tokens, now_ms=now_ms())


def _no_answer(server: str, error: GroupReplayError) -> Check:
    if isinstance(error, ServiceUnavailableError):
        advice = f"start groupreplay serve --grpc-listen {server}, pass --server, or --server none"
        return problem("grpc", str(error), advice)
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        advice = "pass --token-file with a token of scope admin for all runs: `groupreplay token create`"
        return problem("token", f"{server} answers, but: {error}", advice)
    return problem("grpc", f"{server} answers, but: {error}", "see the log of the service")


def _redis_checks(settings: DoctorSettings) -> Iterator[Check]:
    try:
        server = ask_redis(settings.redis_url, timeout_s=settings.timeout_s, ca_file=settings.redis_ca_file)
    except ImportError:
        advice = "pip install 'groupreplay[server]', or leave --redis-url out: the service tells of its own Redis"
        yield problem("redis", "the redis package is not installed here", advice)
    except OSError as error:
        yield problem("redis", str(error), "see that it runs, that the URL is right, and what its user may do")
    else:
        yield from check_redis(server, (), min_replicas=0, now_ms=now_ms())


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
