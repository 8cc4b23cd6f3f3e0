"""The character vocabulary that every demo task and checkpoint shares."""

from collections.abc import Iterable
from typing import Final

ALPHABET: Final = "0123456789+-*/()=,: "
"""The characters a prompt or response may hold. Their order fixes the token ids, so append and never reorder."""


class CharTokenizer:
    """Map text to token ids and back: one character is one token, after the two special ids PAD and EOS."""

    pad_id: Final = 0
    eos_id: Final = 1

    def __init__(self) -> None:
        """Build the two lookup tables of `ALPHABET`."""
        self._id_of = {character: token_id for token_id, character in enumerate(ALPHABET, start=2)}
        self._text_of: tuple[str, ...] = ("", "", *ALPHABET)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two special ones included."""
        return len(self._text_of)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; adds no special token.

        Raises:
            ValueError: a character is not in `ALPHABET`.
        """
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            raise ValueError(f"character {error.args[0]!r} in {text!r} is not in the alphabet {ALPHABET!r}") from None

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of `token_ids`; PAD and EOS decode to nothing.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        return "".join(self._text(int(token_id)) for token_id in token_ids)

    def _text(self, token_id: int) -> str:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside [0, {self.vocab_size})")
        return self._text_of[token_id]
