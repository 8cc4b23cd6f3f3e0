"""Groups whose every value follows from their id and policy version, so that whoever gets one can check it."""

import zlib

import numpy as np

from groupreplay import RolloutGroup

_EOS, _FIRST, _TOKENS = 1, 2, 16
_LONG = 3000


def make_group(group_id: str, *, version: int, producer_id: str, long: bool) -> RolloutGroup:
    """Return the group of an id: three in five are effective; where `long`, one in eight has 9000 tokens."""
    digest = zlib.crc32(group_id.encode())
    lengths = np.array([_LONG] * 3 if long and digest % 8 == 0 else [2, 3, 2 + digest % 4], np.int32)
    tokens = (np.arange(lengths.sum(), dtype=np.int32) * 7 + digest % 1009) % _TOKENS + _FIRST
    tokens[np.cumsum(lengths) - 1] = _EOS
    return RolloutGroup(
        group_id=group_id,
        prompt_id=f"prompt-{digest % 997}",
        prompt_token_ids=np.array([5, 6, 7], np.int32),
        response_token_ids=tokens.astype(np.int32),
        response_lengths=lengths,
        behaviour_logprobs=(-(tokens % 5 + 1) / 4).astype(np.float32),
        rewards=np.array([1.0, 0.0, 0.0] if digest % 5 < 3 else [1.0, 1.0, 1.0], np.float32),
        policy_version_min=version,
        policy_version_max=version,
        producer_id=producer_id,
    )


def is_intact(group: RolloutGroup) -> bool:
    """Return whether a group that came back is the one that its id stands for."""
    sent = make_group(group.group_id, version=0, producer_id="", long=len(group.response_token_ids) > _LONG)
    return all(
        np.array_equal(getattr(sent, name), getattr(group, name))
        for name in ("response_token_ids", "response_lengths", "behaviour_logprobs", "rewards")
    )
