"""The demo's model: what training sees and what sampling sees are the same function.

Shape legend: B rows, T tokens, V vocabulary.
"""

import pytest
import torch
from torch import Tensor

from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig

CONFIG = TinyLMConfig(vocab_size=CharTokenizer().vocab_size, layers=2, width=32, heads=2, max_positions=20)
LENGTHS = (3, 7, 5, 7)


@pytest.fixture
def model() -> TinyLM:
    """A small model with random weights."""
    torch.manual_seed(0)
    return TinyLM(CONFIG).eval()


@pytest.fixture
def sequences() -> list[Tensor]:
    """Token sequences of several lengths, without special tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, CONFIG.vocab_size, (length,), generator=generator) for length in LENGTHS]


def left_padded(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return token_ids_BT and mask_BT with the padding on the left."""
    longest = max(len(sequence) for sequence in sequences)
    token_ids_BT = torch.full((len(sequences), longest), CharTokenizer.pad_id)
    for row, sequence in enumerate(sequences):
        token_ids_BT[row, longest - len(sequence) :] = sequence
    return token_ids_BT, token_ids_BT != CharTokenizer.pad_id


@torch.no_grad()
def test_a_row_has_the_same_logits_alone_and_padded_on_either_side(model: TinyLM, sequences: list[Tensor]) -> None:
    """Batching never changes what the model says about a sequence."""
    left_BT, left_mask_BT = left_padded(sequences)
    right_BT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    logits_left_BTV = model(left_BT, attention_mask_BT=left_mask_BT)
    logits_right_BTV = model(right_BT)
    logits_masked_BTV = model(right_BT, attention_mask_BT=right_BT != CharTokenizer.pad_id)
    for row, sequence in enumerate(sequences):
        alone_TV = model(sequence[None])[0]
        torch.testing.assert_close(logits_left_BTV[row, -len(sequence) :], alone_TV, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits_right_BTV[row, : len(sequence)], alone_TV, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits_masked_BTV[row, : len(sequence)], alone_TV, atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoding_with_the_cache_gives_the_logits_of_the_full_forward(model: TinyLM, sequences: list[Tensor]) -> None:
    """Sampling one token at a time is the same policy that the trainer recomputes."""
    prompts_BT, mask_BT = left_padded(sequences)
    new_BT = torch.randint(2, CONFIG.vocab_size, (len(sequences), 6), generator=torch.Generator().manual_seed(2))
    logits_BV, cache = model.prefill(prompts_BT, mask_BT, max_new_tokens=6)
    steps = [logits_BV] + [model.decode_step(new_BT[:, step], cache) for step in range(6)]
    for row, sequence in enumerate(sequences):
        full_TV = model(torch.cat((sequence, new_BT[row]))[None])[0, len(sequence) - 1 :].log_softmax(dim=-1)
        cached_TV = torch.stack([logits_BV[row] for logits_BV in steps]).log_softmax(dim=-1)
        torch.testing.assert_close(cached_TV, full_TV, atol=1e-4, rtol=1e-6)


@torch.no_grad()
def test_rows_selected_from_a_cache_continue_on_their_own(model: TinyLM, sequences: list[Tensor]) -> None:
    """One prompt read once can be continued in several ways, and ended rows can be dropped."""
    prompts_BT, mask_BT = left_padded(sequences)
    _, cache = model.prefill(prompts_BT, mask_BT, max_new_tokens=1)
    copies = cache.select(torch.tensor([2, 0, 2]))
    logits_BV = model.decode_step(torch.tensor([4, 5, 6]), copies)
    for row, (prompt, token) in enumerate([(2, 4), (0, 5), (2, 6)]):
        alone_V = model(torch.cat((sequences[prompt], torch.tensor([token])))[None])[0, -1]
        torch.testing.assert_close(logits_BV[row], alone_V, atol=1e-5, rtol=0)
    assert cache.rows == len(sequences)
    assert cache.filled_slots == cache.slots - 1


@torch.no_grad()
def test_padding_is_never_a_continuation_and_the_entropy_stays_finite(model: TinyLM) -> None:
    """PAD has probability 0, without the infinity that would make an entropy bonus NaN."""
    logprobs_V = model(torch.tensor([[2, 3]]))[0, -1].log_softmax(dim=-1)
    assert logprobs_V.exp()[CharTokenizer.pad_id] == 0
    assert torch.isfinite(-(logprobs_V.exp() * logprobs_V).sum())


def test_padded_rows_have_finite_gradients(model: TinyLM, sequences: list[Tensor]) -> None:
    """Positions that may attend to nothing but padding do not poison the update."""
    token_ids_BT, mask_BT = left_padded(sequences)
    model(token_ids_BT, attention_mask_BT=mask_BT)[mask_BT].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_too_many_tokens_are_refused(model: TinyLM) -> None:
    """The error says how many positions there are, for a forward, a prefill and a full cache alike."""
    with pytest.raises(ValueError, match="21 tokens exceed max_positions 20"):
        model(torch.full((1, 21), 2))
    with pytest.raises(ValueError, match="21 tokens exceed max_positions 20"):
        model.prefill(torch.full((1, 18), 2), max_new_tokens=3)
    _, cache = model.prefill(torch.full((1, 3), 2), max_new_tokens=0)
    with pytest.raises(ValueError, match="all 3 slots hold a token"):
        model.decode_step(torch.tensor([2]), cache)


@torch.no_grad()
def test_right_padded_prompts_are_refused_by_prefill(model: TinyLM) -> None:
    """Prompts padded on the wrong side are an error rather than a different distribution."""
    mask_BT = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="left-padded"):
        model.prefill(torch.tensor([[2, 3], [2, 0]]), mask_BT, max_new_tokens=1)


@torch.no_grad()
def test_a_mask_of_another_shape_is_refused(model: TinyLM) -> None:
    """A mask that would broadcast silently is an error."""
    with pytest.raises(ValueError, match=r"shape \(1, 3\) differs from token_ids_BT's \(2, 3\)"):
        model(torch.full((2, 3), 2), attention_mask_BT=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be an integer >= 1, got 0"),
        ({"heads": 3}, "width 32 is not a multiple of twice the heads, 6"),
    ],
)
def test_an_impossible_shape_is_refused(changes: dict[str, int], message: str) -> None:
    """A configuration that no model can have fails when it is written down."""
    shape = {"vocab_size": 20, "layers": 2, "width": 32, "heads": 2, "max_positions": 20}
    with pytest.raises(ValueError, match=message):
        TinyLMConfig(**(shape | changes))  # type: ignore[arg-type]
