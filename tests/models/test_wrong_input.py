"""Tests of wrong and empty input to the models. ``methods`` lists the public methods of a model."""

import importlib
import inspect

import pytest
import torch
from small_models import IMAGES, MODELS, data_of, made

import zoo
from zoo.checks.errors import UserError

NAN, INF = float("nan"), float("inf")

# Arguments that other files test: settings, parts of a training step, and plain values.
SETTINGS = {
    "without_parameter_gradients",
    "noise",
    "estimator",
    "objective",
    "stage",
    "batch_idx",
    "checkpoint",
    "u",
    "learning",
    "k",
}
SETTINGS |= {"chains", "kind", "measure", "share", "fake", "reduced", "timesteps", "guidance", "optimizer", "progress"}
SETTINGS |= {"log_partition", "lookup", "rows", "pairs", "frequency", "counts", "keep", "path", "binary", "c"}
SETTINGS |= {"category", "continuous", "clusters", "init", "frames", "show", "eta", "corrector_steps", "corrector_snr"}
SETTINGS |= {"step_size", "denoise", "adjusted", "consistent", "tau"}


def methods(model):
    """Yield (name, arguments) of each public method, without Lightning's hooks and without the SETTINGS."""
    for name, method in vars(type(model)).items():
        if inspect.isfunction(method) and not name.startswith(("_", "on_", "configure_")):
            yield name, [p for p in inspect.signature(method).parameters if p not in ("self", *SETTINGS)]


def good(model, method, argument):
    """Return a valid value of an argument of ``method``."""
    n, hparams = 3, model.hparams
    examples = data_of(model, n)
    D = hparams.get("latent_dim")
    word = torch.zeros(n, 2, dtype=torch.long)
    values = {
        "x": examples,
        "v": examples,
        "xt": examples,
        "x_T": examples,
        "a": examples,
        "b": examples,
        "z": torch.zeros(n, D or hparams.get("z_dim", 1)),
        "y": [0, 1, 2],
        "t": torch.zeros(n, dtype=torch.long),
        "sigma": torch.ones(n),
        "features": torch.zeros(n, hparams.get("features", 1)),
        "batch": [examples, torch.tensor([0, 1, 2])],
        "images": torch.zeros(300, 1, 28, 28, dtype=torch.uint8),
        "n": 3,
        "num_samples": 2,
        "generator": torch.Generator().manual_seed(0),
        "num_steps": 2,
        "steps": 2,
        "between": 2,
        "code": 0,
        "centres": word,
        "words": word,
        "word": "the",
        "batch_idx": 0,
        "dataloader_idx": 0,
    }
    if type(model).__name__ == "VAE" and argument == "z":
        return torch.zeros(n, *model.latent_shape)
    if type(model).__name__ == "GAN" and argument == "z":
        return model.z(n)
    if type(model).__name__ == "SkipGram":
        return {"a": "the", "b": "of", "c": "and", "n": 2, "batch": data_of(model, n)}.get(argument, values[argument])
    return values[argument]


def as_float(x, value):
    """Return a copy of ``x`` with ``value`` as its first number."""
    x = x.clone()
    x.view(-1)[0] = value
    return x


def wrong_tensors(x, values):
    """Yield invalid variants of ``x``: a name, the tensor, and whether only its values are wrong."""
    yield "a list", x.tolist(), False
    yield "integers", x.round().to(torch.int64), False
    yield "complex", x.to(torch.complex64), False
    yield "another width", torch.cat([x, x], -1), False
    yield "no axes", x.sum(), False
    for value in values:
        yield str(value), as_float(x, value), True


# Values that are not allowed in an argument. RANGES is for images in [-1, 1] and for noisy images.
OUTSIDE = {"x": [NAN, INF, -INF, -0.1, 1.5, 255.0], "v": [NAN, INF, -0.1, 1.5]}
OUTSIDE |= {key: [NAN, INF] for key in ("xt", "x_T", "a", "b", "z", "features")} | {"sigma": [NAN, INF, 0.0, -1.0]}
RANGES = {("GAN", "logits"): [NAN, INF, -1.5, 1.5], ("WGAN", "f"): [NAN, INF, -1.5, 1.5]}
RANGES |= {("DDPM", "blurred_score"): [NAN, INF], ("Score", "forward"): [NAN, INF]}


