"""What reaches a query, which tokens are learned, and that one ending token learns to carry a passage."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.batches import RetrievalBatch
from zoo.dense_retrieval.prompts import fill
from zoo.dense_retrieval.query_likelihood import PASSAGE, QUERY, QueryLikelihood, unigram_entropy
from zoo.language import LanguageModel

Make = Callable[..., QueryLikelihood]
PASSAGE_A = {"title": "w1", "text": "w2 w3 w4"}
PASSAGE_B = {"title": "w5", "text": "w6 w7 w8 w9 w10 w11"}
QUERY_A, QUERY_B = {"text": "w20 w21 w22"}, {"text": "w23"}


def batch_of(passages: list, queries: list, key: int = 0) -> RetrievalBatch:
    keys = torch.arange(len(queries)) + key
    return RetrievalBatch(queries, passages, torch.full((len(passages),), -1), keys)


def words(model: QueryLikelihood, ids: Tensor) -> str:
    return " ".join(model.language_model.tokenizer.convert_ids_to_tokens(ids.tolist()))


# --- texts to columns --------------------------------------------------------------------------------------------


def test_official_templates() -> None:
    assert fill(PASSAGE, {"title": "A title", "text": "Some text."}).text == (
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage: A title Some text.\nSummarization: "
    )
    assert fill(QUERY, {"text": "what is it"}).text == (
        "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\n"
        "Query: what is it\nThe most relevant passage: "
    )


def test_an_absent_field_leaves_no_space_and_spans_are_the_documents_own() -> None:
    text, spans = fill("Read: {title} {text} Say:", {"text": "w2 w3"})
    assert text == "Read: w2 w3 Say:"
    assert [text[a:b] for a, b in spans] == ["w2 w3"]
    with pytest.raises(ValueError, match="nothing for the template"):
        fill("Read: {title} {text}", {"title": " ", "text": ""})


def test_columns_of_a_batch(tiny_ql: Make) -> None:
    model = tiny_ql(mask_prob=0.0)
    rows = model.pairs(batch_of([PASSAGE_A, PASSAGE_B], [QUERY_A, QUERY_B]))
    first, second = words(model, rows.input_ids[0, 3:]), words(model, rows.input_ids[1, :13])
    assert rows.end == 10
    assert first == "<s> Read: w1 w2 w3 w4 Say: </s> w20 w21 w22 </s>"
    assert rows.valid[0].tolist() == [False] * 3 + [True] * 12
    assert second == "<s> Read: w5 w6 w7 w8 w9 w10 w11 Say: </s> w23 </s>"
    assert rows.valid[1].tolist() == [True] * 13 + [False] * 2
    assert rows.position[0].tolist() == list(range(24 - 10, 24 + 5))  # E has the position document_length


def test_positions_of_the_content(tiny_ql: Make) -> None:
    rows = tiny_ql(mask_prob=0.0, position_ids="content").pairs(batch_of([PASSAGE_A, PASSAGE_B], [QUERY_A, QUERY_B]))
    assert rows.position[0].tolist() == [0, 0, 0, *range(12)]


def test_long_texts_lose_their_right_end_but_never_the_ending_token(tiny_ql: Make) -> None:
    model = tiny_ql(mask_prob=0.0, document_length=4, query_length=3)
    rows = model.pairs(batch_of([PASSAGE_A], [QUERY_A]))
    assert words(model, rows.input_ids[0]) == "<s> Read: w1 w2 </s> w20 w21 </s>"


def test_only_the_first_passage_of_a_group_is_read(tiny_ql: Make) -> None:
    model = tiny_ql(mask_prob=0.0)
    grouped = model.pairs(batch_of([PASSAGE_A, PASSAGE_B, PASSAGE_B, PASSAGE_A], [QUERY_A, QUERY_B]))
    assert grouped.input_ids.equal(model.pairs(batch_of([PASSAGE_A, PASSAGE_B], [QUERY_A, QUERY_B])).input_ids)


@pytest.mark.parametrize("unit", ["word", "token"])
def test_only_the_passage_is_corrupted(tiny_ql: Make, unit: str) -> None:
    model = tiny_ql(mask_prob=1.0, mask_unit=unit)
    rows = model.pairs(batch_of([PASSAGE_A], [QUERY_A]))
    assert words(model, rows.input_ids[0]) == "<s> Read: _ _ _ _ Say: </s> w20 w21 w22 </s>"


def test_corruption_is_the_samples_own(tiny_ql: Make) -> None:
    model = tiny_ql(mask_prob=0.5)
    long = {"text": " ".join(["w1"] * 18)}
    alone = model.pairs(batch_of([long], [QUERY_A], key=5)).input_ids[0]
    second = model.pairs(batch_of([long, long], [QUERY_A, QUERY_A], key=4)).input_ids
    assert second[1].equal(alone)
    assert not second[0].equal(alone)


def test_both_directions_by_a_fair_coin_and_only_passages_are_corrupted(tiny_ql: Make) -> None:
    model = tiny_ql(mask_prob=1.0, direction="both")
    rows = model.pairs(batch_of([PASSAGE_A] * 400, [QUERY_A] * 400))
    kept = [words(model, row[mask]) for row, mask in zip(rows.input_ids, rows.valid, strict=True)]
    turned = kept.count("<s> Find: w20 w21 w22 Say: </s> w1 w2 w3 w4 </s>")
    assert turned + kept.count("<s> Read: _ _ _ _ Say: </s> w20 w21 w22 </s>") == 400
    assert abs(turned - 200) <= 30  # three deviations


# --- what reaches what -------------------------------------------------------------------------------------------


def changes(model: QueryLikelihood) -> tuple[float, float]:
    """The largest change of E's state and of those behind it when the first word of the passage is another."""
    states = []
    for word in ("w2", "w3"):
        rows = model.pairs(batch_of([{"text": f"{word} w4 w5"}], [QUERY_A]))
        states.append(model.hidden(rows)[0, rows.end :].detach())
    change = (states[0] - states[1]).abs().amax(-1)
    return change[0].item(), change[1:].max().item()


