"""Which tokens are learned, that packing and ranks change no loss, and that a tiny model learns its prompts."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, distributed
from torch import multiprocessing as mp

from datamodules.arithmetic import Arithmetic, Level
from datamodules.batches import Prompt, PromptBatch
from datamodules.completions import Completions
from datamodules.prompt_sets import PromptSet
from zoo.language import LanguageModel, Lora, Words
from zoo.language.tokenizers import Characters
from zoo.llm_rl.supervised import SupervisedFineTuner, encode, prompt_tokens

PROMPTS = [
    Prompt("a", "12+34=", "46", "46"),
    Prompt("b", "5*5*5=", "125", "5*5=25\n#### 125"),
    Prompt("c", "9-9=", "0", "0"),
    Prompt("d", "", "7", "7 is a number"),
]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "val_check_interval": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def network(init_from: str | None = None, lora: Lora | None = None) -> LanguageModel:
    torch.manual_seed(0)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LanguageModel(config=config, tokenizer=Characters(), init_from=init_from, lora=lora)


def tuner(**settings: Any) -> SupervisedFineTuner:
    found = SupervisedFineTuner(network(), **{"max_length": 32, **settings})
    found.language_model.build(["1"])
    return found


def batch_of(prompts: list[Prompt]) -> PromptBatch:
    rows = torch.arange(len(prompts))
    return PromptBatch(prompts, rows, rows)


# --- texts to tokens ---------------------------------------------------------------------------------------------


def spelled(tokenizer: Any, tokens: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(tokens)).replace("<s>", "[").replace("</s>", "]")


def test_the_completion_and_its_end_are_learned() -> None:
    tokenizer = Characters().make(["1"])
    found = encode(tokenizer, PROMPTS[:2], "completion", 32)
    assert [spelled(tokenizer, example.tokens) for example in found] == ["[12+34=46]", "[5*5*5=5*5=25\n#### 125]"]
    assert [spelled(tokenizer, example.tokens[example.start :]) for example in found] == ["46]", "5*5=25\n#### 125]"]
    assert [example.start for example in encode(tokenizer, PROMPTS[:2], "all", 32)] == [1, 1]


def test_begin_comes_once_and_no_token_spans_the_boundary() -> None:
    tokenizer = Words(20).make(["a b ab c"])
    bos = tokenizer.bos_token_id
    assert prompt_tokens(tokenizer, ["a", "<s>a", ""]) == [[bos, *tokenizer.convert_tokens_to_ids(["a"])]] * 2 + [[bos]]
    joined = encode(tokenizer, [Prompt("0", "c a", completion="b")], "completion", 8)[0].tokens
    assert tokenizer.convert_ids_to_tokens(joined) == ["<s>", "c", "a", "b", "</s>"]  # and not "ab"
    tokenizer.backend_tokenizer.post_processor = None
    assert prompt_tokens(tokenizer, ["a", ""]) == [[tokenizer.convert_tokens_to_ids("a")], []]
    without = encode(tokenizer, [Prompt("0", "", completion="a b")], "completion", 8)[0]
    assert (len(without.tokens), without.start) == (3, 1)  # the first token has nothing to be predicted from


def test_long_prompts_lose_their_beginning_and_long_completions_their_end() -> None:
    tokenizer = Characters().make(["1"])

    def cut(text: str, completion: str, length: int) -> tuple[str, str]:
        example = encode(tokenizer, [Prompt("0", text, completion=completion)], "completion", length)[0]
        assert len(example.tokens) <= length
        return tuple(
            spelled(tokenizer, part) for part in (example.tokens[: example.start], example.tokens[example.start :])
        )  # type: ignore[return-value]

    assert cut("123456", "78", 10) == ("[123456", "78]")
    assert cut("123456", "78", 9) == ("[23456", "78]")
    assert cut("123456", "78", 5) == ("[6", "78]")
    assert cut("123456", "78", 4) == ("[", "78]")
    assert cut("123456", "78", 3) == ("[", "78")
    assert cut("123456", "78901", 4) == ("[", "789")


def test_long_texts_go_on_so_that_each_token_is_learned_once() -> None:
    tokenizer = Characters().make(["1"])
    for length in (2, 3, 5, 13, 14, 40):
        found = encode(tokenizer, [Prompt("0", "12345", completion="678901"), PROMPTS[0]], "all", length)
        assert max(len(example.tokens) for example in found) <= length
        for number, whole in enumerate(["[12345678901]", "[12+34=46]"]):
            own = [spelled(tokenizer, example.tokens) for example in found if example.prompt == number]
            assert own[0][0] + "".join(part[1:] for part in own) == whole
            assert all(a[-1] == b[0] for a, b in pairwise(own))


def test_wrong_input_is_named() -> None:
    tokenizer = Characters().make(["1"])
    with pytest.raises(ValueError, match="prompt 'x' has no completion"):
        encode(tokenizer, [Prompt("x", "1+1=")], "completion", 8)
    with pytest.raises(ValueError, match="learn='answer': must be one of completion, all"):
        tuner(learn="answer")
    with pytest.raises(ValueError, match="max_length=1: must be at least 2"):
        tuner(max_length=1)
    flash = network()
    flash.attention = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 takes no mask of packed rows"):
        SupervisedFineTuner(flash, packing=True)
    long = SupervisedFineTuner(network(), max_length=65)
    with pytest.raises(ValueError, match="max_length=65: the network has 64 positions"):
        Trainer(max_steps=1, **QUIET).fit(long, arithmetic())


# --- the loss ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(model: LanguageModel, prompt: Prompt, learn_all: bool) -> list[float]:
    """Log-probabilities of a prompt's learned tokens, by transformers' own logits of its tokens alone."""
    tokenizer = model.tokenizer
    tokens = tokenizer(prompt.text + str(prompt.completion))["input_ids"] + [tokenizer.eos_token_id]
    log_p = model.network(torch.tensor([tokens])).logits[0].log_softmax(-1)
    first = 1 if learn_all else 1 + len(prompt.text)
    return [log_p[at - 1, tokens[at]].item() for at in range(first, len(tokens))]


@pytest.mark.parametrize("learn", ["completion", "all"])
@pytest.mark.parametrize("packing", [False, True])
def test_log_probs_are_those_of_each_text_alone(learn: str, packing: bool) -> None:
    found = tuner(learn=learn, packing=packing, max_length=40)
    scored = found.score(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        expected = by_hand(found.language_model, prompt, learn == "all")
        own = scored.log_prob[scored.prompt == number]
        torch.testing.assert_close(own, torch.tensor(expected), rtol=0, atol=2e-6)


def step(module: SupervisedFineTuner, prompts: list[Prompt]) -> list[Tensor]:
    """The loss and all gradients."""
    module.log = lambda *_, **__: None  # type: ignore[assignment]
    module.zero_grad()
    loss = module.training_step(batch_of(prompts), 0)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def test_packing_changes_neither_loss_nor_gradient() -> None:
    plain, packed = step(tuner(), PROMPTS), step(tuner(packing=True), PROMPTS)
    assert abs(plain[0] - packed[0]) < 1e-6
    for a, b in zip(plain[1:], packed[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_tokens_and_not_over_texts() -> None:
    module = tuner()
    each = [by_hand(module.language_model, prompt, False) for prompt in PROMPTS]
    tokens = [-value for values in each for value in values]
    loss = step(module, PROMPTS)[0].item()
    assert math.isclose(loss, sum(tokens) / len(tokens), abs_tol=1e-5)
    assert abs(loss - sum(-sum(values) / len(values) for values in each) / len(each)) > 0.01


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    values = step(tuner(packing=True), [PROMPTS[:1], PROMPTS[1:]][rank])
    for value in values:
        distributed.all_reduce(value)
    torch.save([value / 2 for value in values], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_with_unequal_tokens_average_to_one_process(tmp_path: Path) -> None:
    expected = step(tuner(), PROMPTS)
    mp.start_processes(_work, (tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-5, atol=1e-6)
    apart = (step(tuner(), PROMPTS[:1])[0] + step(tuner(), PROMPTS[1:])[0]) / 2
    assert abs(apart - expected[0]) > 0.01  # what the mean of the ranks' means would be


# --- with a Trainer ----------------------------------------------------------------------------------------------


def arithmetic(train: int = 8) -> Completions:
    return Completions(Arithmetic([Level(1)], train=train, val=7, test=0), batch_size=8, eval_batch_size=4)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def fit(steps: int, folder: Path | None = None, module: SupervisedFineTuner | None = None, **more: Any) -> Any:
    if module is None:
        module = SupervisedFineTuner(network(), max_length=16, optimizer=momentum)
        torch.manual_seed(0)  # what a Trainer draws before it builds the network depends on what has run before
        module.language_model.build(["0"])
    trainer = Trainer(max_steps=steps, **{**QUIET, **more})
    trainer.fit(module, arithmetic(16), ckpt_path=folder)
    return trainer, module


def test_validation_counts_tokens_and_each_text_once() -> None:
    trainer, module = fit(1)
    prompts = trainer.datamodule.prompts("val")
    module.eval()
    each = [by_hand(module.language_model, prompt, False) for prompt in prompts]
    tokens = sum(map(len, each))
    assert math.isclose(trainer.callback_metrics["val/nll"], -sum(map(sum, each)) / tokens, rel_tol=1e-5)
    # seven texts, of which a second rank would repeat the first to fill its batch
    module.on_validation_epoch_start()
    for some in (prompts[:4], [*prompts[4:], prompts[0]]):
        rows = torch.tensor([prompts.index(prompt) for prompt in some])
        with torch.no_grad():
            module.validation_step(PromptBatch(some, rows, rows), 0)
    kept: dict[str, float] = {}
    module.log = lambda name, value, **_: kept.update({name: float(value)})
    module.on_validation_epoch_end()
    assert math.isclose(kept["val/nll"], -sum(map(sum, each)) / tokens, rel_tol=1e-5)
    assert module.results()[0]["texts"] == 7


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    class SaveThird(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    whole = fit(5, callbacks=[SaveThird()])[1]
    resumed = fit(5, tmp_path / "three.ckpt")[1]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    started = network(str(tmp_path / "three.ckpt")).build()
    for a, b in zip(fit(3)[1].parameters(), started.parameters(), strict=True):
        assert torch.equal(a, b)


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    trainer, base = fit(1)
    trainer.save_checkpoint(tmp_path / "base.ckpt")
    start = network(str(tmp_path / "base.ckpt"), Lora(r=2, alpha=4, dropout=0.0))
    module = fit(2, module=SupervisedFineTuner(start, max_length=16, packing=True, optimizer=momentum))[1]
    before, after = base.language_model.merged_state(), dict(module.language_model.network.named_parameters())
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(after[f"{name}.base_layer.weight"], before[f"{name}.weight"])
    assert after[f"{name}.lora_B.default.weight"].abs().max() > 0


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes back what Lightning leaves in a process that was a rank."""
    import os

    before = dict(os.environ)
    yield
    distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("alone")
