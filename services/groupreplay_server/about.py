"""What the service runs on."""

import asyncio
import shutil
from pathlib import Path

from groupreplay import __version__
from groupreplay.groups import now_ms
from groupreplay.server_info import ServerInfo
from groupreplay_server.store.redis_store import RedisStore


class About:
    """Facts for operators."""

    def __init__(self, store: RedisStore, *, redis_url: str, data_dir: Path | None, min_replicas: int) -> None:
        """redis_url has no password; data_dir is that of a private Redis."""
        self._store = store
        self._redis_url = redis_url
        self._data_dir = data_dir
        self._min_replicas = min_replicas
        self._started_at_ms = now_ms()

    async def info(self) -> ServerInfo:
        """Return what is known now."""
        disk = await asyncio.to_thread(shutil.disk_usage, self._data_dir) if self._data_dir else None
        return ServerInfo(
            version=__version__,
            time_ms=now_ms(),
            started_at_ms=self._started_at_ms,
            redis_url=self._redis_url,
            embedded_redis=self._data_dir is not None,
            disk_free_bytes=disk.free if disk else 0,
            disk_total_bytes=disk.total if disk else 0,
            redis=await self._store.redis_servers(),
            durability_min_replicas=self._min_replicas,
        )
