import math

import numpy as np
import pytest
import torch

from datamodules.degrade import Degrade, gaussian_blur, inverse_affine
from datamodules.streams import key

OFF = {
    "scale": None, "shift": 0, "rotation": 0, "clutter": 0,
    "occlusion": None, "blur": None, "brightness": None, "noise": 0,
}  # fmt: skip


def only(**strengths) -> Degrade:
    return Degrade(**(OFF | strengths))


def pictures(n=12, channels=1, side=28):
    draw = np.random.default_rng(0).integers(0, 256, (n, channels, side, side), np.uint8)
    return torch.from_numpy(draw), key(3, np.arange(n))


def square(n=64, side=40):
    """A white centred square of half the side."""
    image = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    image[:, :, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 255
    return image, key(0, np.arange(n))


def moments(image):
    x = image[:, 0].double() / 255
    side = x.shape[-1]
    place = (2 * torch.arange(side) + 1) / side - 1
    mass = x.sum((1, 2))
    return mass, (x.sum(1) * place).sum(1) / mass, (x.sum(2) * place).sum(1) / mass


def test_all_off_returns_the_input():
    image, keys = pictures()
    assert torch.equal(only()(image, keys), image)


@pytest.mark.parametrize("ink", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_key_and_the_bank_only(ink, channels):
    image, keys = pictures(channels=channels)
    degrade = Degrade(ink=ink)
    whole = degrade(image, keys, image)
    order = np.array([7, 2, 11])
    assert torch.equal(degrade(image[order], keys[order], image), whole[order])
    assert torch.equal(degrade(image[5:6], keys[5:6], image), whole[5:6])
    assert not torch.equal(degrade(image, keys + np.uint64(1), image), whole)


def test_scale_shrinks_the_area_by_its_square():
    image, keys = square()
    mass, x, y = moments(only(scale=(0.5, 0.5))(image, keys))
    assert y.abs().max() < 1e-6
    torch.testing.assert_close(mass, torch.full_like(mass, 400 * 0.25), rtol=0.02, atol=0)
    assert x.abs().max() < 1e-6
    mass = moments(only(scale=(0.6, 0.85))(image, keys))[0] / 400
    assert 0.36 * 0.95 < mass.min() < 0.45
    assert 0.62 < mass.max() < 0.7225 * 1.05


def test_shift_is_a_fraction_of_half_the_side():
    image, keys = square(n=400)
    mass, x, y = moments(only(shift=0.3)(image, keys))
    for centre in (x, y):
        assert centre.abs().max() < 0.301
        assert centre.max() > 0.28
        assert centre.min() < -0.28
        assert abs(centre.mean()) < 4 * 0.3 / math.sqrt(3 * 400)
    torch.testing.assert_close(mass, torch.full_like(mass, 400), rtol=1e-2, atol=0)


def test_inverse_affine_undoes_scale_turn_and_shift():
    angle, scale, shift = torch.tensor([0.3]), torch.tensor([0.7]), torch.tensor([[0.2, -0.1]])
    point = torch.tensor([0.4, 0.5])
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    moved = 0.7 * turn @ point + shift[0]
    back = inverse_affine(scale, angle, shift)[0] @ torch.cat([moved, torch.ones(1)])
    torch.testing.assert_close(back, point)


def test_occlusion_is_one_square_inside_the_image():
    image = torch.full((200, 3, 28, 28), 77, dtype=torch.uint8)
    keys = key(1, np.arange(200))
    changed = only(occlusion=(0.17, 0.29))(image, keys) != 77
    changed = changed[changed.flatten(1).any(1)][:, 0]  # the level may be 77 by chance
    heights, widths = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(heights, widths)
    assert torch.equal(changed.sum((1, 2)), heights * widths)
    assert (heights.min(), heights.max()) == (5, 8)  # 0.17 * 28 = 4.76 and 0.29 * 28 = 8.12
    assert changed.any(0).any(0).all()
    assert changed.any(0).any(1).all()


def test_brightness_and_noise():
    image, keys = torch.full((100, 1, 28, 28), 200, dtype=torch.uint8), key(2, np.arange(100))
    level = only(brightness=(0.5, 1.0))(image, keys)[:, 0, 0, 0]
    assert 100 <= level.min() < 110
    assert 190 < level.max() <= 200
    noisy = only(noise=0.05)(image // 2, keys).double() / 255
    assert noisy.std().item() == pytest.approx(0.05, rel=0.02)
    assert noisy.mean().item() == pytest.approx(100 / 255, abs=0.002)
    assert len(torch.unique(noisy.flatten(1), dim=0)) == 100


def test_blur_of_a_point_is_the_gaussian_and_keeps_its_mass():
    x = torch.zeros(3, 1, 31, 31)
    x[:, :, 15, 15] = 1
    sigma = torch.tensor([0.0, 1.0, 2.0])
    out = gaussian_blur(x, sigma, 2.0)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(out, out.mT)
    ratio = out[1:, 0, 15, 16] / out[1:, 0, 15, 15]
    torch.testing.assert_close(ratio, torch.exp(-0.5 / sigma[1:] ** 2))


def test_blur_repeats_the_edges():
    x = torch.arange(20.0).view(1, 1, 4, 5).repeat(2, 1, 1, 1)
    constant_rows = gaussian_blur(x, torch.tensor([0.0, 50.0]), 50.0)
    # so wide a kernel sees edges almost alone: halfway between the opposite ones
    torch.testing.assert_close(constant_rows[1].mean(), x.mean(), rtol=1e-3, atol=0)
    assert constant_rows[1].std() < 0.1 * x.std()


def test_clutter_comes_from_the_bank_and_is_faint():
    image, keys = torch.zeros(200, 1, 28, 28, dtype=torch.uint8), key(4, np.arange(200))
    bank = torch.full((5, 1, 28, 28), 200, dtype=torch.uint8)
    peak = only(clutter=2, clutter_weight=(0.3, 0.6))(image, keys, bank).amax((1, 2, 3))
    assert peak.max() <= 120
    assert (peak > 0).float().mean() > 0.9
    covered = (only(clutter=1)(image, keys, bank) > 0).float().mean((1, 2, 3))
    assert covered.max() <= 0.25  # at most its window
    own = only(clutter=2)(bank[:1].repeat(200, 1, 1, 1), keys, bank)
    assert (own >= 200).all()  # ink: by maximum, so clutter never darkens


def test_photographs_blend_clutter_and_mirror_their_edges():
    white, keys = torch.full((50, 3, 28, 28), 255, dtype=torch.uint8), key(5, np.arange(50))
    assert torch.equal(only(scale=(0.5, 0.5), ink=False)(white, keys), white)
    black = torch.zeros_like(white)
    assert only(clutter=1, clutter_weight=(0.4, 0.4), ink=False)(white, keys, black).min() == 153


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.9, 0.5)),
        ("scale", (0.0, 0.5)),
        ("shift", -0.1),
        ("rotation", 4.0),
        ("clutter", -1),
        ("clutter_weight", (0.5, 1.5)),
        ("occlusion", (0.2, 1.2)),
        ("blur", (0.0, 1.0)),
        ("brightness", (-0.5, 1.0)),
        ("noise", 2.0),
    ],
)
def test_bad_strengths_are_named(field, value):
    with pytest.raises(ValueError, match=field) as error:
        Degrade(**{field: value})
    assert str(value) in str(error.value)


def test_bad_calls():
    image, keys = pictures()
    with pytest.raises(ValueError, match="uint8"):
        Degrade()(image.float(), keys, image)
    with pytest.raises(ValueError, match=r"keys must be \[12\]"):
        Degrade()(image, keys[:3], image)
    with pytest.raises(ValueError, match="clutter=2 needs a bank"):
        Degrade()(image, keys)
    with pytest.raises(ValueError, match="clutter=2 needs a bank"):
        Degrade()(image, keys, image[..., :14])
