"""Attention blocks and labels against matrices written out by hand."""

import pytest
import torch
from torch import Tensor

from zoo.dense_retrieval.masks import attention_block, labelled, safe_mask

BLOCK = "1000000 1100000 1110000 1111000 0001100 0001110 0001111"
PADDED = "0000000 0100000 0110000 0111000 0001100 0001110 0001111"


def matrix(rows: str) -> Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows.split()])


def test_block_of_seven_tokens_with_the_ending_token_in_column_three() -> None:
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 0] = False
    mask = attention_block(valid, 3)
    assert mask.shape == (2, 1, 7, 7)
    assert mask[0, 0].equal(matrix(BLOCK))
    assert mask[1, 0].equal(matrix(PADDED))


def test_padding_behind_is_attended_to_by_none() -> None:
    valid = torch.tensor([[True] * 5 + [False] * 2])
    mask = attention_block(valid, 3)
    assert not mask[..., 5:].any()
    assert mask[0, 0, :5, :5].equal(matrix(BLOCK)[:5, :5])


@pytest.mark.parametrize("end", [-1, 7])
def test_the_ending_token_must_be_a_column(end: int) -> None:
    with pytest.raises(ValueError, match=f"end={end}: must be a column of the 7"):
        attention_block(torch.ones(1, 7, dtype=torch.bool), end)


def test_the_ending_token_cannot_be_padding() -> None:
    with pytest.raises(ValueError, match="end=0: that column is padding"):
        attention_block(torch.tensor([[False, True]]), 0)


def test_empty_rows_attend_to_themselves_and_no_other_row_changes() -> None:
    mask = matrix(PADDED)[None, None]
    safe = safe_mask(mask)
    assert safe[0, 0, 0].tolist() == [True] + [False] * 6
    assert safe[..., 1:, :].equal(mask[..., 1:, :])


def test_labels_of_the_query_start_behind_the_ending_token() -> None:
    valid = torch.tensor([[False, False, True, True, True, True, False], [False, True, True, True, True, True, True]])
    assert labelled(valid, 3, "query").int().tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


def test_all_labels_leave_out_the_first_token_which_only_padding_could_predict() -> None:
    valid = torch.tensor([[False, False, True, True, True, True, False], [True, True, True, True, True, True, True]])
    assert labelled(valid, 3, "all").int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]]
