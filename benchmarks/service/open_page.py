"""The calls of an open page: what a browser that shows a table asks of the service, without the browser."""

import asyncio
import json
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import quote, urlencode

from groupreplay_admin.load.crew import Go
from groupreplay_admin.load.tally import Tally

EVERY_S: Final = 2.0
"""Between two looks, as in services/groupreplay_server/ui/static/live.js."""
_STEPS: Final = 1000
_LATE_STEPS: Final = 32
_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPage:
    """Ask what the page of a table asks, every two seconds: its new steps, the policy, and whether a batch is ready.

    The page has read the steps that there are before the others begin. Its first look is a second after that, so that
    a trial of an even number of seconds has as many as it should.
    """

    address: str
    """host:port of the service's HTTP."""
    run_name: str
    table: str
    seconds: float

    async def run(self, go: Go) -> Tally:
        """Look until time is up; latencies are of whole looks."""
        loop = asyncio.get_running_loop()
        newest = await asyncio.to_thread(self._look, -1)
        await go()
        started = loop.time()
        latencies: list[float] = []
        while (due := started + EVERY_S * (len(latencies) + 0.5)) < started + self.seconds:
            await asyncio.sleep(due - loop.time())
            asked = time.perf_counter()
            newest = await asyncio.to_thread(self._look, newest)
            latencies.append(time.perf_counter() - asked)
        return Tally(groups=0, payload_bytes=0, seconds=loop.time() - started, latencies_s=latencies)

    def _look(self, newest: int) -> int:
        """Ask once; return the newest step."""
        connection = HTTPConnection(self.address, timeout=60.0)
        try:
            run = f"/v1/runs/{quote(self.run_name)}"
            query = {"limit": _STEPS} | ({"after_step": newest - _LATE_STEPS} if newest > _LATE_STEPS else {})
            history = _get(connection, f"{run}/tables/{quote(self.table)}/history?{urlencode(query)}")
            _get(connection, f"{run}/policy")
            _get(connection, f"{run}/tables/{quote(self.table)}/diagnosis?batch_size={_BATCH}")
        finally:
            connection.close()
        step = history["newest_step"]
        return -1 if step is None else int(step)


def _get(connection: HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    response = connection.getresponse()
    found: dict[str, Any] = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"the service answered {response.status} to {path}: {found}")
    return found
