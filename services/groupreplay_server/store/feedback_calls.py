"""Calls that carry feedback: log ratios are written like payloads, beside those of their groups, and read back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from groupreplay.errors import DurabilityNotReachedError, GroupReplayError, StoreUnavailableError
from groupreplay.log_ratios import log_ratios_to_bytes
from groupreplay.table_config import Durability
from groupreplay.types import GroupFeedback
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import translated_errors
from groupreplay_server.store.fields import feedback_records
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.records import LogRatiosToKeep, ReadGroup
from groupreplay_server.store.scripts import Value, call_script


async def call_with_feedback(
    redis: Backend,
    name: str,
    keys: TableKeys,
    values: Mapping[str, Value],
    feedback: Sequence[GroupFeedback],
    *,
    durability: Durability = Durability.MEMORY,
) -> Any:
    """Run a script that takes feedback, and return its answer. Log ratios that it does not keep become garbage."""
    ratios = {
        index: LogRatiosToKeep(token_hex(8), log_ratios_to_bytes(item.log_ratios))
        for index, item in enumerate(feedback)
        if item.log_ratios is not None
    }
    payloads = {keys.payload(f"{feedback[index].group_id}/{it.ref}"): it.data for index, it in ratios.items()}
    try:
        with translated_errors():
            return await call_script(
                redis,
                name,
                keys.all(),
                values,
                feedback_records(feedback, ratios),
                payloads=payloads,
                durability=durability,
            )
    except GroupReplayError as error:
        # After the others the script has run, or may have, and the index may name them.
        if payloads and not isinstance(error, DurabilityNotReachedError | StoreUnavailableError):
            with translated_errors():
                await redis.remove_payloads(payloads)
        raise


async def with_log_ratios(redis: Backend, keys: TableKeys, group: ReadGroup) -> ReadGroup:
    """Return a group with the bytes of its log ratios; without, where newer ones have taken their place meanwhile."""
    if group.log_ratios is None:
        return group
    with translated_errors():
        [data] = await redis.read_payloads([keys.payload(f"{group.group_id}/{group.log_ratios.ref}")])
    return replace(group, log_ratios=None if data is None else replace(group.log_ratios, data=data))
