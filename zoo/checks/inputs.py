"""What is given to a model's public methods, checked once, where it comes in from outside.

A class says what its arguments are by their names, ``@checks_inputs(x=images, z=latents)``. Every public method with
an argument of such a name then checks it. What a model calls by itself is not checked again. Training steps and losses
look at shapes and types alone, which costs nothing: looking at values would wait for a GPU.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from zoo.checks.calls import called_by_the_model, from_outside
from zoo.checks.errors import UserError
from zoo.checks.labels import as_labels
from zoo.checks.pixels import as_batch, as_examples, check_finite, check_one_hot, check_pixels
from zoo.checks.values import check_whole

C = TypeVar("C")
F = TypeVar("F", bound=Callable)
# (model, name of the argument, its value, all arguments) -> the value as the method takes it
Kind = Callable[[Any, str, Any, Mapping[str, Any]], Any]

MOST_NUMBERS = 2**31 - 1  # in one tensor of samples: 8 GiB
IMAGE = (1, 28, 28)


def takes(**kinds: Kind | None) -> Callable[[F], F]:
    """Decorate a method so that it checks the arguments that have one of these names.

    An argument that is None is left alone, and one whose kind is None, too.
    """

    def decorate(method: F) -> F:
        signature = inspect.signature(method)
        wanted = {name: kind for name, kind in kinds.items() if kind is not None and name in signature.parameters}
        in_step = not wanted or "batch" in wanted

        @functools.wraps(method)
        def call(self, *args, **kwargs):
            if not from_outside() or torch.compiler.is_compiling():
                return method(self, *args, **kwargs)
            if wanted:
                given = signature.bind(self, *args, **kwargs)
                for name, kind in wanted.items():
                    if given.arguments.get(name) is not None:
                        given.arguments[name] = kind(self, name, given.arguments[name], given.arguments)
                self, *rest = given.args
                args, kwargs = tuple(rest), given.kwargs
            with called_by_the_model(in_step):
                return method(self, *args, **kwargs)

        vars(call)["kinds"] = kinds
        return cast(F, call)

    return decorate


def checks_inputs(**kinds: Kind) -> Callable[[type[C]], type[C]]:
    """Decorate a class so that its public methods check what they are given, by the names of their arguments.

    ``n``, ``num_samples``, ``steps`` and ``generator`` mean the same in all classes. What a method says by
    :func:`takes` counts first. The values of the first batch of a run, of a validation and of a test are looked at
    before the step. Inference on an empty batch has an empty result; a loss of one is refused.

    Args:
        kinds: what arguments are. ``x`` also says what the examples of a ``batch`` are.
    """
    everywhere = {"n": count, "num_samples": whole, "steps": whole, "generator": generator} | kinds
    examples = kinds.get("x")
    if isinstance(examples, Examples):
        everywhere["batch"] = examples.of_batch

    def decorate(cls: type[C]) -> type[C]:
        for name, method in list(vars(cls).items()):
            if isinstance(method, FunctionType) and not name.startswith("_"):
                own = vars(method).get("kinds")
                plain = method if own is None else vars(method)["__wrapped__"]
                only_size = {"batch": batch_of_any_shape} if name == "noise" and isinstance(examples, Examples) else {}
                setattr(cls, name, takes(**(everywhere | only_size | (own or {})))(plain))
        if isinstance(examples, Examples):
            for stage in ("train", "validation", "test"):
                setattr(cls, f"on_{stage}_batch_start", _look_at_first(examples, of_a_run=stage == "train"))
        return cls

    return decorate


def _look_at_first(examples: "Examples", of_a_run: bool) -> Callable:
    """A hook of Lightning's that looks at the values of the first batch: of a run, or of each validation and test."""

    def look(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and not (of_a_run and self.trainer.fit_loop.total_batch_idx):
            x, *rest = examples.of_batch(self, "batch", batch)
            examples.check_values(self, "batch", x)
            if rest and (classes := self.hparams.get("num_classes")) is not None:
                as_labels(rest[0], len(x), classes, x.device)

    return look


# Kinds of arguments.


class Examples(NamedTuple):
    """Examples of the model's shape, (B, ...), floating-point numbers, returned in float32 or the model's float64.

    Attributes:
        values: ``data``: images in [0, 1], one-hot sequences, points that are finite. ``observed``: the same, and any
            finite numbers for a Gaussian likelihood. ``players``: images in [-1, 1], as the networks of a GAN see them.
            ``noisy``: any finite numbers, as of images with noise on them.
        leading: whether there may be any number of axes before the shape, and not one.
    """

    values: str = "data"
    leading: bool = False

    def __call__(self, model: Any, name: str, x: Any, arguments: Mapping[str, Any] | None = None) -> Tensor:
        x = as_examples(name, x, shape_of(model), floating(model), self.leading)
        self.check_values(model, name, x)
        return x

    def check_values(self, model: Any, name: str, x: Tensor) -> None:
        """Refuse values that are none of the model's data."""
        shape = shape_of(model)
        pixels = isinstance(shape, int) or shape == IMAGE
        anywhere = self.values == "observed" and model.hparams.get("likelihood") == "gaussian"
        if pixels and self.values != "noisy" and not anywhere:
            check_pixels(x, -1 if self.values == "players" else 0)
        elif self.values == "data" and not isinstance(shape, int) and len(shape) == 2:
            check_one_hot(name, x)  # a sequence; what the players see may be relaxed
        else:
            check_finite(name, x)

    def of_batch(self, model: Any, name: str, batch: Any, arguments: Mapping[str, Any] | None = None) -> list[Any]:
        """The batch as a list of examples and what comes with them, by its shapes and types alone."""
        x, *rest = as_batch(batch)
        x = as_examples("the examples of a batch", x, shape_of(model), floating(model))
        if not len(x):
            raise UserError(f"the batch is empty, {tuple(x.shape)}: give at least one example")
        return [x, *rest]


def batch_of_any_shape(model: Any, name: str, batch: Any, arguments: Mapping[str, Any]) -> list[Any]:
    """The batch as a list. Noise depends on its size alone."""
    return as_batch(batch)


def labels_in(batch: Sequence[Any], model: Any) -> Tensor:
    """The labels of a batch.

    Raises:
        UserError: for a batch without.
    """
    if len(batch) < 2:
        raise UserError(f"{type(model).__name__} needs labels here: a batch must be (x, y), and there is only x")
    return batch[1]


def shape_of(model: Any) -> tuple[int, ...] | int:
    """The shape of one example, or the number of its pixels where any shape will do."""
    hparams = model.hparams
    return hparams["num_visible"] if "num_visible" in hparams else tuple(hparams.get("shape", IMAGE))


def floating(model: Any) -> torch.dtype:
    """The type of the model's data: float64 if its weights are, else float32, whose pixels keep their grey values."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.promote_types(dtype, torch.float32)


def numbers(
    shape: Callable[[Any], tuple[int, ...]], leading: bool = True, fractions: Callable[[Any], bool] = lambda _: False
) -> Kind:
    """A kind: finite numbers of a shape that the model has for them.

    Args:
        shape: of one example, by the model.
        leading: whether there may be any number of axes before it, and not one.
        fractions: whether they are from 0 to 1, by the model.
    """

    def check(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
        x = as_examples(name, x, shape(model), floating(model), leading)
        check_finite(name, x, *((0, 1) if fractions(model) else ()))
        return x

    return check


def positive(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Positive numbers, one for each example, (B,)."""
    x = as_examples(name, x, (), floating(model))
    check_one_for_each(name, x, arguments)
    check_finite(name, x, 1e-30, math.inf)
    return x


def check_one_for_each(name: str, x: Tensor, arguments: Mapping[str, Any]) -> None:
    """Refuse another number of rows than there are examples among the arguments."""
    n = examples_beside(name, arguments)
    if len(x) != n:
        raise UserError(f"{name} must have one number for each of {n} examples; got {tuple(x.shape)}")


def examples_beside(name: str, arguments: Mapping[str, Any]) -> int:
    """How many examples the first tensor among the other arguments has."""
    return next(len(value) for key, value in arguments.items() if isinstance(value, Tensor) and key != name)


def grey_images(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Images of 256 grey values in memory, (N, 28, 28), uint8, at least one."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or tuple(x.shape[1:]) != IMAGE[1:] or not len(x):
        got = f"a tensor of {x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{name} must be images (N, 28, 28) of grey values, torch.uint8; got {got}")
    return x


def labels(model: Any, name: str, y: Any, arguments: Mapping[str, Any]) -> Tensor | None:
    """Labels of the examples among the arguments, or the number after the last of them, which stands for none.

    A likelihood of a model without labels does not use them.
    """
    classes = model.hparams.num_classes
    if classes is None:
        if "x" in arguments:
            return None
        raise UserError(f"this model was trained without labels (num_classes=null), so it takes no {name}")
    return as_labels(y, examples_beside(name, arguments), classes if "x" in arguments else classes + 1, model.device)


def count(model: Any, name: str, n: Any, arguments: Mapping[str, Any]) -> int:
    """How many samples: a whole number of at least 0, such that they fit into one tensor."""
    if isinstance(n, Integral) and not isinstance(n, bool):
        n = int(n)
    check_whole(name, n, least=0)
    shape = shape_of(model)
    most = MOST_NUMBERS // (shape if isinstance(shape, int) else math.prod(shape))
    if n > most:
        raise UserError(f"{name} must be at most {most:,} at once, got {n:,}: draw them in several parts")
    return n


def whole(model: Any, name: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    """A whole number of at least 1."""
    check_whole(name, value)
    return value


def generator(model: Any, name: str, value: Any, arguments: Mapping[str, Any]) -> torch.Generator:
    """A torch.Generator."""
    if not isinstance(value, torch.Generator):
        raise UserError(f"{name} must be None or a torch.Generator, as torch.Generator().manual_seed(0); got {value!r}")
    return value


def whole_numbers_below(limit: Callable[[Any], int], axes: int = 1) -> Kind:
    """A kind: a tensor of whole numbers from 0 to one less than ``limit(model)``, such as steps or words.

    Args:
        limit: by the model.
        axes: of the tensor; 0 for any number.
    """

    def check(model: Any, name: str, t: Any, arguments: Mapping[str, Any]) -> Tensor:
        plain = isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
        if not plain or axes not in (0, t.ndim):
            got = f"a tensor of {t.dtype}, {tuple(t.shape)}" if isinstance(t, Tensor) else f"{t!r:.80}"
            shape = ", (B,)" if axes == 1 else ""
            raise UserError(f"{name} must be a tensor of whole numbers{shape}; got {got}")
        if axes == 1:
            check_one_for_each(name, t, arguments)
        outside = t[(t < 0) | (t >= limit(model))]
        if len(outside):
            raise UserError(f"{name} must lie between 0 and {limit(model) - 1}, got {outside[0].item()}")
        return t.long()

    return check


def rows_of_text(model: Any, name: str, batch: Any, arguments: Mapping[str, Any]) -> list[Tensor]:
    """Rows of words and the reach of each centre, (B, window + 32 + window) and (B, 32), by shapes and types alone."""
    rows = list(batch) if isinstance(batch, list | tuple) else [batch]
    whole = all(isinstance(t, Tensor) and not t.is_floating_point() and t.ndim == 2 for t in rows)
    if not whole or len(rows) != 2 or len(rows[0]) != len(rows[1]) or rows[0].shape[1] <= rows[1].shape[1]:
        got = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in rows]
        raise UserError(
            "a batch of text must be numbers of words (B, window + 32 + window) and the reach of the centres (B, 32), "
            f"as zoo.datamodules.Text makes them; got {got}"
        )
    return rows


images = data = Examples()
observed = Examples("observed", leading=True)  # (..., 1, 28, 28)
seen_by_players = Examples("players")
noisy = Examples("noisy")
