"""Packed rows: how full they are, and that sequences in one row know nothing of each other."""

import random
from itertools import combinations

import pytest
import torch
from torch import Tensor

from zoo.language.models import LanguageModel
from zoo.language.packing import block_mask, lay_out, pack
from zoo.language.tokenizers import Characters

SEQUENCES = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [14, 15], [5, 9, 14, 6]]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Rotary positions, and learned ones, of which the place in the row would be another."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    llama = {"intermediate_size": 64, "num_key_value_heads": 2}
    config = {
        "model_type": request.param,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "initializer_range": 0.3,
        **(llama if request.param == "llama" else {}),
    }
    torch.manual_seed(0)
    return LanguageModel(config=config, tokenizer=Characters()).build(["a"]).eval()


def test_first_fit_decreasing() -> None:
    assert pack([3, 5, 1, 2, 4], 8) == [[1, 0], [4, 3, 2]]
    assert pack([4, 4, 4], 4) == [[0], [1], [2]]
    assert pack([], 4) == []
    with pytest.raises(ValueError, match="sequence 1 has 9 tokens, but max_length is 8"):
        pack([3, 9], 8)


def test_every_sequence_stands_in_one_row_and_rows_are_few() -> None:
    draw = random.Random(0)
    for _ in range(20):
        lengths = [draw.randint(1, 40) for _ in range(draw.randint(1, 80))]
        rows = pack(lengths, 40)
        assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
        filled = [sum(lengths[number] for number in row) for row in rows]
        assert max(filled) <= 40
        assert all(a + b > 40 for a, b in combinations(filled, 2))  # no two rows could be one


def test_columns_of_a_row() -> None:
    packed = lay_out(SEQUENCES, [[1, 0], [4, 3, 2]], pad=0)
    assert packed.input_ids.tolist() == [[8, 9, 10, 11, 12, 5, 6, 7], [5, 9, 14, 6, 14, 15, 13, 0]]
    assert packed.segment.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [4, 4, 4, 4, 3, 3, 2, -1]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 0]]


def test_mask_is_causal_inside_of_a_sequence() -> None:
    mask = block_mask(torch.tensor([[0, 0, 1, 1, -1, -1]]))
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def states(model: LanguageModel, sequences: list[list[int]], rows: list[list[int]]) -> dict[int, Tensor]:
    packed = lay_out(sequences, rows, pad=0)
    hidden = model.hidden(packed.input_ids, block_mask(packed.segment), packed.position)
    assert hidden.isfinite().all()
    return {number: hidden[packed.segment == number] for number in range(len(sequences))}


def test_packed_states_are_those_of_sequences_alone(model: LanguageModel) -> None:
    packed = states(model, SEQUENCES, pack([len(s) for s in SEQUENCES], 8))
    for number, sequence in enumerate(SEQUENCES):
        ids = torch.tensor([sequence])
        torch.testing.assert_close(packed[number], model.hidden(ids, torch.ones_like(ids))[0], rtol=0, atol=2e-6)


def test_a_changed_sequence_changes_no_other(model: LanguageModel) -> None:
    rows = [[1, 0, 3], [4, 2]]
    before = states(model, SEQUENCES, rows)
    after = states(model, [SEQUENCES[0], [8, 9, 99, 50, 12], *SEQUENCES[2:]], rows)
    assert (before[1] - after[1])[:2].abs().max() < 2e-6
    assert (before[1] - after[1])[2:].abs().amax(1).min() > 0.1
    for other in (0, 2, 3, 4):
        torch.testing.assert_close(before[other], after[other], rtol=0, atol=2e-6)


def test_no_gradient_flows_between_sequences(model: LanguageModel) -> None:
    packed = lay_out(SEQUENCES, [[1, 0, 3], [4, 2]], pad=0)
    embedding = model.network.get_input_embeddings()
    kept: list[Tensor] = []
    embedding.register_forward_hook(lambda module, args, output: kept.append(output) or output.retain_grad())
    hidden = model.hidden(packed.input_ids, block_mask(packed.segment), packed.position)
    hidden[packed.segment == 0].square().sum().backward()
    grad = kept[0].grad
    assert grad is not None
    assert (grad.abs().amax(-1) > 0).tolist() == (packed.segment == 0).tolist()
