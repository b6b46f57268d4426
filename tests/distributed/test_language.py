"""Language models in shards (FSDP2): one process and two against one that is whole."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from zoo.language import LanguageModel, Lora, Words

TwoRanks = Callable[[Callable[[int], object]], list[object]]
TEXTS = ["a b c d e f", "g h a b c i", "i h g f e d", "c a b a c b"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def make(tied: bool, lora: bool, start: str | None = None) -> LanguageModel:
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    adapters = Lora(r=2, alpha=2, dropout=0.0) if lora else None
    model = LanguageModel(
        config=config, tokenizer=Words(20), lora=adapters, gradient_checkpointing=True, init_from=start
    ).build(TEXTS)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def momentum(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, momentum=0.9)


def step(model: LanguageModel, texts: list[str], optimizer: torch.optim.Optimizer | None = None) -> list[Tensor]:
    """The loss and all weights after a step."""
    optimizer = momentum(model) if optimizer is None else optimizer
    optimizer.zero_grad()
    words = model.tokenizer(texts, return_tensors="pt")
    hidden = model.hidden(words["input_ids"], words["attention_mask"])
    loss = -model.token_log_probs(hidden[:, :-1], words["input_ids"][:, 1:]).mean()
    loss.backward()
    optimizer.step()
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [loss.detach(), *(weight.detach() for weight in weights)]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_two_ranks_with_half_the_weights_step_as_one(tied: bool, lora: bool, on_two_ranks: TwoRanks) -> None:
    def work(rank: int) -> list[Tensor]:
        model = make(tied, lora).shard(init_device_mesh("cpu", (2,)))
        shards = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
        held, total = sum(p.numel() for p in shards), sum(p.numel() for p in model.parameters())
        loss, *weights = step(model, TEXTS[2 * rank : 2 * rank + 2])
        distributed.all_reduce(loss)
        return [torch.tensor([held / total]), loss / 2, *weights]

    expected = step(make(tied, lora), TEXTS)
    for share, *found in on_two_ranks(work):  # type: ignore[misc]
        assert 0.45 < share.item() < 0.55
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def alone() -> Iterator[None]:
    """Takes back what Lightning leaves in a process that was a rank."""
    before = dict(os.environ)
    yield
    distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("lora", [False, True])
def test_lightning_shards_steps_saves_and_goes_on(tmp_path: Path, lora: bool) -> None:
    from lightning.pytorch import LightningModule, Trainer

    from zoo.strategies import FSDP2Strategy

    class Method(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.language_model = make(True, lora, start)

        def configure_model(self) -> None:
            self.language_model.shard(self.device_mesh["data_parallel"])

        def training_step(self, batch: list[str], batch_idx: int) -> Tensor:
            words = self.language_model.tokenizer(batch, return_tensors="pt")
            hidden = self.language_model.hidden(words["input_ids"], words["attention_mask"])
            return -self.language_model.token_log_probs(hidden[:, :-1], words["input_ids"][:, 1:]).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return momentum(self)

    def fit(module: Method, steps: int, checkpoint: Path | None = None) -> Trainer:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            strategy=FSDP2Strategy(),
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(TEXTS, batch_size=4), ckpt_path=checkpoint)
        return trainer

    start = str(tmp_path / "start.ckpt")
    torch.save({f"language_model.{name}": value for name, value in make(True, False).state_dict().items()}, start)
    fit(Method(), 1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = Method()
    torch.nn.init.zeros_(resumed.language_model.network.get_input_embeddings().weight)
    fit(resumed, 2, tmp_path / "one.ckpt")
    whole = make(True, lora, start)
    optimizer = momentum(whole)
    step(whole, TEXTS, optimizer)
    first = whole.network.get_input_embeddings().weight.detach().clone()
    expected = step(whole, TEXTS, optimizer)[1:]
    found = [p.full_tensor() for p in resumed.parameters() if isinstance(p, DTensor)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    files = [start, str(tmp_path / "one.ckpt")]
    started = LanguageModel(config=whole.config, tokenizer=Words(20), init_from=files).build()
    torch.testing.assert_close(started.network.get_input_embeddings().weight, first, rtol=1e-4, atol=1e-5)
