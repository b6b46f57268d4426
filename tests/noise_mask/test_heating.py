"""Heating: what each network learns from, the limits, exact resuming, and automatic optimisation."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.batches import ImageBatch
from zoo.callbacks import KeepLast, StepSeed
from zoo.nn import Conv64F
from zoo.noise_mask import (
    AverageLast,
    Cosine,
    ImageClassifier,
    LogSumExp,
    MaskPolicy,
    NoiseMask,
    NoiseMaskHeating,
    Reinforce,
    StepDecay,
)
from zoo.noise_mask.objectives import beta_log_density

Quiet = Callable[..., Trainer]


def tiny_policy(cells: int) -> MaskPolicy:
    return MaskPolicy(cells, Conv64F(1, width=4, pools=2))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3)


def heating(seed: int = 0, **options: Any) -> NoiseMaskHeating:
    torch.manual_seed(seed)
    backbone = Conv64F(1, width=8, pools=2)
    common: dict[str, Any] = {"mask": NoiseMask(4, 3, 1.0), "policy": tiny_policy, "optimizer": sgd}
    return NoiseMaskHeating(backbone, 3, **{**common, **options})


def quiet(module: LightningModule) -> Any:
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.train()


def grads(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_official_policy_has_the_official_size_and_shapes() -> None:
    policy = MaskPolicy(64**2)
    assert sum(p.numel() for p in policy.extractor.parameters()) == pytest.approx(4.92e6, rel=1e-3)
    heads = [p for name, p in policy.named_parameters() if name.startswith("head_")]
    assert sum(p.numel() for p in heads) == 5_257_216
    u, v = policy(torch.randn(2, 3, 32, 40))
    assert u.shape == v.shape == (2, 4096)
    assert u.dtype == torch.float32
    assert not torch.equal(u, v)


def test_a_policy_may_see_smaller_images() -> None:
    torch.manual_seed(0)
    policy = MaskPolicy(4, Conv64F(1, width=4, pools=2), input_size=6).train()
    image = torch.randn(3, 1, 6, 6).repeat_interleave(2, 2).repeat_interleave(3, 3)
    small = MaskPolicy(4, policy.extractor)
    small.load_state_dict(policy.state_dict())
    torch.testing.assert_close(policy(image)[0], small(image[:, :, ::2, ::3])[0])


def test_classifier_gradient_is_the_mean_log_density_times_the_plain_one(batch: ImageBatch) -> None:
    module = quiet(heating())
    torch.manual_seed(1)
    kept: list[Any] = []
    objective = module.objective.forward
    module.objective.forward = lambda *parts: kept.extend(parts) or objective(*parts)
    loss = module.training_step(batch, 0)
    loss.backward()
    found = grads(module)
    a, b, cells, cost = kept
    multiplier = torch.logsumexp(beta_log_density(a, b, cells), 1).mean()
    torch.testing.assert_close(loss, multiplier * cost.mean())
    module.zero_grad()
    cross_entropy(module(module.mask(batch.image, cells)), batch.label).backward()
    plain = grads(module)
    assert set(found) - set(plain) == {name for name in found if name.startswith("policy.")}
    for name, value in plain.items():
        torch.testing.assert_close(found[name], multiplier.detach() * value, rtol=1e-4, atol=1e-6)


def test_policy_learns_from_the_density_alone(batch: ImageBatch) -> None:
    """The sample carries no gradient: with a fixed cost the policy's gradient is that cost times the density's."""
    module = quiet(heating())
    torch.manual_seed(1)
    module.training_step(batch, 0).backward()
    through_images = grads(module.policy)
    module = quiet(heating())
    torch.manual_seed(1)
    a, b = module._concentrations(batch.image)
    with torch.no_grad():
        cells = torch.distributions.Beta(a.exp(), b.exp()).sample()
        cost = cross_entropy(module(module.mask(batch.image, cells)), batch.label)
    (cost * torch.logsumexp(beta_log_density(a, b, cells), 1).mean()).backward()
    for name, value in grads(module.policy).items():
        torch.testing.assert_close(through_images[name], value, rtol=1e-4, atol=1e-7)
        assert value.abs().sum() > 0 or "bias" in name


def test_gradient_through_the_mixture_is_a_tenth(batch: ImageBatch) -> None:
    mask = NoiseMask(2)
    u = torch.zeros(1, 4, requires_grad=True)
    a, _ = mask.concentrations(u, u.detach())
    a.sum().backward()
    torch.testing.assert_close(u.grad, torch.full((1, 4), 0.1))


def test_mask_of_ones_and_detached_weight_are_standard_training_bit_for_bit(
    data: Any, quiet_trainer: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.noise_mask.heating.sample_cells", lambda a, b: torch.ones_like(a))
    heated = heating(mask=NoiseMask(4, 1, 1.0), objective=LogSumExp(detach_weight=True))
    heated.policy.requires_grad_(False)  # type: ignore[union-attr]
    torch.manual_seed(0)
    plain = ImageClassifier(Conv64F(1, width=8, pools=2), 3, optimizer=sgd)
    plain.load_state_dict({k: v for k, v in heated.state_dict().items() if k.startswith(("backbone.", "head."))})
    for module in (heated, plain):
        quiet_trainer(max_epochs=2, limit_val_batches=0).fit(module, data())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, heated.state_dict()[name]), name


def test_the_base_moves_after_use_by_the_batch_mean_and_carries_no_graph(batch: ImageBatch) -> None:
    module = quiet(heating())
    before = module.mask.base_a.clone()
    policy = module.policy
    outputs: list[Tensor] = []
    policy.head_a.register_forward_hook(lambda *parts: outputs.append(parts[-1].detach()))
    for step in range(200):
        a, _ = module._concentrations(batch.image)
        if step == 0:
            torch.testing.assert_close(a.detach(), 0.9 * before + 0.1 * outputs[0])
            torch.testing.assert_close(module.mask.base_a, 0.99 * before + 0.01 * outputs[0].mean(0))
        assert module.mask.base_a.grad_fn is None
        assert not module.mask.base_a.requires_grad
    assert len(outputs) == 200  # each head runs once a step


def test_the_density_stays_in_float32_under_autocast(batch: ImageBatch) -> None:
    module = quiet(heating())
    found: list[Tensor] = []
    objective = module.objective.forward
    module.objective.forward = lambda *parts: found.extend(parts) or objective(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(batch.image).dtype == torch.bfloat16
        loss = module.training_step(batch, 0)
    assert {part.dtype for part in (loss, *found, module.mask.base_a)} == {torch.float32}
    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_without_a_policy_masks_come_from_the_initial_base_with_the_same_multiplier(batch: ImageBatch) -> None:
    module = quiet(heating(policy=None))
    base = module.mask.base_a.clone()
    torch.manual_seed(1)
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.equal(module.mask.base_a, base)
    assert len(module.parameter_groups()) == 1
    torch.manual_seed(1)
    a, b = module.mask.base(16)
    cells = torch.distributions.Beta(a.exp(), b.exp()).sample()
    multiplier = torch.logsumexp(beta_log_density(a, b, cells), 1).mean()
    cost = cross_entropy(module(module.mask(batch.image, cells)), batch.label)
    torch.testing.assert_close(loss, multiplier * cost)


def test_images_of_any_height_and_width_train(batch: ImageBatch) -> None:
    module = quiet(heating())
    for height, width in ((12, 20), (9, 5)):
        image = torch.randn(4, 1, height, width)
        assert module.training_step(ImageBatch(image, batch.label[:4]), 0).isfinite()


def test_each_group_has_its_rate_and_schedule(data: Any, quiet_trainer: Quiet) -> None:
    module = heating(schedule=StepDecay(2, 0.1), policy_schedule=Cosine(4), lr_ratio=0.5)
    seen: list[list[float]] = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    quiet_trainer(max_epochs=4, limit_val_batches=0, callbacks=[Rates()]).fit(module, data())
    assert [x for x, _ in seen] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert [x for _, x in seen] == pytest.approx([0.01, 0.01 * (2 + 2**0.5) / 4, 0.005, 0.01 * (2 - 2**0.5) / 4])
    policy = {id(p) for p in module.policy.parameters()}  # type: ignore[union-attr]
    groups = module.optimizers().param_groups  # type: ignore[union-attr]
    assert {id(p) for p in groups[1]["params"]} == policy
    assert len(groups[0]["params"]) + len(policy) == len(list(module.parameters()))


class Seeded(Callback):
    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)


def test_accumulation_and_clipping_equal_a_loop_by_hand(data: Any, quiet_trainer: Quiet) -> None:
    module, hand = heating(), quiet(heating())
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "max_epochs": 1, "limit_val_batches": 0}
    trainer = quiet_trainer(callbacks=[Seeded()], **options)
    trainer.fit(module, data())
    assert trainer.global_step == 2
    optimizer = hand.configure_optimizers()[0][0]
    loader = data().train_dataloader()
    for index, batch in enumerate(loader):
        torch.manual_seed(index)
        (hand.training_step(batch, index) / 2).backward()
        if index % 2:
            assert torch.nn.utils.clip_grad_norm_(hand.parameters(), 0.05) > 0.05
            optimizer.step()
            optimizer.zero_grad()
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_the_policy_rests_between_its_updates(data: Any, quiet_trainer: Quiet) -> None:
    module = heating(update_every=2)
    norms: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = [p.detach().clone() for p in (*module.policy.parameters(), *module.head.parameters())]

        def on_train_batch_end(self, *_: Any) -> None:
            after = [*module.policy.parameters(), *module.head.parameters()]
            moved = [(p - q).abs().sum().item() for p, q in zip(self.before, after, strict=True)]
            norms.append((sum(moved[:-2]), sum(moved[-2:])))

    quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[Watch()]).fit(module, data())
    assert [policy > 0 for policy, _ in norms] == [True, False, True, False]
    assert all(head > 0 for _, head in norms)


class Killed(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 9:
            raise RuntimeError("killed")


def test_resuming_a_killed_run_is_exact_with_its_buffers(data: Any, quiet_trainer: Quiet, tmp_path: Path) -> None:
    def module(seed: int) -> NoiseMaskHeating:
        return heating(seed, schedule=StepDecay(1, 0.7), policy_schedule=Cosine(4), objective=Reinforce())

    def fit(module: LightningModule, folder: str, *more: Callback, ckpt: str | None = None) -> None:
        root = tmp_path / folder
        callbacks = [StepSeed(0), AverageLast(2), *more, KeepLast(every_n_steps=7)]
        trainer = quiet_trainer(
            max_epochs=4, callbacks=callbacks, default_root_dir=root, enable_checkpointing=True, limit_val_batches=0
        )
        trainer.fit(module, data(), ckpt_path=ckpt, weights_only=True)

    whole, broken, resumed = module(0), module(0), module(5)
    fit(whole, "whole")
    with pytest.raises(RuntimeError, match="killed"):
        fit(broken, "broken", Killed())
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] in (8, 9)
    fit(resumed, "broken", ckpt=str(last))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert {"mask.base_a", "mask.base_b", "objective.average"} <= whole.state_dict().keys()
    averages = [torch.load(tmp_path / name / "checkpoints" / "average.ckpt", weights_only=True)["state_dict"]
                for name in ("whole", "broken")]  # fmt: skip
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


def test_evaluation_is_clean_and_under_the_base_mask(data: Any, quiet_trainer: Quiet) -> None:
    module = heating(eval_mask="base")
    trainer = quiet_trainer()
    first, second = (trainer.validate(module, data(), verbose=False)[0] for _ in range(2))
    clean = [name for name in first if "/base_mask" not in name and not name.endswith("loss")]
    assert {"val/accuracy", "val/balanced_accuracy", "val/auc", "val/f1"} <= set(clean)
    assert all(first[name] == second[name] for name in clean)
    assert first["val/auc/base_mask"] != second["val/auc/base_mask"]
    assert [row["mask"] for row in module.results()] == ["none", "base"]
    alone = trainer.validate(heating(), data(), verbose=False)[0]
    assert alone == {name: first[name] for name in clean}


def test_heating_then_fine_tuning_learns(data: Any, quiet_trainer: Quiet, tmp_path: Path) -> None:
    module = heating(eval_mask="base")
    trainer = quiet_trainer(max_epochs=4, callbacks=[StepSeed(0)], num_sanity_val_steps=1)
    trainer.fit(module, data(count=120))
    trainer.save_checkpoint(tmp_path / "heated.ckpt")
    pictures = module.figures()
    assert len(pictures["masks"].axes) == 3 * 4
    assert len(pictures["class_masks"].axes) == 3 + 1  # three classes and the scale
    tuned = ImageClassifier(
        Conv64F(1, width=8, pools=2), 3, init_from=str(tmp_path / "heated.ckpt"), optimizer=sgd, fine_tune=True
    )
    assert torch.equal(tuned.head.weight, module.head.weight)
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(tuned, data(count=120))
    accuracy = quiet_trainer().test(tuned, data(), verbose=False)[0]["test/accuracy"]
    assert accuracy > 80  # of three classes: 33 by chance


def test_mean_mask_of_a_class_is_that_of_its_images(batch: ImageBatch) -> None:
    module = quiet(heating())
    a, b = torch.randn(2, 16, 16)
    module._keep(batch, a, b, torch.rand(16, 16), batch.image, 1)
    mean = (a.exp() / (a.exp() + b.exp()))[batch.label == 2].mean(0)
    torch.testing.assert_close(module._class_sum[2] / module._class_count[2], mean)


def test_wrong_values_and_batches_say_what_to_do(data: Any, quiet_trainer: Quiet, batch: ImageBatch) -> None:
    with pytest.raises(ValueError, match=r"mask.grid=1 with LogSumExp"):
        heating(mask=NoiseMask(1, 1, 1.0))
    with pytest.raises(ValueError, match="lr_ratio=0"):
        heating(lr_ratio=0.0)
    with pytest.raises(ValueError, match="update_every=0"):
        heating(update_every=0)
    with pytest.raises(ValueError, match=r"policy.input_size=0"):
        MaskPolicy(4, Conv64F(1), input_size=0)
    with pytest.raises(ValueError, match="batch_size=1: the policy's BatchNorm needs at least 2 images"):
        quiet_trainer(max_epochs=1).fit(heating(), data(batch_size=1))
    with pytest.raises(ValueError, match="batch_size=1: the policy's BatchNorm"):
        quiet(heating()).training_step(ImageBatch(batch.image[:1], batch.label[:1]), 0)
    with pytest.raises(ValueError, match="num_classes is 3, but the data have 5 classes"):
        quiet_trainer(max_epochs=1).fit(heating(), data(num_classes=5))
    with pytest.raises(ValueError, match=r"trainer.precision=64-true: masks and their densities need float32"):
        quiet_trainer(max_epochs=1, precision="64-true").fit(heating(), data())
    with pytest.raises(TypeError, match=r"images are torch.uint8"):
        heating()(torch.zeros(2, 1, 12, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"mask.grid=64 is larger than an image side of 12 pixels"):
        quiet(heating(mask=NoiseMask())).training_step(batch, 0)


def test_a_loss_that_is_not_finite_names_the_ranges(batch: ImageBatch) -> None:
    module = quiet(heating())
    with torch.no_grad():
        module.policy.head_a[-1].bias.fill_(1000.0)
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, global_rank=0)
    with pytest.raises(
        ValueError, match=r"alpha inf to inf, beta [\d.]+ to [\d.]+, m [\d.e-]+ to [\d.e-]+; lower the learning"
    ):
        module.training_step(batch, 0)
