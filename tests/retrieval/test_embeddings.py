"""Tables of embeddings: what is refused, what counts once, templates."""

import pytest
import torch

from zoo.retrieval import EmbeddingStore, EmbeddingTable, class_templates, embedding_table


def test_rows_have_unit_length_whatever_their_scale_and_dtype() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -2.0], [1e-25, 0.0], [3e30, 4e30]], dtype=torch.float64)
    table = embedding_table(x, torch.tensor([5, 6, 7, 8], dtype=torch.int32))
    assert table.embedding.dtype == torch.float32
    assert table.label.dtype == torch.int64
    torch.testing.assert_close(table.embedding, torch.tensor([[0.6, 0.8], [0, -1], [1, 0], [0.6, 0.8]]))
    assert table.id.tolist() == [0, 1, 2, 3]
    assert embedding_table(x.T[:, :2].T, table.label[:2]).embedding.is_contiguous()


@pytest.mark.parametrize(
    ("row", "value", "words"),
    [
        (1, float("nan"), r"queries: 2 of 4 have non-finite values, the first is that of id 31"),
        (1, float("inf"), r"queries: 2 of 4 have non-finite values, the first is that of id 31"),
        (2, 0.0, r"queries: 2 of 4 have zero norm, hence no direction, the first is that of id 32"),
    ],
)
def test_vectors_without_direction_are_counted_and_the_first_is_named(row: int, value: float, words: str) -> None:
    x = torch.ones(4, 3)
    x[row, 0 if value else slice(None)] = value
    x[3] = value
    with pytest.raises(ValueError, match=words):
        embedding_table(x, torch.zeros(4, dtype=torch.int64), torch.arange(30, 34), what="queries")


@pytest.mark.parametrize(
    ("shape", "labels", "ids", "words"),
    [
        ((3,), 3, 3, r"shape \(3,\): pass one vector a row"),
        ((0, 3), 0, 0, "N, d > 0"),
        ((3, 2), 4, 3, r"3 vectors, but label has shape \(4,\)"),
        ((3, 2), 3, 2, r"3 vectors, but id has shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_match(shape: tuple[int, ...], labels: int, ids: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        embedding_table(torch.ones(shape), torch.arange(labels), torch.arange(ids))


def test_types_and_repeated_ids() -> None:
    label = torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"embeddings are torch.int64: pass floating-point"):
        embedding_table(torch.ones(2, 2, dtype=torch.int64), label)
    with pytest.raises(TypeError, match=r"label is torch.float32"):
        embedding_table(torch.ones(2, 2), label.float())
    with pytest.raises(ValueError, match="ids must be distinct, but 4 comes more than once"):
        embedding_table(torch.ones(2, 2), label, torch.tensor([4, 4]))


def test_store_orders_by_row_and_counts_a_repeated_row_once() -> None:
    store = EmbeddingStore()
    store.update(torch.eye(4)[[3, 1]].bfloat16(), torch.tensor([30, 10]), torch.tensor([3, 1]))
    store.update(torch.eye(4)[[0, 3]].bfloat16(), torch.tensor([0, 30]), torch.tensor([0, 3]))
    table = store.compute()
    assert table.id.tolist() == [0, 1, 3]
    assert table.label.tolist() == [0, 10, 30]
    assert torch.equal(table.embedding, torch.eye(4)[[0, 1, 3]])
    store.reset()
    with pytest.raises(RuntimeError, match="no batch was added"):
        store.compute()


def test_a_single_vector_stays_a_table() -> None:
    store = EmbeddingStore()
    store.update(torch.tensor([[2.0]]), torch.tensor([7]), torch.tensor([0]))
    assert store.compute().label.tolist() == [7]


def test_templates_are_normalised_means_of_unit_vectors() -> None:
    angle = torch.tensor([0.0, 60.0, 90.0, 180.0]).deg2rad()
    long = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [50.0], [1.0], [1.0]])
    templates = class_templates(embedding_table(long, torch.tensor([9, 9, 2, 2])))
    assert templates.label.tolist() == templates.id.tolist() == [2, 9]
    expected = torch.tensor([135.0, 30.0]).deg2rad()  # half-way, as length has no say
    torch.testing.assert_close(templates.embedding, torch.stack([expected.cos(), expected.sin()], 1))
    again: EmbeddingTable = class_templates(templates)
    torch.testing.assert_close(again.embedding, templates.embedding)


def test_a_class_that_cancels_out_has_no_template() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"class templates: 1 of 2 have zero norm.*id 4"):
        class_templates(embedding_table(x, torch.tensor([4, 4, 5])))