def wrong_values(model, method, argument):
    kind = type(model).__name__
    right = good(model, method, argument)
    if argument in OUTSIDE and isinstance(right, torch.Tensor):
        values = OUTSIDE[argument]
        if argument == "x":
            # ``VAE.log_px`` allows all finite pixels, because a Gaussian has a density everywhere.
            grey = right.shape[1:] == IMAGES and (kind, method) != (
                "VAE",
                "log_px",
            )
            values = RANGES.get((kind, method), values) if grey else [NAN, INF]
        if (kind, method) == ("RBM", "objective") and model.hparams.visible == "gaussian":
            values = [NAN, INF]  # states of Gaussian units are standardised pixels
        yield from ((name, value) for name, value, _ in wrong_tensors(right, values))
    elif argument == "batch" and kind == "SkipGram":
        yield from {"a dict": {"x": right[0]}, "one": right[:1], "floats": [t.float() for t in right]}.items()
    elif argument == "batch":
        yield from {"a dict": {"picture": right[0]}, "nothing": [], "numbers": [1, 2]}.items()
        if method != "noise":  # ``noise`` reads only the size of a batch
            for name, value, only_values in wrong_tensors(right[0], []):
                if not only_values:
                    yield f"{name} in it", [value, right[1]]
            yield "empty", [right[0][:0], right[1][:0]]
    elif argument in ("n", "num_samples") and kind != "SkipGram":
        yield from ((str(n), n) for n in (-1, True, 2.5, "3", 10**30 if argument == "n" else 0))
    elif argument in ("num_steps", "steps", "between", "code"):
        yield from (
            (str(n), n)
            for n in (-1, True, 2.5, "3", 10**9 if argument == "code" else 0)
            if (argument, n) != ("code", 0)
        )
    elif argument == "generator":
        yield from {"a seed": 0, "a string": "cpu"}.items()
    elif argument == "y" and kind in ("CVAE", "DDPM", "GAN", "WGAN") and method != "generator_terms":
        if model.hparams.num_classes is not None:
            yield from {"too large": [0, 1, 99], "floats": [0.5, 1.0, 2.0]}.items()
            yield from {} if method == "prior" else {"too many": [0, 1, 2, 3]}.items()
            yield from {"tensors": torch.tensor([0, 1, 99]), "a float": torch.tensor([0.0, 1, 2])}.items()
    elif argument == "t":
        yield from {
            "floats": right.float(),
            "negative": right - 1,
            "large": right + 10**6,
            "axes": right[:, None],
        }.items()
    elif argument in ("centres", "words") and isinstance(right, torch.Tensor):
        yield from {"floats": right.float(), "negative": right - 1, "large": right + 10**6}.items()
    elif argument == "images":
        yield from {"floats": right.float(), "axes": right[:, 0], "empty": right[:0]}.items()
    elif argument == "word":
        yield "a number", 3


CALLS = [
    (name, method, argument)
    for name in MODELS
    for method, arguments in methods(made(name))
    for argument in arguments
    if method not in ("training_step", "validation_step", "test_step", "setup", "make_vocabulary", "check_vocabulary")
    and next(wrong_values(made(name), method, argument), None)
]


@pytest.mark.parametrize(("name", "method", "argument"), CALLS)
def test_every_public_method_says_what_is_wrong_with_an_argument(name, method, argument):
    model = made(name)
    others = inspect.signature(getattr(type(model), method)).parameters
    given = {
        p: good(model, method, p)
        for p in others
        if p not in ("self", *SETTINGS) and (others[p].default is inspect.Parameter.empty)
    }
    given |= {p: {} for p in others if p in SETTINGS and others[p].default is inspect.Parameter.empty}
    for what, value in wrong_values(model, method, argument):
        with pytest.raises(UserError) as error:
            getattr(model, method)(**given | {argument: value})
        assert "\n" not in str(error.value), what


@pytest.mark.parametrize("name", MODELS)
def test_every_argument_of_a_public_method_is_known_here(name):
    """For a new kind of argument, ``good`` raises a KeyError until it returns a value for the argument."""
    model = made(name)
    for method, arguments in methods(model):
        for argument in arguments:
            good(model, method, argument)


def test_the_small_models_are_all_models():
    assert {name.split("-")[0] for name in MODELS} == set(zoo.MODELS)
    for name, path in zoo.MODELS.items():
        module, kind = path.rsplit(".", 1)
        assert type(made(name)) is getattr(importlib.import_module(module), kind)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "skipgram"])