def test_shards_learn_and_validate_as_the_whole() -> None:
    from torch.distributed.tensor import DTensor

    from zoo.strategies import FSDP2Strategy

    whole, expected = fit(2)
    sharded, found = fit(2, strategy=FSDP2Strategy())
    shards = found.language_model.network.state_dict()
    for name, value in expected.language_model.network.state_dict().items():
        assert isinstance(shards[name], DTensor)
        torch.testing.assert_close(shards[name].full_tensor(), value, rtol=1e-4, atol=1e-5)
    for name in ("val/nll", "val/token_accuracy", "val/exact_match"):
        torch.testing.assert_close(sharded.callback_metrics[name], whole.callback_metrics[name], rtol=1e-4, atol=1e-5)


class Backwards(PromptSet):
    """Digits to write down backwards."""

    def load(self) -> dict[str, list[Prompt]]:
        pairs = [(a, b) for a in "0123456789" for b in "0123456789"]
        prompts = [Prompt(a + b, f"{a}{b}=", completion=b + a) for a, b in pairs]
        return {"train": prompts, "val": [prompt._replace(id=f"val {prompt.id}") for prompt in prompts]}


def test_a_tiny_model_learns_what_greedy_decoding_then_writes() -> None:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=5e-3)

    torch.manual_seed(0)
    module = SupervisedFineTuner(network(), max_length=16, packing=True, optimizer=adam)
    trainer = Trainer(max_steps=150, **{**QUIET, "val_check_interval": 5}, check_val_every_n_epoch=30)
    trainer.fit(module, Completions(Backwards(), batch_size=20))
    assert trainer.callback_metrics["val/nll"] < 0.1
    assert trainer.callback_metrics["val/exact_match"] > 0.95
    model = module.language_model.eval()
    right = 0
    for prompt in Backwards().load()["val"][::9]:
        tokens = prompt_tokens(model.tokenizer, [prompt.text])[0]
        while tokens[-1] != model.tokenizer.eos_token_id and len(tokens) < 16:
            with torch.no_grad():
                tokens.append(int(model.network(torch.tensor([tokens])).logits[0, -1].argmax()))
        right += model.tokenizer.decode(tokens, skip_special_tokens=True) == prompt.text + str(prompt.completion)
    assert right >= 11  # of 12
