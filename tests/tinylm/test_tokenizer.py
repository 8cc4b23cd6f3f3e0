"""The tokenizer of the demo's model."""

import pytest

from groupreplay_tinylm import ALPHABET, CharTokenizer


def test_every_character_of_the_alphabet_survives_encoding_and_decoding() -> None:
    """What a prompt says is what comes back."""
    tokenizer = CharTokenizer()
    assert tokenizer.decode(tokenizer.encode(ALPHABET)) == ALPHABET
    assert len(set(tokenizer.encode(ALPHABET))) == len(ALPHABET) == tokenizer.vocab_size - 2


def test_special_tokens_decode_to_nothing() -> None:
    """Padding and the end of a response never show up in its text."""
    tokenizer = CharTokenizer()
    assert tokenizer.decode([tokenizer.pad_id, *tokenizer.encode("12"), tokenizer.eos_id]) == "12"


def test_an_unknown_character_is_refused_by_name() -> None:
    """The error names the character and the alphabet, so that the prompt can be corrected."""
    with pytest.raises(ValueError, match=r"'x' in '3x4' is not in the alphabet '0123456789\+"):
        CharTokenizer().encode("3x4")


@pytest.mark.parametrize("token_id", [-1, CharTokenizer().vocab_size])
def test_an_unknown_token_id_is_refused(token_id: int) -> None:
    """An id from another vocabulary is an error and not some other character."""
    with pytest.raises(ValueError, match=f"token id {token_id} is outside"):
        CharTokenizer().decode([token_id])
