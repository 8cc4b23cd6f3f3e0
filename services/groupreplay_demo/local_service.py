"""A service with a Redis of its own on this machine, for as long as a block lasts."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groupreplay import Client, GroupReplayError
from groupreplay_demo.children import Child, stop_all

_POLL_S = 0.25
_START_TIMEOUT_S = 60.0


class DemoError(RuntimeError):
    """The demo cannot run here; the message says what is in the way."""


@contextmanager
def local_service(folder: Path, *, grpc_listen: str, http_listen: str) -> Iterator[Child]:
    """Start the service, wait until it answers, stop it at the end.

    Args:
        folder: of its Redis, its log and its ready file.
        grpc_listen, http_listen: free addresses, so that one that is killed comes back where it was.

    Raises:
        DemoError: it does not answer.
        ChildFailedError: it ended by itself.
    """
    ready_file = folder / "ready.json"
    ready_file.unlink(missing_ok=True)
    flags = {
        "--grpc-listen": grpc_listen,
        "--http-listen": http_listen,
        "--data-dir": folder / "redis",
        "--ready-file": ready_file,
    }
    service = Child("serve", ["serve", *(str(part) for item in flags.items() for part in item)], folder=folder)
    try:
        service.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready_file.exists():
            if not service.check() or time.monotonic() > deadline:
                raise DemoError(f"the service does not start; {folder / 'serve.log'} says why")
            time.sleep(_POLL_S)
        yield service
    finally:
        stop_all([service])


def free_address(what: str, address: str, flag: str) -> str:
    """Return the address, with a free port in place of port 0.

    Raises:
        DemoError: somebody listens there; the message says who where that can be known.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_server((host or "127.0.0.1", int(port))) as probe:
            return f"{host}:{probe.getsockname()[1]}"
    except OSError as error:
        who = "a groupreplay service answers there, perhaps another demo's" if _is_groupreplay(address) else "in use"
        raise DemoError(
            f"{what} cannot listen on {address}: {who} ({error.strerror}); stop it, or pass {flag} {host}:0"
        ) from error


def _is_groupreplay(address: str) -> bool:
    try:
        with Client(address, timeout_s=1.0) as client:
            client.list_tables()
    except GroupReplayError:
        return False
    return True
