"""The few-shot LightningModules: what trains, what stays frozen, what the numbers mean."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from torch import Tensor

from datamodules.batches import EpisodeRows, PairBatch
from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec
from datamodules.few_shot import FewShot
from datamodules.omniglot import BundledOmniglot
from datamodules.training import Episodes, Images
from zoo.few_shot import BasePretraining, CRLNet, CRLNetHead, HeadComparison, ProtoNet
from zoo.few_shot.crlnet import kshot_scores
from zoo.few_shot.crlnet_network import pair_cosine
from zoo.few_shot.heads import NearestCentroid
from zoo.nn import Conv64F


def cosine_head() -> NearestCentroid:
    return NearestCentroid(features="UN", metric="cosine")


def small_crlnet(**options: object) -> CRLNet:
    torch.manual_seed(0)
    return CRLNet(
        Conv64F(1, width=16, pools=3),
        image_size=28,
        head=lambda channels, size: CRLNetHead(channels, size, heads=4, hidden=16, mlp_hidden=16),
        heads={"cosine": cosine_head()},
        **options,  # type: ignore[arg-type]
    )


def pairs(n: int = 8) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, n, 1, 28, 28, generator=generator)
    return PairBatch(images[0], images[1], torch.arange(n) % 2)


def quiet_trainer(tmp_path: Path, **options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **options,  # type: ignore[arg-type]
    )


def test_protonet_learns_omniglot_beyond_its_start(tmp_path: Path) -> None:
    seed_everything(0)
    spec = EpisodeSpec(episodes=100)
    data = FewShot(
        BundledOmniglot(),
        Episodes(EpisodeSpec(way=20, shot=1, query=5, episodes=60)),
        val=[],
        test=[spec],
    )
    model = ProtoNet(Conv64F(1), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    before = trainer.test(model, data, verbose=False)
    trainer.fit(model, data)
    after = trainer.test(model, data, verbose=False)
    gain = after[0][f"test/accuracy@{spec.name}"] - before[0][f"test/accuracy@{spec.name}"]
    assert gain > 10
    assert after[0][f"test/accuracy@{spec.name}"] > 75


def test_crlnet_trains_its_head_and_nothing_of_the_backbone() -> None:
    model = small_crlnet().train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.training_step(pairs(), 0).backward()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    assert len(model.configure_optimizers().param_groups[0]["params"]) == len(list(model.head.parameters()))


def test_the_official_train_mode_lets_batchnorm_drift() -> None:
    model = small_crlnet(backbone_train_mode=True).train()
    before = model.backbone.blocks[0][1].running_mean.clone()
    model.training_step(pairs(), 0)
    assert not torch.equal(before, model.backbone.blocks[0][1].running_mean)
    assert not model.eval().backbone.training


def test_class_ids_in_place_of_pair_labels_are_refused() -> None:
    batch = pairs()
    with pytest.raises(ValueError, match="must be 1"):
        small_crlnet().training_step(batch._replace(label=torch.arange(8)), 0)


def rows(way: int, shot: int, queries: int) -> EpisodeRows:
    shots = way * shot
    return EpisodeRows(
        torch.arange(shots)[None],
        torch.arange(way).repeat_interleave(shot)[None],
        torch.arange(shots, shots + queries)[None],
        torch.arange(queries)[None] % way,
        torch.tensor([0]),
        way,
        "",
    )


def test_one_shot_scores_are_the_cosines_of_each_pair() -> None:
    model = small_crlnet(pairs_at_once=4).eval()
    table = torch.randn(3 + 4, 16, 3, 3)
    scores = model.own_scores(table, rows(3, 1, 4))["crlnet"]
    for query in range(4):
        for support in range(3):
            e_s, e_q = model.head(table[support][None], table[3 + query][None])
            assert scores[0, query, support].item() == pytest.approx(pair_cosine(e_q, e_s).item(), abs=1e-5)


def test_k_shot_fits_a_logistic_regression_for_each_query() -> None:
    generator = torch.Generator().manual_seed(0)
    e_s, e_q = (torch.randn(1, 2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    label = torch.tensor([[0, 0, 1, 1, 2, 2]])
    scores = kshot_scores(e_s, e_q, label, way=3)
    for query in range(2):
        reference = SklearnLogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
        reference.fit(e_s[0, query].numpy(), label[0].numpy())
        expected = reference.predict_proba(e_q[0, query].mean(0, keepdim=True).numpy())
        assert torch.allclose(scores[0, query].softmax(-1), torch.from_numpy(expected)[0], atol=1e-6)


@pytest.mark.parametrize("kshot", ["mean_cosine", "centroid"])
def test_other_k_shot_rules_agree_with_one_support_seen_twice(kshot: str) -> None:
    generator = torch.Generator().manual_seed(0)
    e_s, e_q = (torch.randn(1, 2, 3, 4, generator=generator) for _ in range(2))
    e_q = e_q[:, :, :1].expand_as(e_s)
    once = kshot_scores(e_s, e_q, torch.tensor([[0, 1, 2]]), way=3)
    twice = kshot_scores(
        e_s.repeat(1, 1, 2, 1),
        e_q.repeat(1, 1, 2, 1),
        torch.tensor([[0, 1, 2] * 2]),
        3,
        kshot=kshot,  # type: ignore[arg-type]
    )
    assert torch.allclose(once, twice, atol=1e-6)


def test_episodic_loss_has_gradients_in_the_head() -> None:
    from datamodules.batches import EpisodeBatch

    batch = EpisodeBatch(
        torch.randn(1, 3, 1, 28, 28), torch.arange(3)[None], torch.randn(1, 6, 1, 28, 28), torch.arange(6)[None] % 3, 3
    )
    model = small_crlnet().train()
    model.training_step(batch, 0).backward()
    assert model.head.layers[0].represent.mlp[0].weight.grad.abs().sum() > 0


def test_results_are_paired_on_the_same_episodes() -> None:
    model = HeadComparison(Conv64F(1), {"a": cosine_head(), "b": cosine_head()}, main_head="a")
    values = torch.rand(50) * 100
    model._accuracies = {("5w1s", "a"): values, ("5w1s", "b"): values + 2}
    row = model.results()[1]
    assert row["minus a"] == pytest.approx(2, abs=1e-5)
    assert row["paired ci95"] == pytest.approx(0, abs=1e-4)
    assert row["ci95"] > 1


def test_k_shot_scores_do_not_lose_digits_in_a_bfloat16_run() -> None:
    generator = torch.Generator().manual_seed(0)
    e_s, e_q = (torch.randn(1, 8, 5, 16, generator=generator) for _ in range(2))
    exact = kshot_scores(e_s, e_q, torch.arange(5)[None], way=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = kshot_scores(e_s, e_q, torch.arange(5)[None], way=5)
    assert torch.equal(exact, mixed)


def test_uint8_images_are_refused() -> None:
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    for call in (small_crlnet().embed, small_crlnet()):
        with pytest.raises(TypeError, match=r"images are torch.uint8: scale them"):
            call(images)


def test_a_checkpoint_of_the_official_code_loads_and_another_backbone_is_refused(tmp_path: Path) -> None:
    source = small_crlnet()
    names = {f"layers.0.represent.mlp.{i}": f"mlp.0.layers.{i}" for i in range(3)}
    state = {f"module.feature_extractor.{k}": v for k, v in source.backbone.state_dict().items()}
    torch.save({**state, f"module.{names['layers.0.represent.mlp.0']}.weight": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        small_crlnet(official_checkpoint=str(tmp_path / "part.pt"))
    torch.save({"nothing.weight": torch.zeros(1)}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="no weight of CRLNet's head"):
        small_crlnet(official_checkpoint=str(tmp_path / "none.pt"))


def test_unknown_main_head_is_named() -> None:
    with pytest.raises(ValueError, match="main_head is 'b', but the heads are a"):
        HeadComparison(Conv64F(1), {"a": cosine_head()}, main_head="b")


def test_evaluation_leaves_batchnorm_alone(tmp_path: Path) -> None:
    data = FewShot(
        BundledOmniglot(),
        None,
        val=[],
        test=[EpisodeSpec(episodes=4), EpisodeSpec(episodes=4, hard=True)],
        degrade=Degrade(),
        base_mean=True,
    )
    heads = {"cosine": cosine_head(), "centred": NearestCentroid(features="CL2N")}
    model = HeadComparison(Conv64F(1, width=8), heads, "cosine")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet_trainer(tmp_path).test(model, data, verbose=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {(r["episodes"], r["head"]) for r in model.results()} == {
        (spec, head) for spec in ("5w1s", "5w1s-hard") for head in heads
    }


def test_base_mean_is_that_of_all_base_images(tmp_path: Path) -> None:
    data = FewShot(BundledOmniglot(rotations=False), None, val=[], test=[EpisodeSpec(episodes=2)], base_mean=True)
    model = HeadComparison(Conv64F(1, width=8), {"c": NearestCentroid(features="CL2N")}, "c").eval()
    seen: list[Tensor] = []
    finish = model._finish
    model._finish = lambda stage: (seen.append(model._base_mean), finish(stage))[1]  # type: ignore[method-assign]
    quiet_trainer(tmp_path).test(model, data, verbose=False)
    image = data.pools["train"].support.image.float().div(255).sub(data.dataset.mean[0]).div(data.dataset.std[0])
    with torch.no_grad():
        expected = torch.cat([model.eval()(part) for part in image.split(500)]).mean(0)
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_a_wrong_number_of_base_classes_is_named(tmp_path: Path) -> None:
    data = FewShot(BundledOmniglot(), Images(32), val=[], test=[])
    model = BasePretraining(Conv64F(1), 100, 28, {"a": cosine_head()}, "a")
    with pytest.raises(
        ValueError, match=r"num_classes is 100, but the data have 624 .* set model.init_args.num_classes"
    ):
        quiet_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, data)


def test_prediction_has_a_column_for_each_class_whose_name_is_free(tmp_path: Path) -> None:
    images = BundledOmniglot(rotations=False).load("test").support.image.view(-1, 20, 28, 28).numpy()
    for image, name in enumerate(("support/file/0.png", "support/b/0.png", "query/0.png")):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(images[min(image, 1), image]).save(tmp_path / name)
    support, query = str(tmp_path / "support"), str(tmp_path / "query")
    data = FewShot(BundledOmniglot(), None, [], [], predict_support=support, predict_query=query)
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"class folder 'file' has the name of a column .*; rename the folder"):
        trainer.predict(small_crlnet(), data)
    (tmp_path / "support" / "file").rename(tmp_path / "support" / "a")
    (row,) = quiet_trainer(tmp_path).predict(small_crlnet(), data)[-1][0]  # type: ignore[index]
    assert list(row) == ["file", "prediction", "a", "b"]
    assert row["a"] + row["b"] == pytest.approx(1)
    assert row["file"] == str(tmp_path / "query" / "0.png")
