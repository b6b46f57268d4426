"""The total loss, what is encoded and what has a gradient; ranking in chunks; building from data and checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.batches import SequenceBatch, SequenceEvalBatch
from datamodules.sequences import SequentialRecommendation
from zoo.recommenders import (
    DuoRec,
    FullSoftmax,
    GRU4Rec,
    InterUser,
    IntraUser,
    Markov,
    Popularity,
    Recommender,
    SASRec,
    UniformSample,
    evaluation,
)
from zoo.recommenders.losses import info_nce

Built = Callable[..., Recommender]
Rounds = Callable[..., SequentialRecommendation]


def total(model: Recommender, batch: SequenceBatch) -> torch.Tensor:
    return torch.stack([model.weight(name) * loss for name, loss in model.losses(batch).items()]).sum()


def gradients(model: Recommender, batch: SequenceBatch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def watched(model: Recommender) -> list[int]:
    """The numbers of sequences of each pass of the encoder from now on."""
    passes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


def test_weights_of_zero_are_the_backbone_alone_and_encode_nothing(built: Built, batch: SequenceBatch) -> None:
    bare, off = built(dropout=0.5), built(dropout=0.5, inter=InterUser(0), intra=IntraUser(0))
    passes = watched(off)
    grads = []
    for model in (bare, off):
        torch.manual_seed(5)
        grads.append(gradients(model, batch))
    assert passes == [8]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_a_full_step_is_one_pass_of_fourteen_or_so_encodings(built: Built, batch: SequenceBatch) -> None:
    for parts, sequences in (
        ({"inter": InterUser(), "intra": IntraUser()}, 1 + 2 + 1 + 3),
        ({"inter": InterUser(reuse_anchor=True), "intra": IntraUser()}, 1 + 2 + 3),
        ({"inter": InterUser(synthesizer=UniformSample())}, 1 + 1 + 1),
        ({"duo": DuoRec()}, 1 + 2),
        ({"duo": DuoRec(contrast="un")}, 1 + 1),
    ):
        model = built(**parts)
        passes = watched(model)
        model.losses(batch)
        assert passes == [8 * sequences]


def test_losses_are_those_of_separate_passes(built: Built, batch: SequenceBatch) -> None:
    model = built(inter=InterUser(0.3, temperature=0.7), intra=IntraUser(0.2), duo=DuoRec(0.1, contrast="us"))
    encode, part = model.encoder, model._parts()["inter"]
    h, table = encode(batch.item_seq), encode.item_embedding.weight
    assert batch.views is not None
    assert batch.neighbors is not None
    assert batch.same_target is not None
    neighbors = torch.stack([encode(batch.neighbors[:, j]) for j in range(3)], 1)
    expected = {
        "next_item": FullSoftmax()(h, table, batch.target),
        "inter": info_nce(h, part.synthesizer(neighbors, batch), 0.7),  # type: ignore[operator]
        "intra": info_nce(encode(batch.views[:, 0]), encode(batch.views[:, 1])),
        "duo": info_nce(h, h) + info_nce(h, encode(batch.same_target)),
    }
    losses = model.losses(batch)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, msg=lambda m, n=name: f"{n}: {m}")
    weighted = 0.3 * expected["inter"] + 0.2 * expected["intra"] + 0.1 * expected["duo"]
    torch.testing.assert_close(total(model, batch), expected["next_item"] + weighted)


def test_encoding_in_parts_changes_no_gradient(built: Built, batch: SequenceBatch) -> None:
    model = built(inter=InterUser(), intra=IntraUser())
    whole = gradients(model, batch)
    model.encode_at_once = 5
    passes = watched(model)
    for name, grad in gradients(model, batch).items():
        torch.testing.assert_close(grad, whole[name], atol=1e-6, rtol=1e-4)
    assert max(passes) == 5


def test_nothing_is_detached_but_the_texts(built: Built, batch: SequenceBatch) -> None:
    model = built(inter=InterUser())
    model.losses(batch)["inter"].backward()
    table = model.encoder.item_embedding.weight.grad
    assert table is not None
    used = batch.neighbors.unique() if batch.neighbors is not None else None
    assert used is not None
    assert used.min() > 30
    assert (table[used].abs().amax(1) > 0).all()  # items that are in neighbours alone
    assert (table[batch.item_seq[0, 2:]].abs().amax(1) > 0).all()  # and the anchor's
    synthesizer = model._parts()["inter"].synthesizer
    assert synthesizer.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]
    assert synthesizer.attention.grad.abs().max() > 0  # type: ignore[union-attr, operator]
    trained = {id(p) for group in model.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    assert id(synthesizer.pool_embedding) not in trained  # type: ignore[union-attr]


def test_a_second_pass_is_the_anchor_unless_reused(built: Built, batch: SequenceBatch) -> None:
    fresh, reused = built(inter=InterUser()), built(inter=InterUser(reuse_anchor=True))
    torch.testing.assert_close(fresh.losses(batch)["inter"], reused.losses(batch)["inter"])  # dropout is off
    model = built(dropout=0.5, duo=DuoRec(contrast="un"))
    eye = model.losses(batch)["duo"]
    assert abs(eye - info_nce(model.encoder.eval()(batch.item_seq), model.encoder(batch.item_seq))) > 1e-3


def test_every_position_counts_when_a_sample_is_a_user(built: Built, batch: SequenceBatch) -> None:
    model = built(intra=IntraUser())
    target = torch.where(batch.item_seq > 0, batch.item_seq % 30 + 1, 0)
    losses = model.losses(batch._replace(target=target))
    states, given = model.encoder.states(batch.item_seq), target > 0
    assert int(given.sum()) == 8 * 6 - 6
    expected = FullSoftmax()(states[given], model.encoder.item_embedding.weight, target[given])
    torch.testing.assert_close(losses["next_item"], expected)
    torch.testing.assert_close(losses["intra"], model.losses(batch)["intra"])


def test_a_field_that_the_data_do_not_fill_is_named(built: Built, batch: SequenceBatch) -> None:
    for part, field in ((InterUser(), "neighbors"), (IntraUser(), "views"), (DuoRec(), "same_target")):
        with pytest.raises(ValueError, match=f"{type(part).__name__} needs {field} in the batch"):
            built(part=part).losses(batch._replace(**{field: None}))


def test_scores_are_inner_products_with_items_from_1_on(built: Built, batch: SequenceBatch) -> None:
    model = built().eval()
    scores = model(batch.item_seq)
    assert scores.shape == (8, 40)
    table = model.encoder.item_embedding.weight
    torch.testing.assert_close(scores[3, 6], model.encoder(batch.item_seq[3:4])[0] @ table[7])


def test_ranks_in_chunks_are_those_of_the_whole_matrix(
    built: Built, batch: SequenceBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built().eval()
    scores = model(batch.item_seq)
    expected = 1 + (scores > scores.gather(1, batch.target[:, None] - 1)).sum(1)
    rows: list[int] = []
    score = model.score
    monkeypatch.setattr(model, "score", lambda known: rows.append(len(known)) or score(known))
    monkeypatch.setattr(evaluation, "SCORES_AT_ONCE", 3 * 40)
    assert model.rank(batch.item_seq, batch.target).tolist() == expected.tolist()
    assert rows == [3, 3, 2]


def test_masked_history_is_never_recommended(built: Built, batch: SequenceBatch) -> None:
    model = built().eval()
    open_scores = model(batch.item_seq)
    model.mask_history = True
    masked = model(batch.item_seq)
    for row, seq in enumerate(batch.item_seq):
        history = set(seq[seq > 0].tolist())
        for item in range(1, 41):
            expected = -torch.inf if item in history else open_scores[row, item - 1].item()
            assert masked[row, item - 1].item() == expected
    repeated = batch.item_seq[:, -1]
    assert (model.rank(batch.item_seq, repeated) > 34).all()


def test_a_target_outside_the_catalogue_is_named(built: Built, batch: SequenceBatch) -> None:
    for wrong in (0, 41):
        with pytest.raises(ValueError, match=f"target of row 2 is {wrong}: items are 1 to 40"):
            built().rank(batch.item_seq, torch.tensor([1, 2, wrong, 3, 4, 5, 6, 7]))


def trainer(folder: Path, epochs: int = 1, **settings: Any) -> Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder, **{**off, **settings})


def small(encoder: str = "sasrec", **parts: Any) -> Recommender:
    torch.manual_seed(0)
    made = SASRec(16, 32, 1, 2, 0.1, 0.1, 6) if encoder == "sasrec" else GRU4Rec(16, 32, max_length=6)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    return Recommender(made, contrastive=parts, optimizer=adam, metrics=["hr@1", "mrr@10"], top_k=3)


@pytest.mark.parametrize("encoder", ["sasrec", "gru4rec"])
def test_it_learns_a_circle_and_goes_on_from_its_checkpoint_without_data(
    encoder: str, rounds: Rounds, tmp_path: Path
) -> None:
    model, data = small(encoder), rounds()
    run = trainer(tmp_path, 15, enable_checkpointing=False, limit_val_batches=0)
    run.fit(model, data)
    assert run.test(model, data, verbose=False)[0]["test/hr@1"] == 1
    assert model.results() == [{"users": 60, "hr@1 %": 100.0, "mrr@10 %": 100.0}]
    run.save_checkpoint(tmp_path / "a.ckpt")
    item_seq = torch.tensor([[0, 0, 0, 0, 3, 4]])
    expected = model.eval()(item_seq)
    loaded = small(encoder)
    loaded.on_load_checkpoint(content := torch.load(tmp_path / "a.ckpt", weights_only=True))
    loaded.load_state_dict(content["state_dict"])
    assert torch.equal(loaded.eval()(item_seq), expected)
    assert (
        trainer(tmp_path).test(small(encoder), data, ckpt_path=tmp_path / "a.ckpt", verbose=False)[0]["test/hr@1"] == 1
    )
    rows = [row for part in trainer(tmp_path).predict(model, data) for row in part]  # type: ignore[union-attr]
    assert len(rows) == 60 * 3
    for row in rows[::3]:  # who walked 5 + u % 6 steps from i(u)
        user = int(row["user"][1:])
        assert row["item"] == f"i{(user + 5 + user % 6) % 12}"
    assert rows[0].keys() == {"user", "rank", "item", "title", "score"}
    assert [row["rank"] for row in rows[:4]] == [1, 2, 3, 1]
    assert rows[0]["score"] > rows[1]["score"] > rows[2]["score"]


def test_a_prediction_leaves_masked_items_out(rounds: Rounds, tmp_path: Path) -> None:
    model = Recommender(SASRec(8, 16, 1, 2, max_length=6), metrics=["hr@1"], top_k=8, mask_history=True)
    rows = [row for part in trainer(tmp_path).predict(model, rounds()) for row in part]  # type: ignore[union-attr]
    first = [row["item"] for row in rows if row["user"] == "u0"]  # who has been to 0 to 4
    assert sorted(first) == sorted(f"i{i}" for i in range(5, 12))
    assert sum(row["user"] == "u1" for row in rows) == 6  # of 12, less those of the row


def test_no_part_takes_the_place_of_the_main_loss() -> None:
    with pytest.raises(ValueError, match="next_item is the name of the main loss"):
        small(next_item=IntraUser())


def test_another_catalogue_than_the_model_was_built_for_is_an_error(rounds: Rounds, tmp_path: Path) -> None:
    model = small()
    model.encoder.build(13)
    with pytest.raises(ValueError, match="the data have 12 items, but the model was built for 13"):
        trainer(tmp_path, enable_checkpointing=False).fit(model, rounds())


def test_more_items_asked_than_there_are_is_an_error(rounds: Rounds, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics ask for 20 items, but there are only 12"):
        trainer(tmp_path).test(Popularity(), rounds(), verbose=False)


def test_baselines_count_the_training_part_alone(rounds: Rounds, tmp_path: Path) -> None:
    data = rounds()
    models: dict[str, LightningModule] = {}
    for kind in (Popularity, Markov):
        model = kind(metrics=["hr@1", "hr@5"], top_k=3)
        result = trainer(tmp_path).test(model, data, verbose=False)[0]
        models[kind.__name__] = model
        assert result["test/hr@1"] == 1 if kind is Markov else result["test/hr@1"] < 0.4
    store, count = data.store, torch.zeros(12)
    for start, end in zip(store.offset[:-1], store.offset[1:], strict=True):
        for item in store.item[start : end - 2]:
            count[item - 1] += 1
    assert models["Popularity"].count.tolist() == count.tolist()
    assert int(models["Markov"].times.sum()) == sum(3 + u % 6 - 1 for u in range(60))  # type: ignore[operator]


def test_markov_ranks_transitions_by_count_then_all_else_by_popularity() -> None:
    import numpy as np

    item = np.array([1, 2, 1, 3, 1, 3, 4, 4, 4, 9, 9], np.int32)
    offset, train = np.array([0, 7, 11]), np.array([7, 2])
    model = Markov(metrics=["hr@1"], top_k=1)
    model.fit(item, offset, train, 5)
    assert model.count.tolist() == [3, 1, 2, 3, 0]
    scores = model(torch.tensor([[0, 1], [4, 3], [0, 5]]))
    expected = torch.tensor([[0, 1, 2, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]) + model.count / 10
    assert torch.equal(scores, expected)
    saved = model.state_dict()
    other = Markov(metrics=["hr@1"], top_k=1)
    other.on_load_checkpoint({"state_dict": saved})
    other.load_state_dict(saved)
    assert torch.equal(other(torch.tensor([[0, 1]])), expected[:1])


def test_ranks_of_each_user_are_written_on_request(rounds: Rounds, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    model = Markov(metrics=["mrr@10"], top_k=3, write_users=True)
    trainer(tmp_path, logger=CSVLogger(tmp_path, "run", 0)).test(model, rounds(), verbose=False)
    lines = (tmp_path / "run" / "version_0" / "users.csv").read_text().split()
    assert lines[0] == "user,rank"
    assert lines[1:] == [f"u{u},1.0" for u in range(60)]


def test_a_user_who_fills_a_batch_counts_once(built: Built) -> None:
    model, item_seq = built().eval(), torch.tensor([[0, 0, 0, 1, 2, 3], [0, 0, 0, 4, 5, 6]])
    target = torch.tensor([7, 8])
    model.on_test_epoch_start()
    for rows in ([0, 1], [1, 0]):
        model.test_step(SequenceEvalBatch(item_seq[rows], target[rows], torch.tensor(rows)), 0)
    assert model._ranks is not None
    user, rank = model._ranks.per_user()
    assert user.tolist() == [0, 1]
    assert torch.equal(rank, model.rank(item_seq, target))