def test_no_samples_are_an_empty_tensor_of_the_right_shape(name):
    model = made(name)
    state = torch.get_rng_state()
    one = model.sample(1)
    torch.set_rng_state(state)
    assert model.sample(0).shape == (0, *one.shape[1:])
    keys = {"y", "category", "clusters"} & set(inspect.signature(model.sample).parameters)
    for key in keys if model.hparams.get("num_classes", 0) is not None else ():
        assert model.sample(0, **{key: []}).shape == (0, *one.shape[1:])
        with pytest.raises(UserError):
            model.sample(3, **{key: []})
    if "frames" in inspect.signature(model.sample).parameters:
        how = {"num_steps": 3} if name.startswith("ddpm") else {"steps": 3}
        assert model.sample(0, frames=2, **how).shape == (0, 2, *one.shape[1:])
        for frames in (0, 1, -1, True, 2.0, 10**9):
            with pytest.raises(UserError):
                model.sample(1, frames=frames, **how)


INFERENCE = ("encode", "reconstruct", "cluster", "transform", "log_likelihood", "bound_terms", "free_energy", "forward")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "skipgram"])
def test_inference_on_no_examples_has_no_results(name):
    model = made(name)
    x = data_of(model, 3)
    for method in INFERENCE:
        parameters = inspect.signature(getattr(type(model), method, lambda: None)).parameters
        if (
            ("x" not in parameters and "v" not in parameters)
            or name in ("gan", "gan-labels", "gan-points")
            or "sigma" in parameters
        ):
            continue
        labels = model.hparams.get("num_classes") is not None and "y" in parameters
        several = getattr(model, method)(x, **({"y": [0, 1, 2]} if labels else {}))
        none = getattr(model, method)(x[:0], **({"y": []} if labels else {}))
        some, others = (t[0] if isinstance(t, tuple) else t for t in (several, none))
        assert others.numel() == 0 and 0 in others.shape and others.ndim == some.ndim, method


@pytest.mark.parametrize("name", [name for name in MODELS if name != "skipgram"])
def test_doubles_and_booleans_are_taken_as_numbers_of_the_model(name):
    """A float64 or boolean image gives the same result as the float32 image in a float32 model."""
    model = made(name)
    x = (data_of(model, 3) > 0.5).float() if name != "score-points" else data_of(model, 3)
    others = [x.double(), x.bool()] if name not in ("score-points", "gan-points") else [x.double()]
    for method in ("transform", "cluster", "encode", "discriminator_loss", "critic_loss", "loss"):
        if not hasattr(model, method):
            continue
        found = []
        for images in (x, *others):
            torch.manual_seed(0)
            labels = [0, 1, 2] if name == "cvae" else None
            if method.endswith("loss"):
                found.append(getattr(model, method)([images, torch.tensor([0, 1, 2])])["loss"])
            elif method == "encode" and name == "cvae":
                found.append(model.encode(images, labels)[0])
            else:
                out = getattr(model, method)(images)
                found.append(out[0] if isinstance(out, tuple) else out)
        assert all(torch.equal(found[0], other) and found[0].dtype == other.dtype for other in found[1:]), method


def test_the_advice_fits_the_mistake():
    model = made("vae")
    with pytest.raises(UserError, match=r"got 255 .* divide grey values of 0 to 255 by 255"):
        model.encode(torch.full((1, 1, 28, 28), 255.0))
    with pytest.raises(UserError, match=r"must have the shape \(B, 1, 28, 28\); got \(3, 28, 28\)"):
        model.encode(torch.zeros(3, 28, 28))
    with pytest.raises(UserError, match=r"torch.uint8: convert images with x.float\(\) / 255"):
        model.encode(torch.zeros(3, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(UserError, match="at most 2,739,137 per call, got 10,000,000: draw the samples in"):
        model.sample(10**7)
    with pytest.raises(UserError, match="generator must be None or a torch.Generator"):
        model.sample(1, generator=0)


def test_a_transformed_call_is_checked_by_the_values_beneath():
    model = made("vae")
    latents = torch.zeros(4, 2)
    assert torch.func.vmap(model.decode)(latents).shape == (4, 1, 28, 28)
    with pytest.raises(UserError, match="z must be finite numbers, got nan"):
        torch.func.vmap(model.decode)(latents * NAN)
    torch.func.jacrev(model.decode)(latents[:1])


def test_a_loss_reads_no_values():
    """Losses do not read the values of their inputs, because each read makes the CPU wait for the GPU."""
    model = made("vae")
    terms = model.loss([torch.full((2, 1, 28, 28), NAN)])
    assert terms["loss"].isfinite()  # NaN is binarised to 0
