"""ScoredData, as Atropos has it, <-> rollout groups.

A group has the prompt once and the responses one after the other: the prompt is what all sequences begin with and none
is trained on. All that a group has no field for travels in columns named `atropos...`, so that an item comes out of
/batch as it was pushed; numbers per token are kept as float32. Groups that came over gRPC come out as items, too.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidGroupError
from groupreplay.groups import LOGPROB_ROUNDING, RolloutGroup, now_ms
from groupreplay_server.api.atropos.nested import flat_array, pack_nested, unpack_nested
from groupreplay_server.api.atropos.schema import ScoredData

NOT_TRAINED = -100
NO_LOGPROB = 1.0
"""What inference_logprobs says where there is no token of the model's own."""
ENV_TAG, VERSION_TAG, LOGPROBS_TAG = "atropos.env_id", "atropos.policy_version", "atropos.behaviour_logprobs"
_PREFIX = "atropos."
_REST, _IMAGES = "atropos", "atropos.images"
_IN_REST = ("scores", "messages", "generation_params", "overrides", "group_overrides", "env_id")
_NESTED = {
    "advantages": (2, "float32"),
    "ref_logprobs": (2, "float32"),
    "distill_token_ids": (3, "int32"),
    "distill_logprobs": (3, "float32"),
}
_AS_PUSHED = {"masks": "int32", "inference_logprobs": "float32"}
"""Kept as they came only where they say something else than the group does."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What is known of a push beside its content."""

    producer_id: str
    task: str
    policy_version: int
    """The run's clock at receipt."""
    epoch: str
    """Groups of different epochs are different groups, though they hold the same."""


def group_from_item(item: ScoredData, receipt: Receipt) -> RolloutGroup:
    """Return the group of an item. The same content again is the same group, so a client's retry is safe.

    Raises:
        InvalidGroupError: it has no sequences, an empty one, lengths that disagree, or numbers that are not finite.
    """
    _check_lengths(item)
    columns = _other_columns(item)  # first: what JSON cannot express has no hash either
    sequences = [flat_array("tokens", tokens, "int32") for tokens in item.tokens]
    trained = [flat_array("masks", mask, "int32") != NOT_TRAINED for mask in item.masks]
    prompt = _prompt_length(sequences, trained)
    loss_mask = np.concatenate([mask[prompt:] for mask in trained])
    logprobs = _behaviour_logprobs(item, trained, prompt)
    version, how = _policy_version(item, receipt.policy_version)
    tags = {VERSION_TAG: how}
    if item.env_id is not None:
        tags[ENV_TAG] = str(item.env_id)
    if logprobs is None:
        tags[LOGPROBS_TAG] = "absent"
    prompt_token_ids = sequences[0][:prompt]
    group = RolloutGroup(
        group_id=f"atropos-{hashlib.sha256(f'{receipt.epoch} {item.model_dump_json()}'.encode()).hexdigest()[:40]}",
        prompt_id=f"atropos-{hashlib.sha256(prompt_token_ids.tobytes()).hexdigest()[:40]}",
        prompt_token_ids=prompt_token_ids,
        response_token_ids=np.concatenate([tokens[prompt:] for tokens in sequences]),
        response_lengths=np.array([len(tokens) - prompt for tokens in sequences], np.int32),
        behaviour_logprobs=np.zeros(len(loss_mask), np.float32) if logprobs is None else logprobs,
        rewards=flat_array("scores", item.scores, "float32"),
        policy_version_min=version,
        policy_version_max=version,
        loss_mask=None if loss_mask.all() else loss_mask,
        task=receipt.task,
        producer_id=receipt.producer_id,
        created_at_ms=now_ms(),
        tags=tags,
        columns=columns,
    )
    return _with_what_differs(group, item)


def item_from_group(group: RolloutGroup) -> dict[str, Any]:
    """Return a group as Atropos' trainers read it, keys in atroposlib's order."""
    columns = group.columns
    rest = json.loads(columns[_REST].tobytes()) if _REST in columns else {}
    derived = _derived(group)
    nested = {name: unpack_nested(_PREFIX + name, columns, depth=depth) for name, (depth, _) in _NESTED.items()}
    if group.tags.get(LOGPROBS_TAG) == "absent":
        derived["inference_logprobs"] = None
    for name in _AS_PUSHED:
        if _PREFIX + name in columns:
            derived[name] = unpack_nested(_PREFIX + name, columns, depth=2)
    if nested["ref_logprobs"] is None:
        nested["ref_logprobs"] = _reference_logprobs(group)
    return {
        "tokens": derived["tokens"],
        "masks": derived["masks"],
        "scores": rest.get("scores", group.rewards.tolist()),
        "advantages": nested["advantages"],
        "ref_logprobs": nested["ref_logprobs"],
        "messages": rest.get("messages"),
        "generation_params": rest.get("generation_params"),
        "inference_logprobs": derived["inference_logprobs"],
        "overrides": rest.get("overrides"),
        "group_overrides": rest.get("group_overrides"),
        "images": json.loads(columns[_IMAGES].tobytes()) if _IMAGES in columns else None,
        "env_id": rest.get("env_id"),
        "distill_token_ids": nested["distill_token_ids"],
        "distill_logprobs": nested["distill_logprobs"],
    }


