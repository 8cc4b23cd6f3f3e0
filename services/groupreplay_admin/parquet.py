"""Snapshots as Parquet: one row for each rollout, a bounded part of the table in memory at a time."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groupreplay import RolloutGroup, SnapshotFile, SnapshotGroup
from groupreplay.v1 import group_pb2

ROW_GROUP_ROWS = 8192
ROW_GROUP_BYTES = 64 * 2**20
"""Payload bytes after which a row group is written."""

SCHEMA = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("producer_id", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("policy_version_min", pa.int64(), nullable=False),
        pa.field("policy_version_max", pa.int64(), nullable=False),
        pa.field("rollout", pa.int32(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("response_length", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_token_ids", pa.list_(pa.int32())),
        pa.field("response_token_ids", pa.list_(pa.int32())),
        pa.field("behaviour_logprobs", pa.list_(pa.float32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("prompt_text", pa.string()),
        pa.field("response_text", pa.string()),
        pa.field("priority", pa.float64(), nullable=False),
        pa.field("times_sampled", pa.int32(), nullable=False),
        pa.field("tags", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("created_at", pa.timestamp("ms", tz="UTC")),
    ]
)
"""Absent are what the producer left out, and the tokens of groups whose payload the table does not keep."""

Row = dict[str, Any]


def write_parquet(file: SnapshotFile, path: Path) -> int:
    """Write the rollouts of a snapshot; return how many. The file appears when it is whole."""
    about = {
        "groupreplay.run": file.table.run,
        "groupreplay.table": file.table.table,
        "groupreplay.policy_version": str(file.policy.version),
        "groupreplay.taken_at_ms": str(file.taken_at_ms),
    }
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    count = 0
    try:
        with pq.ParquetWriter(partial, SCHEMA.with_metadata(about), compression="zstd") as writer:
            for rows in _row_groups(file.groups()):
                writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
                count += len(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _row_groups(groups: Iterator[SnapshotGroup]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    size = 0
    for group in groups:
        rows += rows_of(group)
        size += len(group.payload)
        if len(rows) >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def rows_of(kept: SnapshotGroup) -> Iterator[Row]:
    """Yield the rows of a group, one for each rollout."""
    header = kept.header
    of_group: Row = {
        "group_id": header.group_id,
        "prompt_id": header.prompt_id,
        "task": header.task,
        "producer_id": header.producer_id,
        "place": kept.place.value,
        "policy_version_min": header.policy_version_min,
        "policy_version_max": header.policy_version_max,
        "priority": kept.priority,
        "times_sampled": kept.times_sampled,
        "tags": sorted(header.tags.items()),
        "created_at": header.created_at_ms or None,
    }
    of_rollouts = _token_rows(kept.group) if kept.payload else ({} for _ in header.rewards)
    for index, tokens in enumerate(of_rollouts):
        reason = group_pb2.FinishReason.Name(header.finish_reasons[index]).lower() if header.finish_reasons else None
        yield (
            of_group
            | tokens
            | {
                "rollout": index,
                "reward": header.rewards[index],
                "response_length": header.response_lengths[index],
                "finish_reason": reason,
            }
        )


def _token_rows(group: RolloutGroup) -> Iterator[Row]:
    mask = np.ones(len(group.response_token_ids), np.bool_) if group.loss_mask is None else group.loss_mask
    for index, tokens in enumerate(group.response_slices()):
        yield {
            "prompt_token_ids": group.prompt_token_ids,
            "response_token_ids": group.response_token_ids[tokens],
            "behaviour_logprobs": group.behaviour_logprobs[tokens],
            "loss_mask": mask[tokens],
            "prompt_text": group.prompt_text,
            "response_text": group.response_texts[index] if group.response_texts else None,
        }
