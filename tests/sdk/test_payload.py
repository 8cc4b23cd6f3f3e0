"""Arrays to bytes and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from groupreplay import InvalidGroupError
from groupreplay.payload import (
    ALIGNMENT,
    DTYPES,
    MAGIC,
    Column,
    check_payload,
    decode_mask,
    decode_payload,
    decode_texts,
    encode_mask,
    encode_payload,
    encode_texts,
    payload_size,
)

arrays = st.dictionaries(
    st.text(max_size=10),
    hnp.arrays(
        st.sampled_from(sorted(DTYPES)).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    ),
    max_size=6,
)


@given(arrays)
def test_arrays_survive_their_way_through_bytes(columns: dict[str, np.ndarray[Any, Any]]) -> None:
    """Any dtype a payload holds, any shape, NaN bit by bit."""
    layout, payload = encode_payload("g", columns)
    decoded = decode_payload("g", layout, payload)
    assert list(decoded) == list(columns)
    for name, array in columns.items():
        assert (decoded[name].dtype.name, decoded[name].shape) == (array.dtype.name, array.shape)
        assert decoded[name].tobytes() == array.tobytes()


@given(arrays)
def test_a_payload_is_as_long_as_its_columns_say_and_aligned(columns: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every column begins at a multiple of 8 bytes."""
    layout, payload = encode_payload("g", columns)
    assert len(payload) == payload_size(layout)
    assert len(payload) % ALIGNMENT == 0
    assert payload.startswith(MAGIC)


def test_decoded_arrays_are_views_that_cannot_be_written() -> None:
    """Reading a payload copies nothing."""
    layout, payload = encode_payload("g", {"x": np.arange(10, dtype=np.int32)})
    decoded = decode_payload("g", layout, payload)["x"]
    assert not decoded.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 1


@pytest.mark.parametrize("array", [np.arange(6, dtype=">i4"), np.arange(12, dtype=np.int32)[::2]])
def test_foreign_byte_orders_and_strides_become_plain(array: np.ndarray[Any, Any]) -> None:
    """A payload is little-endian and contiguous whatever the array was."""
    layout, payload = encode_payload("g", {"x": array})
    np.testing.assert_array_equal(decode_payload("g", layout, payload)["x"], array)
    assert payload[8:] == array.astype("<i4").tobytes()


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint64", "complex64", "U3", "datetime64[s]", "O"])
def test_a_dtype_that_a_payload_does_not_hold_is_refused(dtype: str) -> None:
    """The message has the group, the column, its dtype, and what would do."""
    with pytest.raises(InvalidGroupError, match=r"group g: column 'x' has dtype .*; a payload holds \['float16'"):
        encode_payload("g", {"x": np.zeros(1, dtype)})


@pytest.mark.parametrize("size", [0, 8, 31, 33])
def test_a_payload_of_another_length_is_refused(size: int) -> None:
    """Truncation is found by length, before any view is made."""
    columns = [Column("x", "int32", (5,))]
    with pytest.raises(InvalidGroupError, match=rf"group g: its payload is {size} bytes, its 1 columns need 32"):
        check_payload("g", columns, size, MAGIC)


@given(hnp.arrays(np.bool_, st.integers(0, 60)))
def test_masks_survive_their_run_lengths(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """A mask of any beginning and end."""
    np.testing.assert_array_equal(decode_mask("g", encode_mask(mask), len(mask)), mask, strict=True)


@given(st.lists(st.text()))
def test_texts_survive_their_bytes(texts: list[str]) -> None:
    """Empty ones and any script."""
    assert decode_texts("g", *encode_texts(texts)) == tuple(texts)


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    """A token may end in the middle of a character."""
    utf8 = np.frombuffer("aé".encode()[:-1], np.uint8)
    assert decode_texts("g", np.array([2], np.int32), utf8) == ("a\ufffd",)


@pytest.mark.parametrize("runs", [[3, -1, 1], [2], [4], [2**31 - 1, 2**31 - 1], []])
def test_run_lengths_that_do_not_cover_the_tokens_are_refused(runs: list[int]) -> None:
    """Negative, short, long or gigantic runs make an error, not memory."""
    with pytest.raises(InvalidGroupError, match=r"group g: loss_mask_runs .* at least 0 each and sum to 3"):
        decode_mask("g", np.array(runs, np.int32), 3)


@pytest.mark.parametrize("lengths", [[-1, 4], [1, 1], [4], []])
def test_text_lengths_that_do_not_cover_the_bytes_are_refused(lengths: list[int]) -> None:
    """A text cannot reach beyond its bytes."""
    with pytest.raises(InvalidGroupError, match=r"group g: response_text_lengths .* at least 0 each and sum to 3"):
        decode_texts("g", np.array(lengths, np.int32), np.zeros(3, np.uint8))
