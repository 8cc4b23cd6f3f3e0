"""How the ranks of a trainer divide a batch: whole groups, and as many tokens for each as can be.

outline = client.lease_batch(run="math", table="train", batch_size=64, lease_id="trainer-7")  # on one rank
mine = share_groups(outline.groups, world_size)[rank]  # the same on every rank that is told the outline
groups = client.read_lease(mine, run="math", table="train", lease_id="trainer-7")
"""

from collections.abc import Sequence

from groupreplay.types import GroupOutline


def share_groups(groups: Sequence[GroupOutline], world_size: int) -> list[tuple[str, ...]]:
    """Return the ids of the groups of each of world_size ranks, each in the order of the batch."""
    shares = share_by_tokens([group.tokens for group in groups], world_size)
    return [tuple(groups[index].group_id for index in share) for share in shares]


def share_by_tokens(tokens: Sequence[int], shares: int) -> list[tuple[int, ...]]:
    """Return the indices of each share, ascending: every index is in one, and the sums of tokens are much alike.

    The longest goes first, to whoever has least; no share has more than 4/3 of the best possible largest one. The
    same arguments give the same shares on every machine. A share is empty only where there are fewer items than shares.

    Args:
        tokens: at least 1 each.
        shares: at least 1.

    Raises:
        ValueError: a number is below 1.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies (longest processing time first).
    """
    if shares < 1 or min(tokens, default=1) < 1:
        raise ValueError(f"{shares} shares of items with {min(tokens, default=1)} tokens or more: both begin at 1")
    found: list[list[int]] = [[] for _ in range(shares)]
    sums = [0] * shares
    for index in sorted(range(len(tokens)), key=lambda index: (-tokens[index], index)):
        least = sums.index(min(sums))
        found[least].append(index)
        sums[least] += tokens[index]
    return [tuple(sorted(share)) for share in found]
