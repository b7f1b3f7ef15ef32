"""Tests that the pixels of a sample depend on the seed, and not on the number of samples or processes."""

import numpy as np
import pytest
import torch
from helpers import Pixel
from PIL import Image
from torch.testing import assert_close

from zoo.ddpm import DDPM
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.sampling.pictures import in_rows, picture, save_grid
from zoo.score import Score
from zoo.vae import VAE


@pytest.fixture(params=["vae", "ddpm", "score"])
def model(request):
    torch.manual_seed(0)
    if request.param == "vae":
        return VAE(latent_dim=3, hidden=[37]).eval()
    if request.param == "score":
        model = Score(widths=[8, 16], num_sigmas=3).eval()
        torch.nn.init.normal_(model.net.out[-1].weight, std=0.1)
        model.sample = lambda n, generator, f=model.sample: f(n, generator=generator, steps=2)
        return model
    model = DDPM(steps=30, widths=[8, 16], blocks=1).eval()
    torch.nn.init.normal_(model.net.out[-1].weight, std=0.1)  # this layer starts at zero, which would hide errors
    model.sample = lambda n, generator, f=model.sample: f(n, generator=generator, num_steps=3, eta=1.0)
    return model


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_together_draw_what_one_draws(model, world_size):
    whole = sample_chunks(model, 50, seed=4)
    assert whole.shape == (50, 1, 28, 28)
    parts = [sample_chunks(model, 50, 4, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    assert torch.equal(sample_chunks(model, 7, seed=4), whole[:7])  # a call for 7 samples returns the first 7 of 50
    assert not torch.equal(sample_chunks(model, 50, seed=5), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 50  # all samples differ


def test_sampling_leaves_the_global_generator_alone(model):
    before = torch.get_rng_state()
    sample_chunks(model, 20, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_drawn_by_the_generator_or_globally():
    for draw in (randn, rand):
        a, b = (draw(3, generator=torch.Generator().manual_seed(0), device=torch.device("cpu")) for _ in range(2))
        assert torch.equal(a, b)
        assert not torch.equal(draw(3, generator=None, device=torch.device("cpu")), a)
    seeds = {chunk_generator(s, c).initial_seed() for s in range(-3, 20) for c in range(-1, 50)}
    assert len(seeds) == 23 * 51


def test_conditions_are_checked_by_name():
    check_conditions(Pixel(), {"contrast": 1})
    with pytest.raises(ValueError, match="Pixel.sample takes no etta; it takes contrast"):
        check_conditions(Pixel(), {"etta": 1})
    with pytest.raises(ValueError, match="Linear has no method sample"):
        check_conditions(torch.nn.Linear(1, 1), {})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample_chunks(Pixel(), 0, seed=0)


def test_a_grid_is_one_picture(tmp_path, generator):
    save_grid(torch.rand(10, 1, 28, 28, generator=generator), tmp_path / "a" / "grid.png")
    with Image.open(tmp_path / "a" / "grid.png") as picture:
        assert picture.size == (3 * 30 + 2, 4 * 30 + 2)  # 3 columns, 4 rows
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["grid.png"]


class Greys:
    """Model of grey images. The condition ``greys`` is the grey level of each image, from 0 to 10."""

    def rows(self):
        return "greys", [0, 5, 10]

    def sample(self, n, *, generator=None, greys=None, scale=1.0):
        greys = [0] * n if greys is None else greys
        assert len(greys) == n
        return torch.tensor(greys).float().mul(scale / 10)[:, None, None, None].expand(n, 1, 28, 28)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_conditions_with_one_value_per_sample_follow_the_chunks(world_size):
    greys = list(range(10)) + [3] * 11
    parts = [sample_chunks(Greys(), 21, 0, rank, world_size, greys=greys, scale=0.5) for rank in range(world_size)]
    assert_close(torch.stack(parts).sum(0)[:, 0, 0, 0], torch.tensor(greys) * 0.05)
    with pytest.raises(ValueError, match="greys has 21 values for 20 samples; give one value"):
        sample_chunks(Greys(), 20, 0, greys=greys)


def test_a_picture_is_a_png_however_it_is_spelled(tmp_path):
    for name in ("a.png", "A.PNG"):
        save_grid(torch.zeros(2, 1, 28, 28), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for wrong in ("a.jpg", "png", ""):
        with pytest.raises(ValueError, match="a picture must be a file that ends in .png, got"):
            save_grid(torch.zeros(2, 1, 28, 28), tmp_path / wrong)


def test_a_picture_has_a_row_for_each_kind():
    n, conditions, columns = picture(Greys(), 10, {"scale": 0.5})
    assert (n, columns) == (12, 4) and conditions["scale"] == 0.5
    rows = sample_chunks(Greys(), n, 0, **conditions)[:, 0, 0, 0].view(3, columns)
    assert_close(rows, torch.tensor([[0.0] * 4, [0.25] * 4, [0.5] * 4]))
    assert picture(Greys(), 14, {"greys": 5}) == (14, {"greys": 5}, 4)  # the caller sets the condition
    assert picture(object(), 64, {}) == (64, {}, 8)


def test_points_and_sequences_are_pictures():
    points, columns = in_rows(torch.randn(50, 2, generator=chunk_generator(0, 0)))
    assert points.shape == (1, 3, 480, 480) and columns == 1
    assert points.min() >= 0 and points.max() <= 1 and points.std() > 0.05
    v = torch.eye(3)[torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0]])]  # four sequences of two symbols out of three
    images, columns = in_rows(v)
    assert images.shape == (4, 1, 12, 8) and columns == 2
    # The rows of an image are symbols, and the columns are times.
    assert images[0, 0, 0, 0] == 1 and images[0, 0, 11, 7] == 1 and images.sum() == 4 * 2 * 16


def test_pictures_keep_the_shape_and_the_colours_of_images(tmp_path, generator):
    """Each pixel of the picture is a pixel of an image. There are two grey pixels between images."""
    for shape in ((3, 6, 9), (1, 9, 4)):
        images = torch.rand(6, *shape, generator=generator)
        save_grid(images, tmp_path / "grid.png", 3)
        _, H, W = shape
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png"))).permute(2, 0, 1) / 255
        assert pixels.shape == (3, 2 * (H + 2) + 2, 3 * (W + 2) + 2)
        for i in range(6):
            top, left = 2 + i // 3 * (H + 2), 2 + i % 3 * (W + 2)
            found = pixels[:, top : top + H, left : left + W]
            assert (found - images[i]).abs().max() < 1 / 255
    chains = torch.rand(4, 5, 3, 6, 9, generator=generator)
    rows, columns = in_rows(chains)
    assert columns == 5 and torch.equal(rows[7], chains[1, 2])


def test_pictures_of_other_channels_and_of_vectors(tmp_path, generator):
    """Five channels stand side by side. A vector is one row of pixels."""
    images = torch.rand(4, 5, 6, 9, generator=generator)
    rows, columns = in_rows(images)
    assert rows.shape == (4, 1, 6, 45) and columns == 2
    assert torch.equal(rows[1, 0, :, 9:18], images[1, 1])
    rows, columns = in_rows(torch.rand(4, 50, generator=generator))
    assert rows.shape == (4, 1, 1, 50) and columns == 1
    save_grid(images, tmp_path / "grid.png")
    assert np.array(Image.open(tmp_path / "grid.png")).shape[:2] == (2 * 8 + 2, 2 * 47 + 2)


def test_pictures_of_any_number_of_channels(tmp_path):
    """Images in colour and chains over time keep their channels. Two or four channels are side by side."""
    x = torch.rand(6, 4, 5, 7, generator=chunk_generator(0, 0))
    assert torch.equal(in_rows(x[:, :3], 3)[0], x[:, :3])
    assert torch.equal(in_rows(x[:, :3].view(2, 3, 3, 5, 7))[0], x[:, :3])
    images, columns = in_rows(x.view(2, 3, 4, 5, 7))
    assert columns == 3 and images.shape == (6, 1, 5, 28)
    assert torch.equal(images[4, 0, :, 14:21], x[4, 2])
    for channels in (1, 2, 3, 4):
        save_grid(x[:, :channels], tmp_path / f"{channels}.png", 2)
        assert (tmp_path / f"{channels}.png").stat().st_size > 0