def _check_lengths(item: ScoredData) -> None:
    lengths = {"masks": len(item.masks), "scores": len(item.scores)}
    if not item.tokens or any(length != len(item.tokens) for length in lengths.values()):
        raise InvalidGroupError(
            f"the group has {len(item.tokens)} tokens, {lengths['masks']} masks and {lengths['scores']} scores; "
            "send one of each for every sequence, and at least one sequence"
        )
    for index, (tokens, mask) in enumerate(zip(item.tokens, item.masks, strict=True)):
        if not tokens or len(mask) != len(tokens):
            raise InvalidGroupError(
                f"sequence {index} has {len(tokens)} tokens and {len(mask)} masks; send as many of both, at least one"
            )


def _prompt_length(sequences: list[npt.NDArray[Any]], trained: list[Bools]) -> int:
    """Return how many tokens all sequences begin with, untrained; at least one is left to each as its response."""
    length = min(
        min(int(mask.argmax()) if mask.any() else len(mask), len(tokens) - 1)
        for tokens, mask in zip(sequences, trained, strict=True)
    )
    for tokens in sequences[1:]:
        differs = tokens[:length] != sequences[0][:length]
        length = int(differs.argmax()) if differs.any() else length
    return length


def _behaviour_logprobs(item: ScoredData, trained: list[Bools], prompt: int) -> npt.NDArray[np.float32] | None:
    """Return [T] log probabilities, 0 where nothing is trained on; None unless every trained token has a usable one."""
    given = item.inference_logprobs
    if given is None or [len(one) for one in given] != [len(mask) for mask in trained]:
        return None
    with np.errstate(over="ignore"):  # infinite, then, which is not usable
        flat = np.array(list(chain.from_iterable(one[prompt:] for one in given))).astype(np.float32)
    mask = np.concatenate([one[prompt:] for one in trained])
    if not (np.isfinite(flat[mask]).all() and (flat[mask] <= LOGPROB_ROUNDING).all()):
        return None
    return np.where(mask, flat, np.float32(0))


def _policy_version(item: ScoredData, clock: int) -> tuple[int, str]:
    stated = (item.group_overrides or {}).get("policy_version")
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 0:
        return clock, "inferred"
    return (stated, "stated") if stated <= clock else (clock, "above the clock")


def _other_columns(item: ScoredData) -> dict[str, npt.NDArray[Any]]:
    columns = {_REST: _json_column("the item", {name: getattr(item, name) for name in _IN_REST})}
    if item.images is not None:
        columns[_IMAGES] = _json_column("images", item.images)
    for name, (depth, dtype) in _NESTED.items():
        if getattr(item, name) is not None:
            columns |= pack_nested(_PREFIX + name, getattr(item, name), depth=depth, dtype=dtype)
    return columns


def _json_column(what: str, value: Any) -> npt.NDArray[np.uint8]:
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return np.frombuffer(text.encode(), np.uint8)
    except ValueError as error:
        raise InvalidGroupError(f"{what} has numbers or text that JSON cannot express: {error}") from error


def _with_what_differs(group: RolloutGroup, item: ScoredData) -> RolloutGroup:
    """Return the group with the fields that it would not give back as they were pushed."""
    derived = _derived(group)
    columns = dict(group.columns)
    for name, dtype in _AS_PUSHED.items():
        pushed = getattr(item, name)
        if pushed is None:
            continue
        if name == "inference_logprobs" and not all(np.isfinite(one).all() for one in pushed):
            continue  # JSON could not give it back
        packed = pack_nested(_PREFIX + name, pushed, depth=2, dtype=dtype)
        if unpack_nested(_PREFIX + name, packed, depth=2) != derived[name]:
            columns |= packed
    return group if columns.keys() == group.columns.keys() else replace(group, columns=columns)


def _derived(group: RolloutGroup) -> dict[str, list[list[Any]] | None]:
    """Return tokens, masks and inference_logprobs as the fields of the group give them."""
    prompt = group.prompt_token_ids.tolist()
    mask = np.ones(len(group.response_token_ids), np.bool_) if group.loss_mask is None else group.loss_mask
    masks = np.where(mask, group.response_token_ids, NOT_TRAINED)
    logprobs = np.where(mask, group.behaviour_logprobs, np.float32(NO_LOGPROB))
    slices = list(group.response_slices())
    return {
        "tokens": [prompt + group.response_token_ids[part].tolist() for part in slices],
        "masks": [[NOT_TRAINED] * len(prompt) + masks[part].tolist() for part in slices],
        "inference_logprobs": [[NO_LOGPROB] * len(prompt) + logprobs[part].tolist() for part in slices],
    }


def _reference_logprobs(group: RolloutGroup) -> list[list[float]] | None:
    """Return the column that our own producers call reference_logprobs, [T], as Atropos has it."""
    column = group.columns.get("reference_logprobs")
    if column is None or column.shape != group.response_token_ids.shape:
        return None
    before = [NO_LOGPROB] * len(group.prompt_token_ids)
    return [before + column[part].tolist() for part in group.response_slices()]
