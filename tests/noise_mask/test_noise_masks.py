"""Noise masks: worked numbers, and the two products against torch's own interpolation, padding and convolution."""

import pytest
import torch
from torch.nn import functional as F

from zoo.noise_mask import NoiseMask
from zoo.noise_mask.masks import apply_mask, gaussian_kernel, mix, moving_average, pixel_matrix, sample_cells


def test_mixing_and_moving_average_of_the_worked_example() -> None:
    base, u = torch.full((1,), 0.5), torch.tensor([[2.0], [-1.0]])
    a = mix(base, u, 0.9)
    torch.testing.assert_close(a, torch.tensor([[0.65], [0.35]]))
    torch.testing.assert_close(a.exp(), torch.tensor([[1.915541], [1.419068]]))
    assert moving_average(base, u.mean(0), 0.99).item() == pytest.approx(0.5)
    assert moving_average(base, torch.tensor([2.5]), 0.99).item() == pytest.approx(0.52)


def test_nearest_upsampling_repeats_the_cells_of_the_worked_example() -> None:
    rows = pixel_matrix(4, 14, "nearest", 1, 1.0)
    assert rows.argmax(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert set(rows.unique().tolist()) == {0.0, 1.0}


def test_gaussian_kernel_of_the_official_size() -> None:
    half = torch.tensor([0.05586, 0.06509, 0.07375, 0.08128, 0.08713, 0.09083, 0.09211])
    torch.testing.assert_close(gaussian_kernel(13, 6.0), torch.cat([half, half[:-1].flip(0)]), atol=5e-6, rtol=0)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (31, 50), (7, 9)])
def test_two_products_equal_interpolation_padding_and_convolution(upsample: str, height: int, width: int) -> None:
    torch.manual_seed(0)
    mask = NoiseMask(grid=7, kernel=5, sigma=2.0, upsample=upsample)  # type: ignore[arg-type]
    cells = torch.rand(3, 49)
    pixels = F.interpolate(cells.view(3, 1, 7, 7), size=(height, width), mode=upsample)
    kernel = gaussian_kernel(5, 2.0)
    blurred = F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="reflect"), torch.outer(kernel, kernel)[None, None])
    torch.testing.assert_close(mask.pixels(cells, height, width), blurred)


def test_a_constant_mask_dims_the_image() -> None:
    image = torch.randn(2, 3, 40, 33)
    masked = NoiseMask(grid=8)(image, torch.full((1, 64), 0.3))
    torch.testing.assert_close(masked, 0.3 * image)


def test_equal_and_large_concentrations_give_the_mask_one_half() -> None:
    torch.manual_seed(0)
    a = torch.full((4, 64), 16.0)
    mask = NoiseMask(grid=8).pixels(sample_cells(a, a), 32, 32)
    torch.testing.assert_close(mask, torch.full((4, 1, 32, 32), 0.5), atol=2e-3, rtol=0)


def test_official_masks_have_the_computed_spread() -> None:
    torch.manual_seed(0)
    mask = NoiseMask()
    cells = sample_cells(*mask.base(32))
    pixels = mask.pixels(cells, 224, 224)
    assert cells.mean().item() == pytest.approx(0.5, abs=0.01)
    assert cells.std().item() == pytest.approx(0.255, abs=0.005)
    assert pixels.mean().item() == pytest.approx(0.5, abs=0.01)
    assert pixels.std().item() == pytest.approx(0.07, abs=0.003)
    assert not sample_cells(torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4)).requires_grad


def test_ways_to_apply_a_mask() -> None:
    image, mask = torch.tensor([-1.0, 3.0]).view(1, 2, 1, 1), torch.full((1, 1, 1, 1), 0.25)
    mean, std = torch.tensor([0.5, 0.2]).view(2, 1, 1), torch.tensor([0.25, 0.1]).view(2, 1, 1)
    assert apply_mask(image, mask).flatten().tolist() == [-0.25, 0.75]
    assert apply_mask(image, mask, "add").flatten().tolist() == [-1.25, 2.75]
    # pixels 0.25 and 0.5: a quarter of them is 0.0625 and 0.125
    torch.testing.assert_close(apply_mask(image, mask, "multiply", mean, std).flatten(), torch.tensor([-1.75, -0.75]))
    torch.testing.assert_close(apply_mask(image, mask, "add", mean, std).flatten(), torch.tensor([-2.0, 0.5]))
    black = NoiseMask(2, 1, 1.0, space="pixel", mean=[0.5, 0.2], std=[0.25, 0.1])
    torch.testing.assert_close(
        black(image.expand(1, 2, 2, 2), torch.zeros(1, 4))[0, :, 0, 0], torch.tensor([-2.0, -2.0])
    )


def test_the_base_starts_in_the_unit_interval_and_forgets_its_start_by_the_decay() -> None:
    torch.manual_seed(0)
    mask = NoiseMask(grid=8)
    start = mask.base_a.clone()
    assert 0 <= start.min() < 0.1 < 0.9 < start.max() <= 1
    zero = torch.zeros(5, 64, requires_grad=True)
    for _ in range(200):
        mask.follow(zero, zero)
    torch.testing.assert_close(mask.base_a, start * 0.99**200)
    assert not mask.base_a.requires_grad


def test_the_clamp_guards_log_concentrations() -> None:
    mask = NoiseMask(grid=2, clamp=(-3, 6))
    a, b = mask.concentrations(torch.full((1, 4), 100.0), torch.full((1, 4), -100.0))
    assert (a == 6).all()
    assert (b == -3).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": 0}, "mask.grid=0"),
        ({"kernel": 4}, "mask.kernel=4: must be odd"),
        ({"kernel": -1}, "mask.kernel=-1"),
        ({"sigma": 0.0}, "mask.sigma=0.0"),
        ({"mix": 1.5}, r"mask.mix=1.5: must lie in \[0, 1\]"),
        ({"ema": -0.1}, "mask.ema=-0.1"),
        ({"clamp": (6, -3)}, "mask.clamp="),
        ({"space": "pixel"}, "mask.space=pixel"),
        ({"mean": [0.5], "std": [0.2]}, "mask.space=normalised"),
    ],
)
def test_values_out_of_range_name_the_field(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NoiseMask(**{"grid": 4, **options})


def test_a_mask_that_does_not_fit_the_image_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"mask.grid=64 is larger than an image side of 28 pixels"):
        NoiseMask()(torch.zeros(1, 1, 28, 28), torch.zeros(1, 4096))
    with pytest.raises(ValueError, match=r"mask.kernel=13 is too wide for an image side of 6 pixels: use at most 11"):
        NoiseMask(grid=4)(torch.zeros(1, 1, 28, 6), torch.zeros(1, 16))
