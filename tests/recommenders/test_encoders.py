"""SASRec against its formulas written out, causality, padding, and GRU4Rec's indifference to padding."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from zoo.recommenders import GRU4Rec, SASRec, SequenceEncoder
from zoo.recommenders.encoders import check_sequences

ITEMS, LENGTH = 30, 8


def sequences(rows: int = 6) -> Tensor:
    """Rows of 1 to LENGTH items, padded on the left."""
    item_seq = torch.randint(1, ITEMS + 1, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    for row in range(rows):
        item_seq[row, : LENGTH - 1 - row % LENGTH] = 0
    return item_seq


def sasrec() -> SASRec:
    torch.manual_seed(0)
    encoder = SASRec(dim=12, inner=20, layers=2, heads=3, max_length=LENGTH).build(ITEMS).eval()
    for name, parameter in encoder.named_parameters():  # larger than the initial values, so that all parts matter
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.4)
    return encoder


def by_formulas(m: SASRec, item_seq: Tensor) -> Tensor:
    """The states [B, L, d], one row and head at a time."""

    def norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-12)

    rows = []
    for seq in item_seq:
        x = norm(m.norm, m.item_embedding.weight[seq] + m.position_embedding.weight)
        mask = torch.full((LENGTH, LENGTH), -10000.0)
        for i in range(LENGTH):
            for j in range(i + 1):
                if seq[j]:
                    mask[i, j] = 0
        for block in m.blocks:
            weight, bias = block.query_key_value.weight, block.query_key_value.bias  # type: ignore[union-attr]
            q, k, v = (x @ weight.T + bias).chunk(3, -1)  # type: ignore[union-attr, operator]
            heads = []
            for h in range(3):
                part = slice(4 * h, 4 * h + 4)
                heads.append((q[:, part] @ k[:, part].T / 2 + mask).softmax(-1) @ v[:, part])
            x = norm(block.attention_norm, block.output(torch.cat(heads, -1)) + x)  # type: ignore[arg-type, operator]
            wide = block.widen(x)  # type: ignore[operator]
            wide = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))
            x = norm(block.norm, block.narrow(wide) + x)  # type: ignore[arg-type, operator]
        rows.append(x)
    return torch.stack(rows)


def test_sasrec_is_its_formulas() -> None:
    encoder, item_seq = sasrec(), sequences()
    expected = by_formulas(encoder, item_seq)
    real = item_seq > 0
    torch.testing.assert_close(encoder.states(item_seq)[real], expected[real], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(encoder(item_seq), expected[:, -1], atol=2e-6, rtol=1e-5)


def test_the_last_column_alone_has_the_gradients_of_all_columns() -> None:
    encoder, item_seq = sasrec(), sequences()
    grads = []
    for h in (encoder(item_seq), encoder.states(item_seq)[:, -1]):
        encoder.zero_grad()
        h.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert grads[0].keys() == dict(encoder.named_parameters()).keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-4, rtol=1e-4)


def test_initial_values() -> None:
    torch.manual_seed(0)
    encoder = SASRec().build(2000)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06), name
        elif "norm.weight" in name:
            assert (parameter == 1).all()
        else:
            assert (parameter == 0).all()
    assert encoder.item_embedding.weight[0].std().item() == pytest.approx(0.02, rel=0.4)
    assert {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_a_column_knows_nothing_of_those_after_it(kind: type[SequenceEncoder]) -> None:
    torch.manual_seed(0)
    encoder = kind(max_length=LENGTH).build(ITEMS).eval()  # type: ignore[call-arg]
    item_seq = sequences()[-1:].clone()
    before = encoder.states(item_seq)
    item_seq[0, 5] = item_seq[0, 5] % ITEMS + 1
    after = encoder.states(item_seq)
    real = item_seq[0, :5] > 0  # a padding column of SASRec has no item to see and looks at all columns alike
    torch.testing.assert_close(after[:, :5][:, real], before[:, :5][:, real], atol=1e-7, rtol=0)
    assert ((after - before)[:, 5:].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_the_padding_row_has_no_effect_and_no_gradient(kind: type[SequenceEncoder]) -> None:
    torch.manual_seed(0)
    encoder = kind(max_length=LENGTH).build(ITEMS).eval()  # type: ignore[call-arg]
    h = encoder(sequences())
    h.sum().backward()
    assert not encoder.item_embedding.weight.grad[0].any()  # type: ignore[index]
    with torch.no_grad():
        encoder.item_embedding.weight[0] += 5
    assert torch.equal(encoder(sequences()), h)


def test_sasrec_reads_positions_by_column_and_gru4rec_does_not() -> None:
    item_seq = torch.tensor([[0, 0, 0, 3, 9, 4, 7, 7]])
    shifted = torch.tensor([[0, 0, 0, 0, 0, 3, 9, 4]])
    assert (sasrec().states(item_seq)[:, 5] - sasrec()(shifted)).abs().max() > 0.1
    torch.manual_seed(0)
    gru, bare = (GRU4Rec(dropout=0, max_length=length).build(ITEMS) for length in (LENGTH, 3))
    bare.load_state_dict(gru.state_dict())
    torch.testing.assert_close(gru(shifted), bare(torch.tensor([[3, 9, 4]])))
    torch.testing.assert_close(gru(shifted), gru.states(item_seq)[:, 5])


def test_dropout_differs_between_copies_of_one_pass() -> None:
    torch.manual_seed(0)
    encoder = SASRec(max_length=LENGTH).build(ITEMS)
    one, two = encoder(sequences()[-1:].repeat(2, 1))
    assert (one - two).abs().max() > 0.1
    one, two = encoder.eval()(sequences()[-1:].repeat(2, 1))
    torch.testing.assert_close(one, two)  # rows of one matrix product may differ in the last bit


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1], [2, 31]], r"row 1 has ids in \[2, 31\]: items are 1 to 30, 0 is padding"),
        ([[0, 1], [-2, 3]], r"row 1 has ids in \[-2, 3\]"),
        ([[0, 1], [0, 0]], "row 1 has no item"),
        ([[0, 1], [4, 0]], "row 1: its last column is padding; pad on the left"),
    ],
)
def test_wrong_sequences_are_named(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sequences(torch.tensor(rows), ITEMS)


def test_other_lengths_and_sizes_are_errors() -> None:
    with pytest.raises(ValueError, match="8 columns, the encoder's max_length is 20"):
        SASRec().build(ITEMS)(sequences())
    with pytest.raises(ValueError, match="heads=3: must divide dim=64"):
        SASRec(heads=3)
    with pytest.raises(ValueError, match="num_items=0"):
        GRU4Rec().build(0)
