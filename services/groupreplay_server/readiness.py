"""Whether the service should get calls."""

from groupreplay.errors import GroupReplayError, ShuttingDownError
from groupreplay_server.store.redis_store import RedisStore


class Readiness:
    """Ready = not draining and Redis answers."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._draining = False

    def start_draining(self) -> None:
        """Be ready no more."""
        self._draining = True

    def check_taking_calls(self) -> None:
        """Raise ShuttingDownError where no new calls are taken."""
        if self._draining:
            raise ShuttingDownError("the service is draining; call again, another replica or its successor answers")

    async def obstacle(self) -> str | None:
        """Return what is in the way, or None when ready."""
        if self._draining:
            return "draining"
        try:
            await self._store.ping()
        except GroupReplayError as error:
            return str(error)
        return None
