"""Completions against transformers' own generation, and that each depends on its own prompt and stream alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.streams import key
from zoo.language import LanguageModel, Words
from zoo.language.configs import places_tokens_alone
from zoo.language.generation import Completions, Sampling, choose, generate, left_padded

PROMPTS = [[1, 7, 9], [1, 5], [1, 8, 8, 6, 11, 12], [1, 10, 9, 5]]


def make(folder: Path, **more: Any) -> LanguageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        torch.manual_seed(1)
        config = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
        sizes = {"max_position_embeddings": 64, "tie_word_embeddings": True}
        given = {name: value for name, value in {**config, **heads, **sizes, **more}.items() if value is not None}
        made = LanguageModel(config=given, tokenizer=Words(40))
        return made.build([" ".join(f"w{i}" for i in range(30))]).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return make(tmp_path_factory.mktemp("cache"))


def streams(seed: int, group: int) -> np.ndarray:
    return key(seed, np.arange(len(PROMPTS))[:, None], np.arange(group))


@pytest.mark.parametrize("more", [{}, {"model_type": "mistral", "sliding_window": 5}], ids=["full", "window"])
def test_the_likeliest_tokens_are_those_of_transformers(more: dict[str, Any], tmp_path: Path) -> None:
    model = make(tmp_path, **more)
    made = generate(model, PROMPTS, streams(0, 1), Sampling(20, temperature=0))
    ids, mask = left_padded(PROMPTS, model.tokenizer.pad_token_id, torch.device("cpu"))
    wanted = model.network.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        do_sample=False,
        max_new_tokens=20,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.end_tokens,
        use_cache=True,
    )[:, ids.shape[1] :]
    assert torch.equal(made.ids[:, : wanted.shape[1]], wanted)
    assert len(set(wanted[:, :5].flatten().tolist())) > 4


def test_a_completion_depends_on_its_prompt_and_its_stream_alone(model: LanguageModel) -> None:
    together = generate(model, PROMPTS, streams(3, 6), Sampling(24))
    assert together.truncated.any()
    assert not together.truncated.all()
    for number, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], streams(3, 6)[number : number + 1], Sampling(24))
        rows = slice(6 * number, 6 * number + 6)
        assert torch.equal(alone.ids, together.ids[rows])
        assert torch.equal(alone.mask, together.mask[rows])
        torch.testing.assert_close(alone.log_prob, together.log_prob[rows], atol=1e-4, rtol=0)


class Watched:
    """The shapes [B, T] and cached columns of the tokens that a network was called with."""

    def __init__(self, model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
        self.shapes, self.widths, hidden = list[tuple[int, int]](), list[int](), model.hidden

        def watched(ids: Tensor, mask: Tensor, *more: Any) -> Tensor:
            self.shapes.append((ids.shape[0], ids.shape[1]))
            self.widths.append(mask.shape[-1])
            return hidden(ids, mask, *more)

        patch.setattr(model, "hidden", watched)


def same(made: Completions, wanted: Completions) -> None:
    assert torch.equal(made.ids, wanted.ids)
    assert torch.equal(made.mask, wanted.mask)
    assert torch.equal(made.truncated, wanted.truncated)
    torch.testing.assert_close(made.log_prob, wanted.log_prob, atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_once", [1, 4, 7, 16])
def test_rows_that_join_make_no_difference(at_once: int, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(24)
    wanted = generate(model, PROMPTS, streams(3, 6), sampling)
    watched = Watched(model, monkeypatch)
    same(generate(model, PROMPTS, streams(3, 6), sampling, rows_at_once=at_once), wanted)
    assert max(rows for rows, _ in watched.shapes) <= at_once


def test_rows_join_before_all_others_have_ended(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = key(1, np.arange(64)[:, None], np.arange(1))
    watched = Watched(model, monkeypatch)
    lengths = generate(model, PROMPTS * 16, keys, Sampling(50)).mask.sum(1)
    apart = int(lengths.unflatten(0, (-1, 4)).max(1).values.sum())  # steps of four rows after four rows
    watched.shapes.clear()
    generate(model, PROMPTS * 16, keys, Sampling(50), rows_at_once=4)
    assert len([shape for shape in watched.shapes if shape[1] == 1]) < 0.8 * apart


def test_columns_never_exceed_the_positions(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [PROMPTS[2] if number % 4 == 0 else PROMPTS[1] for number in range(32)]
    keys, sampling = key(1, np.arange(32)[:, None], np.arange(1)), Sampling(58)
    wanted = generate(model, prompts, keys, sampling)
    watched = Watched(model, monkeypatch)
    same(generate(model, prompts, keys, sampling, rows_at_once=5), wanted)
    assert max(watched.widths) == 64


@pytest.mark.parametrize(
    "more",
    [{"model_type": "mistral", "sliding_window": 5},
     {"model_type": "gpt2", "intermediate_size": None, "num_key_value_heads": None}],
    ids=["window", "learned positions"],
)  # fmt: skip
def test_where_rows_cannot_join_the_next_wait_for_all(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path, **more)
    wanted = generate(model, PROMPTS, streams(3, 6), Sampling(24))
    watched = Watched(model, monkeypatch)
    same(generate(model, PROMPTS, streams(3, 6), Sampling(24), rows_at_once=9), wanted)
    assert [shape for shape in watched.shapes if shape[1] > 1] == [(2, 3), (2, 6), (1, 4)]


@pytest.mark.parametrize(
    ("rope", "alone"),
    [
        (None, False),
        ({"rope_type": "default"}, True),
        ({"rope_type": "yarn", "factor": 2.0}, True),
        ({"rope_type": "dynamic", "factor": 2.0}, False),
        ({"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}, False),
    ],
)
def test_positions_that_the_longest_row_scales_do_not_stand_alone(rope: dict[str, Any] | None, alone: bool) -> None:
    assert places_tokens_alone(SimpleNamespace(rope_parameters=rope)) is alone


def test_sharded_weights_take_the_same_steps(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = generate(model, PROMPTS, streams(3, 6), Sampling(24))
    watched = Watched(model, monkeypatch)
    monkeypatch.setattr("zoo.language.generation.any_rank", lambda going: True if len(watched.shapes) % 24 else going)
    same(generate(model, PROMPTS, streams(3, 6), Sampling(24), together=True, rows_at_once=12), wanted)
    assert len(watched.shapes) == 2 * 24


def test_log_probs_are_those_of_the_whole_sequence_at_the_temperature(model: LanguageModel) -> None:
    made = generate(model, PROMPTS, streams(5, 2), Sampling(12, temperature=0.7, top_k=5, top_p=0.9))
    for row in range(8):
        prompt, count = PROMPTS[row // 2], int(made.mask[row].sum())
        ids = torch.tensor([[*prompt, *made.ids[row, :count].tolist()]])
        states = model.hidden(ids, torch.ones_like(ids))[:, len(prompt) - 1 : -1]
        with torch.no_grad():
            wanted = model.token_log_probs(states, ids[:, len(prompt) :], 0.7)[0]
        torch.testing.assert_close(made.log_prob[row, :count], wanted, atol=1e-4, rtol=0)


def test_a_completion_ends_with_its_first_end_token(model: LanguageModel) -> None:
    made = generate(model, PROMPTS, streams(7, 8), Sampling(30))
    end = model.tokenizer.eos_token_id
    for ids, mask, truncated in zip(made.ids, made.mask, made.truncated, strict=True):
        kept = ids[mask].tolist()
        assert (end in kept) == (not truncated)
        assert truncated or kept.index(end) == len(kept) - 1
        assert not truncated or len(kept) == 30


def test_padding_may_be_the_end_token(tmp_path: Path) -> None:
    model = make(tmp_path)
    wanted = generate(model, PROMPTS, streams(7, 8), Sampling(30))
    model.tokenizer.pad_token = model.tokenizer.eos_token
    made = generate(model, PROMPTS, streams(7, 8), Sampling(30))
    assert made.ids[~made.mask].unique().tolist() == [model.tokenizer.eos_token_id]
    assert torch.equal(made.mask, wanted.mask)
    assert torch.equal(made.truncated, wanted.truncated)
    assert torch.equal(made.ids[made.mask], wanted.ids[wanted.mask])


def test_what_is_generated_can_be_learned_from(model: LanguageModel) -> None:
    made = generate(model, PROMPTS, streams(3, 1), Sampling(6))
    states = model.hidden(made.ids, made.mask)
    assert model.token_log_probs(states[:, :-1], made.ids[:, 1:]).sum().requires_grad


def frequencies(logits: Tensor, sampling: Sampling, n: int = 20_000) -> Tensor:
    draw = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    token, _ = choose(logits.expand(n, -1), draw, sampling)
    return torch.bincount(token, minlength=logits.shape[-1]) / n


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    torch.testing.assert_close(frequencies(logits, Sampling()), logits.softmax(0), atol=1e-4, rtol=0)
    cold = frequencies(logits, Sampling(temperature=0.5))
    torch.testing.assert_close(cold, (logits / 0.5).softmax(0), atol=1e-4, rtol=0)
    two = torch.tensor([0.0, 0.0, 2.0, 0.0, 1.0]).where(torch.tensor([0, 0, 1, 0, 1]) > 0, -torch.inf).softmax(0)
    torch.testing.assert_close(frequencies(logits, Sampling(top_k=2)), two, atol=1e-4, rtol=0)
    # shares .573, .211, .105, .078, .029: two tokens hold .784, the third is needed for .8
    three = logits.where(logits > 0.2, -torch.inf).softmax(0)
    torch.testing.assert_close(frequencies(logits, Sampling(top_p=0.8)), three, atol=1e-4, rtol=0)
    torch.testing.assert_close(frequencies(logits, Sampling(top_p=0.78)), two, atol=1e-4, rtol=0)


def test_a_number_just_below_one_never_gives_a_token_without_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    token, log_prob = choose(logits, torch.tensor([1 - 2.0**-53], dtype=torch.float64), Sampling())
    assert token.item() == 1
    assert log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"max_new_tokens": 0}, "max_new_tokens=0"), ({"temperature": -1.0}, "temperature=-1"), ({"top_k": -1}, "top_k=-"),
     ({"top_p": 0.0}, "top_p=0"), ({"top_p": 1.1}, "top_p=1.1")],
)  # fmt: skip
def test_wrong_settings_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_prompt_needs_a_token(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        generate(model, [[1], []], streams(0, 1)[:2], Sampling(4))


def test_at_least_one_row_is_computed(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="rows_at_once=0: must be at least 1"):
        generate(model, PROMPTS, streams(0, 1), Sampling(4), rows_at_once=0)


def test_positions_must_hold_prompt_and_completion(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="a prompt of 6 tokens with max_new_tokens=59: the network has 64 positions"):
        generate(model, PROMPTS, streams(0, 1), Sampling(59))
