"""Whether the service should get calls."""

from groupreplay.errors import GroupReplayError
from groupreplay_server.store.redis_store import RedisStore


class Readiness:
    """Ready = not draining and Redis answers."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._draining = False

    def start_draining(self) -> None:
        """Be ready no more."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether no new calls are taken."""
        return self._draining

    async def obstacle(self) -> str | None:
        """Return what is in the way, or None when ready."""
        if self._draining:
            return "draining"
        try:
            await self._store.ping()
        except GroupReplayError as error:
            return str(error)
        return None
