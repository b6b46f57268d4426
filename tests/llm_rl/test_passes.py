"""Passes over completions: what shares a prompt, or goes without a mask, computes what each row alone would."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.llm_rl.conftest import CONFIG
from zoo.language import LanguageModel, Lora
from zoo.language.tokenizers import Characters
from zoo.llm_rl import passes
from zoo.llm_rl.batches import Rollout
from zoo.llm_rl.passes import Layout, predicting_states, prompts_once, reads_once, row_by_row, similar

GPT: dict[str, Any] = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
                       "initializer_range": 0.3, "tie_word_embeddings": True}  # fmt: skip
PROMPTS, LENGTHS, GROUPS = [5, 9, 7], [11, 4, 1, 6, 6, 12, 2, 3], [1, 0, 1, 2, 1, 1, 0, 2]


def decoder(config: dict[str, Any] = CONFIG, double: bool = True, **more: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(config=config, tokenizer=Characters(), **more).build(["0123456789+=-ab"]).eval()
    return model.double() if double else model


def rollout(lengths: list[int] = LENGTHS, groups: list[int] = GROUPS) -> Rollout:
    """Completions of three prompts, in disorder; group numbers need not begin at 0."""
    torch.manual_seed(1)
    width = max(PROMPTS)
    prompts = torch.randint(3, 15, (len(PROMPTS), width))
    real = torch.arange(width) >= width - torch.tensor(PROMPTS)[:, None]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids, group = torch.randint(3, 15, mask.shape), torch.tensor(groups)
    return Rollout(
        (prompts * real)[group], real[group], ids * mask, mask, group * 7 + 3, group < 0, torch.arange(len(ids))
    )


def one_by_one(model: LanguageModel, some: Rollout) -> Tensor:
    """Each row in a pass of its own, without any padding."""
    found = []
    for row in range(len(some.mask)):
        prompt, written = (some[i][row][some[i + 1][row]] for i in (0, 2))
        ids = torch.cat([prompt, written])[None]
        found.append(model.hidden(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1])
    return torch.cat(found)


def gradients(model: LanguageModel, states: Tensor) -> Tensor:
    model.zero_grad()
    torch.manual_seed(2)
    (states * torch.randn_like(states)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check(model: LanguageModel, some: Rollout, found: Tensor, tolerance: float) -> None:
    wanted = one_by_one(model, some)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    theirs, ours = gradients(model, wanted), gradients(model, found)
    assert theirs.norm() > 1
    assert (ours - theirs).abs().max() / theirs.abs().max() < tolerance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompts_have_the_gradients_of_each_row_alone(attention: str) -> None:
    """GPT-2 computes all of it in float64, where llama's norms are float32."""
    model, some = decoder(GPT, attention=attention), rollout()
    check(model, some, prompts_once(model, some, Layout.of(some)), 1e-12)


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8, dropout=0.0)], ids=["full", "lora"])
def test_shared_prompts_have_them_with_rotary_positions_too(lora: Lora | None) -> None:
    model, some = decoder(lora=lora), rollout()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    check(model, some, prompts_once(model, some, Layout.of(some)), 1e-6)


def test_shared_prompts_in_float32() -> None:
    model, some = decoder(double=False), rollout()
    check(model, some, prompts_once(model, some, Layout.of(some)), 5e-6)


def test_rows_with_padding_behind_need_no_mask() -> None:
    model, some = decoder(GPT), rollout()
    check(model, some, row_by_row(model, some), 1e-12)
    check(model, some, predicting_states(model, some), 1e-12)


def test_completions_of_one_token_follow_from_the_prompt_alone() -> None:
    model, some = decoder(GPT), rollout([1] * len(GROUPS))
    layout = Layout.of(some)
    assert (layout.width, layout.tokens) == (0, 27)
    check(model, some, prompts_once(model, some, layout), 1e-12)


def test_completions_of_a_prompt_fill_rows() -> None:
    """Those of one token are not read, so have no place of their own: that of row 2 is the end of another."""
    layout = Layout.of(rollout())
    assert layout.prompt.tolist() == GROUPS
    assert layout.first.tolist() == [1, 0, 3]
    assert layout.width == 11
    assert layout.owner.tolist() == [0, 1, 1, 1, 2]
    assert layout.place.tolist() == [22, 0, 22, 44, 33, 11, 3, 49]
    assert layout.tokens == 3 * 9 + 5 * 11


@pytest.mark.parametrize(
    ("more", "shared"),
    [
        ({}, True),
        ({"attention": "eager"}, True),
        ({"attention": "flex_attention"}, False),
        ({"gradient_checkpointing": True}, False),
        ({"config": GPT}, False),
        ({"config": {**CONFIG, "model_type": "mistral", "sliding_window": 8}}, False),
        ({"config": {**CONFIG, "model_type": "mistral", "sliding_window": None}}, True),
    ],
)
def test_prompts_are_shared_where_the_network_allows_it(more: dict[str, Any], shared: bool) -> None:
    assert reads_once(decoder(**{"double": False, **more})) == shared


def test_a_window_sees_what_it_should() -> None:
    model = decoder({**CONFIG, "model_type": "mistral", "sliding_window": 6})
    check(model, rollout(), predicting_states(model, rollout()), 1e-6)


def test_prompts_are_shared_where_it_saves_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = decoder(double=False), []
    monkeypatch.setattr(passes, "prompts_once", lambda *_: calls.append("shared") or torch.zeros(1))
    monkeypatch.setattr(passes, "row_by_row", lambda *_: calls.append("rows") or torch.zeros(1))
    for some, together in ((rollout(), False), (rollout(), True), (rollout([40, 40, 40], [0, 1, 2]), False)):
        predicting_states(model, some, together)
    assert calls == ["shared", "rows", "rows"]
    # 8 rows of 9 + 11 - 0 tokens at most, against 3 prompts of 9 and five rows of 11
    assert Layout.of(rollout()).tokens == 82


def test_rows_of_similar_length_are_computed_together() -> None:
    assert similar([40] * 10 + [30] * 10 + [29] * 10, least=256) == [20, 10]
    assert similar([40] * 10 + [29] * 8, least=256) == [18]  # too few are left
    assert similar([40] * 6 + [29] * 20, least=256) == [7, 19]  # six in front are too few
    assert similar([]) == [0]


def test_parts_of_similar_rows_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = decoder(GPT), rollout()
    monkeypatch.setattr(passes, "similar", lambda length: [1, 3, 4])
    torch.testing.assert_close(predicting_states(model, some), one_by_one(model, some), atol=1e-12, rtol=0)
