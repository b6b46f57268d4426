import numpy as np
import pytest
import torch

from datamodules.strokes import CODE, StrokeClasses, control_points, render


def test_straight_stroke_covers_its_area():
    """A straight stroke of half width 0.07 and length 1.2 in [-1, 1]^2, with round ends."""
    size = 200
    ink = render(torch.tensor([[[[-0.6, 0.0], [0.0, 0.0], [0.6, 0.0]]]]), size)[0]
    area = ink.sum().item() * (2 / size) ** 2
    assert area == pytest.approx(1.2 * 0.14 + np.pi * 0.07**2, rel=0.01)
    assert ink[:, 10].sum() == 0
    assert ink[size // 2, size // 2] == 1


def test_stroke_passes_where_the_quadratic_does():
    """B(1/2) = (P0 + 2 P1 + P2) / 4 lies on the stroke, the control point P1 does not."""
    points = torch.tensor([[[[-0.8, 0.8], [0.0, -0.8], [0.8, 0.8]]]])
    ink = render(points, 101)[0]
    assert ink[50, 50] == 1  # B(1/2) = (0, 0)
    assert ink[10, 50] == 0  # P1: row 10 is y = -0.79


def test_shapes_order_and_pools():
    pools = StrokeClasses(base_classes=3, images=5, size=16).load("train")
    assert pools.query is not None
    for pool, kind in ((pools.support, "support"), (pools.query, "query")):
        assert pool.image.shape == (15, 3, 16, 16)
        assert pool.label.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert pool.kind == kind
    assert pools.support.classes == pools.query.classes


def test_classes_are_a_prefix_and_novel_classes_stay():
    few, many = StrokeClasses(base_classes=4, images=24), StrokeClasses(base_classes=90, images=24)
    for split in ("train", "test"):
        a, b = few.load(split), many.load(split)
        assert torch.equal(a.support.image, b.support.image[: len(a.support.image)])
        assert torch.equal(a.query.image, b.query.image[: len(a.query.image)])
    assert len(b.support.classes) == 20


def test_splits_and_seeds_differ():
    index = np.arange(20)
    drawn = [control_points(s, CODE[split], index) for s in (0, 1) for split in ("train", "val", "test", "clutter")]
    flat = torch.stack(drawn).flatten(0, 1).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 160
    assert flat.abs().max() <= 0.9


def test_hard_images_are_harder_for_the_nearest_mean():
    """Nearest clean class mean on grey pixels: near perfect on clean images, far less on hard ones."""
    pools = StrokeClasses(images=30).load("test")
    assert pools.query is not None
    clean, hard = (p.image.float().amax(1).flatten(1).view(20, 30, -1) for p in (pools.support, pools.query))
    clean, hard = (torch.nn.functional.normalize(x, dim=-1) for x in (clean, hard))
    mean = clean[:, :15].mean(1)
    right = [((x @ mean.T).argmax(-1) == torch.arange(20)[:, None]).float().mean() for x in (clean[:, 15:], hard)]
    assert right[0] > 0.9
    assert 0.05 < right[1] < 0.6


def test_bad_counts():
    with pytest.raises(ValueError, match="novel_classes must be at least 1, got 0"):
        StrokeClasses(novel_classes=0)
