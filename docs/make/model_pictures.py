"""Pictures of what each model makes, drawn from the pretrained checkpoints."""

from functools import partial

import matplotlib
import numpy as np
import torch
from drawing import INK, RED, Picture, canvas, join, show_tiles, tiles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

import zoo
from zoo.datamodules import toy
from zoo.evaluation import fields
from zoo.functional.diffusion_samplers import sampler, slerp
from zoo.functional.gibbs import frame_steps
from zoo.functional.noise import chunk_generator, randn
from zoo.functional.progress import tracked
from zoo.sampling.chunks import sample_chunks

LEVEL = 21  # points from images to their title, so that it is level with a title above names of columns
DIGITS, SHAPE = list(range(10)), (1, 28, 28)
INKS = ("#0072B2", "#A04000", "#00785A", "#8A2F6B", "#5B4FB0", "#7A5C00", "#1F6F8B", "#B03A2E", "#444444")


def repeated(values: list[int], times: int) -> list[int]:
    """Return every value ``times`` times in succession: [0, 0, 1, 1] for the values 0 and 1, and two times."""
    return [value for value in values for _ in range(times)]


def walks(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return spherical interpolations of noise, (n * steps, D), from ``start`` (n, D) to ``end`` (n, D)."""
    return slerp(start, end, torch.linspace(0, 1, steps)).flatten(0, 1)


def two_panels(left: Tensor, right: Tensor, titles: tuple[str, str], columns: int = 8) -> Figure:
    """Return two squares of images, (n, C, H, W) each, side by side."""
    figure, axes = canvas(4.4, 1, 2)
    for panel, images, title in zip(axes, (left, right), titles, strict=True):
        show_tiles(panel, images, columns, title)
    return figure


@torch.no_grad()
def samples() -> Figure:
    ddpm, infogan, columns, frames = zoo.load("ddpm-guided"), zoo.load("infogan"), 4, 7
    rows = repeated(DIGITS, columns)
    chains = sample_chunks(ddpm, len(rows), 0, progress=True, y=rows, frames=frames, guidance=0.5, eta=1.0)
    categories = sample_chunks(infogan, len(rows), 0, category=rows)
    figure, axes = canvas(5.45, 1, 3, width_ratios=[columns, columns, frames])
    show_tiles(axes[0], chains[:, -1], columns, "DDPM with labels:\na row for each label")
    show_tiles(axes[1], categories, columns, "InfoGAN, no labels:\na row for each category")
    show_tiles(axes[2], chains[::columns].flatten(0, 1), frames, "The same DDPM:\nfrom noise to digits", noisy=True)
    return figure


@torch.no_grad()
def vae() -> Figure:
    model = zoo.load("vae")
    ends = model.prior(16, generator=chunk_generator(3, 0))
    walk = model.decode(walks(ends[:8], ends[8:], 8))
    return two_panels(
        sample_chunks(model, 64, 0), walk, ("Samples: z from N(0, I)", "Walks from one z to another, row by row")
    )


@torch.no_grad()
def cvae() -> Figure:
    images = sample_chunks(zoo.load("cvae"), 200, 0, y=repeated(DIGITS, 20))
    figure, axes = canvas(4.35)
    show_tiles(axes, images, 20, "Samples of p(x | y), a row for each label y", [f"y = {y}" for y in DIGITS])
    return figure


@torch.no_grad()
def vade() -> Figure:
    model = zoo.load("vade")
    images = sample_chunks(model, 180, 0, clusters=repeated(DIGITS, 18)).view(10, 18, 1, 28, 28)
    means = model.decode(model.mu_c)
    rows = [join([means[c], join([*images[c]], gap=2)], gap=14) for c in DIGITS]
    figure, axes = canvas(4.35)
    title = "Left: the mean of each cluster, decoded. Right: samples of the cluster"
    show_tiles(axes, torch.stack(rows), 1, title, [f"cluster {c}" for c in DIGITS])
    return figure


@torch.no_grad()
def rbm() -> Figure:
    model = zoo.load("rbm")
    frames = 10
    chains = model.sample(8, steps=1000, frames=frames, generator=chunk_generator(0, 0))
    shown = [str(step) for step in frame_steps(1000, frames)]
    W = model.weights().W.T[:64]  # (64, V)
    W = W / W.abs().quantile(0.995, 1, keepdim=True)
    colours = torch.from_numpy(matplotlib.colormaps["RdBu_r"]((W / 2 + 0.5).clamp(0, 1).numpy())[..., :3])
    figure, axes = canvas(4.2, 1, 2, width_ratios=[10, 8])
    show_tiles(
        axes[0], chains.flatten(0, 1), frames, "Gibbs chains, by the number of steps", column_names=shown, noisy=True
    )
    axes[1].imshow(tiles(colours.view(-1, 28, 28, 3).permute(0, 3, 1, 2), 8, grey=0.75).numpy())
    axes[1].set_title("Weights of 64 of the hidden units", pad=LEVEL)
    axes[1].set_axis_off()
    return figure


@torch.no_grad()
def adversarial(name: str) -> Figure:
    model = zoo.load(name)
    z = randn(16, model.hparams.z_dim, generator=chunk_generator(1, 0), device=model.device)
    walk = (model.G(walks(z[:8], z[8:], 8)) / 2 + 0.5).clamp(0, 1)
    return two_panels(sample_chunks(model, 64, 0), walk, ("Samples", "Walks from one z to another, row by row"))


@torch.no_grad()
def infogan() -> Figure:
    model = zoo.load("infogan")
    figure, axes = canvas(4.6, 1, 2)
    values = ["-2", *[""] * 8, "2"]
    for code, panel in enumerate(axes):
        grid = model.vary(code, 10, generator=chunk_generator(4, 0)).transpose(0, 1).flatten(0, 1)
        rows = [f"category {c}" for c in DIGITS] if code == 0 else []
        show_tiles(panel, grid, 10, f"Continuous code c{code + 1}", rows, values)
    return figure


@torch.no_grad()
def ddpm() -> Figure:
    model, n, kept = zoo.load("ddpm"), 3, range(0, 50, 5)
    generator = chunk_generator(6, 0)
    x = randn(n, *SHAPE, generator=generator, device=model.device)
    noisy, predicted, names = [], [], []
    # Each step yields t, the next x and the x_0 that the network predicts from x_t.
    steps = sampler(model.x0_hat, x, model.chain, 50, 1.0, model.hparams.variance, generator=generator, correct=None)
    for i, (t, after, x0) in enumerate(tracked(steps[0], "ddpm", total=50)):
        if i in kept:
            noisy.append(x)
            predicted.append(x0)
            names.append(str(t + 1))
        x = after
    figure, axes = canvas(5.45, 2, 1)
    titles = (
        "Noisy images $x_t$, by t: from noise to a sample",
        "The clean image that the network predicts from $x_t$",
    )
    for panel, frames, title in zip(axes, (noisy, predicted), titles, strict=True):
        images = torch.stack([*frames, x], 1).flatten(0, 1) / 2 + 0.5
        show_tiles(panel, images, len(names) + 1, title, column_names=[*names, "0"])
    return figure


@torch.no_grad()
def score() -> Figure:
    model, n = zoo.load("score"), 4
    states, _ = model.chains(n, generator=chunk_generator(0, 0))
    kept = torch.linspace(0, len(states) - 1, 9).round().long().tolist()
    # Pixels have variance 1 + sigma^2 around a level of noise. Every frame is scaled to the range of grey values.
    frames = [states[k] / (1 + model.sigmas[k] ** 2).sqrt() / 2 + 0.5 for k in kept]
    figure, axes = canvas(3.1, 1, 2, width_ratios=[9, 3.97])  # panels of one height
    levels = [f"{float(model.sigmas[k]):.2g}" for k in kept]
    title = r"Langevin chains of images, by noise level $\sigma$"
    show_tiles(axes[0], torch.stack(frames, 1).flatten(0, 1), len(kept), title, column_names=levels)
    draw_field(axes[1])
    return figure


@torch.no_grad()
def draw_field(axes: Axes) -> None:
    """Draw the learned score of ``score-mixture``, the density whose score it learned, and samples."""
    model = zoo.load("score-mixture")
    density, half = fields.target(model, toy.mixture()), 3.2
    side = torch.linspace(-half, half, 160, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    axes.contourf(side, side, density.log_density(plane).exp(), levels=7, cmap="Blues", alpha=0.9)
    coarse = torch.linspace(-half, half, 15, dtype=torch.float64)[1:-1]
    at = torch.stack(torch.meshgrid(coarse, coarse, indexing="xy"), -1).flatten(0, 1)
    arrows = fields.learned_score(model, at)
    axes.quiver(*at.T, *arrows.T, color=INK, angles="xy", scale_units="xy", scale=12, width=0.006)
    points = model.sample(150, generator=chunk_generator(0, 0))
    axes.plot(*points.T, ".", color=RED, markersize=3.5, markeredgewidth=0)
    axes.set(aspect="equal", xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Score and samples", pad=LEVEL)


SPREAD = 3.0
SEEDS = ("france", "march", "tiger", "bread", "piano", "physics", "iron", "blue", "bishop")


def skipgram() -> Figure:
    """Draw each word of ``SEEDS`` with its nearest neighbours, placed by t-SNE on their vectors."""
    model = zoo.load("skipgram")
    groups = {seed: [seed, *(word for word, _ in model.nearest(seed, 7))] for seed in SEEDS}
    words = list(dict.fromkeys(word for group in groups.values() for word in group))
    vectors = model.unit_vectors()[[model.number(word) for word in words]].double().numpy()
    place = TSNE(perplexity=6, metric="cosine", init="pca", random_state=0, n_jobs=1).fit_transform(vectors)
    place = (place - place.min(0)) / np.ptp(place, axis=0)
    for group in groups.values():  # t-SNE draws the words of a group close together
        rows = [words.index(word) for word in group]
        place[rows] = place[rows].mean(0) + SPREAD * (place[rows] - place[rows].mean(0))
    place = apart(place, words)
    figure, axes = canvas(5.0)
    for i, group in enumerate(groups.values()):
        for word in group:
            weight, at = "bold" if word in SEEDS else "normal", place[words.index(word)]
            axes.text(*at, word, color=INKS[i % len(INKS)], weight=weight, ha="center", va="center")
    axes.set(xlim=(place[:, 0].min() - 0.08, place[:, 0].max() + 0.08), xticks=[], yticks=[])
    axes.set(ylim=(place[:, 1].min() - 0.03, place[:, 1].max() + 0.03))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(SEEDS)} words in bold, each with its seven nearest of {len(model.words):,} words")
    return figure


def apart(place: np.ndarray, words: list[str], rounds: int = 1000) -> np.ndarray:
    """Return positions in the unit square, (n, 2), moved apart until the words at them no longer overlap."""
    place = place.copy()
    half = np.array([[0.0076 * len(word) + 0.01, 0.02] for word in words])  # half the width and height of each word
    for _ in range(rounds):
        between = place[:, None] - place
        room = half[:, None] + half
        overlap = 1 - np.abs(between) / room  # as a fraction of the room that the two words need
        clash = (overlap > 0).all(-1) & ~np.eye(len(words), dtype=bool)
        if not clash.any():
            break
        for axis in (0, 1):  # along the direction in which less movement is needed
            moved = clash & (overlap.argmin(-1) == axis)
            push = np.where(moved, overlap[..., axis] * room[..., axis] * np.sign(between[..., axis]), 0)
            place[:, axis] += 0.25 * push.sum(1)
    return place


PICTURES = {
    "samples": Picture(
        samples,
        "Samples of pretrained models. Left: a DDPM with labels and guidance 0.5. Middle: an InfoGAN, which found its "
        "ten categories without labels. Right: the DDPM on the left, from noise to digits.",
    ),
    "first-vae": Picture(
        vae,
        "What a VAE makes: samples, which are means of p(x | z), and walks along great arcs from one latent z to "
        "another.",
    ),
    "first-cvae": Picture(cvae, "What a conditional VAE makes: samples for each of the ten labels."),
    "first-vade": Picture(
        vade,
        "What VaDE makes: ten clusters found without labels. The first column is the decoded mean of each cluster. The "
        "other columns are samples of the cluster.",
    ),
    "first-rbm": Picture(
        rbm,
        "What an RBM makes. Left: Gibbs chains from noise to step 1,000. Right: the weights of 64 of the 500 hidden "
        "units. Red raises a pixel, and blue lowers it.",
    ),
    "first-gan": Picture(
        partial(adversarial, "gan"),
        "What a GAN makes: samples, and walks along great arcs from one noise z to another.",
    ),
    "first-wgan": Picture(
        partial(adversarial, "wgan"),
        "What a WGAN makes: samples, and walks along great arcs from one noise z to another.",
    ),
    "first-infogan": Picture(
        infogan,
        "What InfoGAN makes: one row for each category of its code, found without labels. In each panel, one "
        "continuous code rises from -2 to 2 from left to right.",
    ),
    "first-ddpm": Picture(
        ddpm,
        "What a DDPM makes: three chains from noise to digits in 50 steps. Above: the noisy images. Below: the clean "
        "image that the network predicts at the same step.",
    ),
    "first-score": Picture(
        score,
        "What a score model makes. Left: four annealed Langevin chains of images, from large to small noise. Right: "
        "the learned score of a mixture in the plane (arrows), the density (blue) and samples (red).",
    ),
    "first-skipgram": Picture(
        skipgram,
        "What skip-gram makes: a map of words. Each bold word is shown with its seven nearest words, placed by t-SNE "
        "on their vectors.",
    ),
}