def test_one_layer_brings_nothing_of_the_passage_to_the_query(tiny_ql: Make) -> None:
    at_end, behind = changes(tiny_ql(layers=1, mask_prob=0.0))
    assert at_end > 1e-2
    assert behind == 0.0


def test_two_layers_bring_the_passage_through_the_ending_token(tiny_ql: Make) -> None:
    assert min(changes(tiny_ql(layers=2, mask_prob=0.0))) > 1e-2


def test_without_block_one_layer_looks_at_the_passage(tiny_ql: Make) -> None:
    assert min(changes(tiny_ql(layers=1, mask_prob=0.0, attention_block=False))) > 1e-2


@pytest.mark.parametrize(("layers", "reached"), [(1, False), (2, True)])
def test_gradient_of_the_query_to_the_passages_embeddings(tiny_ql: Make, layers: int, reached: bool) -> None:
    model = tiny_ql(layers=layers)
    kept: list[Tensor] = []

    def keep(module: Any, given: Any, embedding: Tensor) -> None:
        embedding.retain_grad()
        kept.append(embedding)

    model.language_model.network.get_input_embeddings().register_forward_hook(keep)
    rows = model.pairs(batch_of([PASSAGE_A], [QUERY_A]))
    chosen = torch.zeros_like(rows.valid)
    chosen[:, rows.end + 2 :] = True  # E itself, which predicts the first token, sees the passage
    model.log_probs(rows, chosen).sum().backward()
    grad = kept[0].grad
    assert grad is not None
    largest = grad[0, : rows.end].abs().max().item()
    assert (largest > 1e-4) if reached else (largest == 0.0)
    assert grad[0, rows.end].abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_block_it_is_the_stock_causal_model(tiny_ql: Make, attention: str) -> None:
    model = tiny_ql(attention_block=False, attention=attention)
    tokenizer = model.language_model.tokenizer
    texts = ["<s> Read: w1 w2 w3 w4 Say: </s> w20 w21 w22 </s>", "<s> Read: w5 w6 w7 w8 w9 w10 w11 Say: </s> w23 </s>"]
    expected = []
    for text, asked in zip(texts, (4, 2), strict=True):
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(text.split())])
        log_p = model.language_model.network(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        expected.append(log_p.gather(1, ids[0, 1:, None])[-asked:].sum())
    found = model.log_likelihood([QUERY_A, QUERY_B], [PASSAGE_A, PASSAGE_B])
    torch.testing.assert_close(found, torch.stack(expected), rtol=2e-6, atol=0)
    blocked = tiny_ql(attention=attention).log_likelihood([QUERY_A, QUERY_B], [PASSAGE_A, PASSAGE_B])
    assert (found - blocked).abs().min() > 1e-3


def test_eager_and_sdpa_agree_under_the_block(tiny_ql: Make) -> None:
    pairs = [QUERY_A, QUERY_B], [PASSAGE_A, PASSAGE_B]
    found = [tiny_ql(attention=attention).log_likelihood(*pairs) for attention in ("sdpa", "eager")]
    torch.testing.assert_close(*found, rtol=2e-6, atol=0)


@pytest.mark.parametrize("block", [True, False])
def test_positions_by_column_and_by_content_are_one_to_rotary_embeddings(tiny_ql: Make, block: bool) -> None:
    pairs = [QUERY_A, QUERY_B], [PASSAGE_A, PASSAGE_B]
    found = [tiny_ql(position_ids=way, attention_block=block).log_likelihood(*pairs) for way in ("column", "content")]
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["passage", "query"])
def test_vectors_do_not_depend_on_padding(tiny_ql: Make, kind: Any) -> None:
    short, long = {"text": "w1 w2"}, {"text": " ".join(f"w{i}" for i in range(16))}
    alone = tiny_ql().embed([short], kind)
    torch.testing.assert_close(tiny_ql().embed([short, long], kind)[:1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny_ql(document_length=100).embed([short], kind), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(1))


def test_passages_and_queries_have_templates_of_their_own(tiny_ql: Make) -> None:
    model = tiny_ql()
    alike = (model.embed([QUERY_A], "query") * model.embed([QUERY_A], "passage")).sum()
    assert alike < 0.99


# --- the loss ----------------------------------------------------------------------------------------------------


def step(model: QueryLikelihood, batch: RetrievalBatch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict]:
    logged: dict[str, Any] = {}
    monkeypatch.setattr(
        model, "log", lambda name, value, **more: logged.update({name: float(torch.as_tensor(value).detach())})
    )
    return model.training_step(batch, 0), logged


def by_hand(model: QueryLikelihood, batch: RetrievalBatch, first: int) -> Tensor:
    """The mean loss of the first row's tokens from column ``first`` on, of a batch without padding."""
    rows = model.pairs(batch)
    logits = model.language_model.network.get_output_embeddings()(model.hidden(rows))[0]
    return torch.nn.functional.cross_entropy(logits[first - 1 : -1], rows.input_ids[0, first:])


def test_the_query_and_its_end_are_learned_the_first_token_from_the_ending_token(
    tiny_ql: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_ql(mask_prob=0.0), batch_of([PASSAGE_A], [QUERY_A])
    end = model.pairs(batch).end
    loss, logged = step(model, batch, monkeypatch)
    torch.testing.assert_close(loss, by_hand(model, batch, end + 1))
    assert logged["train/nll"] == pytest.approx(loss.item())
    assert logged["train/tokens"] == 12
    assert logged["train/unigram_entropy"] == pytest.approx(math.log(4))


def test_all_labels_are_learned_and_the_likelihood_of_the_query_stands_beside(
    tiny_ql: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_ql(mask_prob=0.0, label_scope="all"), batch_of([PASSAGE_A], [QUERY_A])
    loss, logged = step(model, batch, monkeypatch)
    torch.testing.assert_close(loss, by_hand(model, batch, 1))
    assert logged["train/nll"] == pytest.approx(by_hand(model, batch, model.pairs(batch).end + 1).item())


def test_the_mean_is_over_tokens_and_not_over_rows(tiny_ql: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_ql(mask_prob=0.0)
    sums = -model.log_likelihood([QUERY_A, QUERY_B], [PASSAGE_A, PASSAGE_B])
    loss, _ = step(model, batch_of([PASSAGE_A, PASSAGE_B], [QUERY_A, QUERY_B]), monkeypatch)
    assert loss.item() == pytest.approx(sums.sum().item() / (4 + 2), rel=1e-5)


def test_entropy_of_counts() -> None:
    assert unigram_entropy(torch.tensor([2, 1, 1, 0])).item() == pytest.approx(1.5 * math.log(2))


def test_the_ending_token_learns_to_carry_the_passage(tiny_ql: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each passage has a topic, and its query is the topic's two words: eight topics, so log 8 / 3 is lost if E
    carries nothing, of which a quarter must not be left."""
    model = tiny_ql(mask_prob=0.2).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    passages = [{"text": " ".join([f"w{topic}"] * 4)} for topic in range(8)]
    queries = [{"text": f"w{20 + 2 * topic} w{21 + 2 * topic}"} for topic in range(8)]
    for number in range(60):
        loss, logged = step(model, batch_of(passages, queries, key=8 * number), monkeypatch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logged["train/nll"] < math.log(8) / 3 / 4
    assert logged["train/unigram_entropy"] == pytest.approx(math.log(24) * 2 / 3 + math.log(3) / 3, rel=1e-5)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_prob": 1.5}, "mask_prob=1.5: must be between 0 and 1"),
        ({"label_scope": "document"}, "label_scope='document': must be one of query, all"),
        ({"document_length": 1}, "document_length=1: must be at least 2"),
        ({"query_template": "Find:"}, "query_template='Find:': has no field"),
    ],
)
def test_settings_out_of_range(tiny_ql: Make, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_ql(**settings)


def test_flash_attention_takes_no_block_and_encoders_generate_nothing() -> None:
    with pytest.raises(ValueError, match="use sdpa, eager or flex_attention"):
        QueryLikelihood(LanguageModel("a model", attention="flash_attention_2"))
    with pytest.raises(ValueError, match="only a causal one"):
        QueryLikelihood(LanguageModel("a model", kind="encoder"))


def test_lengths_beyond_the_networks_positions_are_told_before_training(tiny_ql: Make) -> None:
    model = tiny_ql(document_length=40)
    model.language_model.network.config.max_position_embeddings = 48
    model._trainer = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="with E they have 49 positions, the network 48"):
        model.configure_model()
