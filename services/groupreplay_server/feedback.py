"""Holds what callers feed back of groups to what the groups are, before anything of it is stored."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from groupreplay.errors import InvalidRequestError
from groupreplay.log_ratios import MAX_LOG_RATIO_BYTES
from groupreplay.types import GroupFeedback
from groupreplay.v1.group_pb2 import GroupHeader
from groupreplay_server.limits import MAX_BATCH_SIZE
from groupreplay_server.store.redis_store import RedisStore


async def checked_feedback(
    store: RedisStore, run: str, table: str, feedback: Sequence[GroupFeedback]
) -> Sequence[GroupFeedback]:
    """Return feedback that may be stored: log ratios of groups that the table does not hold are left out.

    Groups never change, so that what is right when it is looked at stays right.

    Raises:
        InvalidRequestError: it is about too many groups, has too many log ratios, or not one for each response token.
    """
    if len(feedback) > MAX_BATCH_SIZE:
        raise InvalidRequestError(f"feedback on {len(feedback)} groups in one call, at most {MAX_BATCH_SIZE}")
    with_ratios = [item for item in feedback if item.log_ratios is not None]
    if not with_ratios:
        return feedback
    total = sum(np.asarray(item.log_ratios).nbytes for item in with_ratios)
    if total > MAX_LOG_RATIO_BYTES:
        raise InvalidRequestError(
            f"the log_ratios of {len(with_ratios)} groups are {total} bytes in one call, at most {MAX_LOG_RATIO_BYTES};"
            " feed back those of fewer groups, the others by UpdatePriorities if you want them"
        )
    headers = await store.read_headers(run, table, [item.group_id for item in with_ratios])
    known = set()
    for item, header in zip(with_ratios, headers, strict=True):
        if header is not None:
            _check_length(item, sum(GroupHeader.FromString(header).response_lengths))
            known.add(item.group_id)
    return [
        item if item.log_ratios is None or item.group_id in known else replace(item, log_ratios=None)
        for item in feedback
    ]


def _check_length(item: GroupFeedback, tokens: int) -> None:
    given = len(np.asarray(item.log_ratios))
    if given != tokens:
        raise InvalidRequestError(
            f"group {item.group_id}: {given} log_ratios came, and its responses have {tokens} tokens; send one for each"
            " token of every response, NaN where there is none"
        )
