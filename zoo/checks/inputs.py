"""Check the arguments of a model's public methods, once, when the user calls them.

A class decorator maps names of arguments to checks, for example ``@checks_inputs(x=images, z=latents)``. Every public
method then checks its arguments with these names. Calls that a model makes to its own methods are not checked again.
Training steps and losses check shapes and dtypes only, because reading values would wait for the GPU. Labels are the
exception: a loss that the user calls reads them on the CPU.
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

from zoo.checks.calls import Reads, called_by_the_model, from_outside
from zoo.checks.capabilities import Features, SplitData
from zoo.checks.errors import UserError
from zoo.checks.labels import as_labels
from zoo.checks.pixels import LABEL_KEYS, as_batch, as_examples, check_finite, check_one_hot, check_pixels
from zoo.checks.rows import as_rows
from zoo.checks.values import check_integer

C = TypeVar("C")
F = TypeVar("F", bound=Callable)
# (model, name of the argument, its value, all arguments) -> the checked value, which the method receives
Kind = Callable[[Any, str, Any, Mapping[str, Any]], Any]

MOST_NUMBERS = 2**31 - 1  # largest number of elements in one tensor of samples, 8 GiB in float32
IMAGE = (1, 28, 28)  # shape of an example of checkpoints without the hyperparameter shape


def takes(**kinds: Kind | None) -> Callable[[F], F]:
    """Return a decorator for a method. The decorated method checks the arguments that ``kinds`` names.

    An argument is not checked if its value is None, or if its check is None.

    Args:
        kinds: the check for each name of an argument.
    """

    def decorate(method: F) -> F:
        signature = inspect.signature(method)
        wanted = {name: kind for name, kind in kinds.items() if kind is not None and name in signature.parameters}
        reads: Reads = "everywhere" if wanted and "batch" not in wanted else "cpu"
        reads = "nowhere" if method.__name__ == "training_step" else reads

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
            with called_by_the_model(reads):
                return method(self, *args, **kwargs)

        vars(call)["kinds"] = kinds
        return cast(F, call)

    return decorate


def checks_inputs(**kinds: Kind) -> Callable[[type[C]], type[C]]:
    """Return a class decorator. The public methods of the decorated class check the arguments with these names.

    ``n``, ``num_samples``, ``steps`` and ``generator`` are checked in all classes. Checks that a method declares with
    :func:`takes` replace the checks of the class. The values of a batch are checked for the first training batch of a
    run, and for the first batch of each validation and test. If the datamodule has ``splits``, the first training batch
    also checks all training examples. Inference on an empty batch returns an empty result. A loss raises UserError for
    an empty batch. ``trainer.predict`` returns ``forward`` of the examples of each batch.

    Args:
        kinds: {name of an argument: its check}. The check of ``x`` also applies to the examples of a ``batch``.
    """
    everywhere = {"n": count, "num_samples": whole, "steps": whole, "generator": generator} | kinds
    examples = kinds.get("x")
    if isinstance(examples, Examples):
        everywhere["batch"] = examples.of_batch

    def decorate(cls: type[C]) -> type[C]:
        hooks = {f"on_{stage}_batch_start": stage == "train" for stage in ("train", "validation", "test")}
        own_hooks = {name: vars(cls).get(name) for name in hooks}
        for name, method in list(vars(cls).items()):
            if isinstance(method, FunctionType) and not name.startswith("_"):
                own = vars(method).get("kinds")
                plain = method if own is None else vars(method)["__wrapped__"]
                only_size = {"batch": batch_of_any_shape} if name == "noise" and isinstance(examples, Examples) else {}
                setattr(cls, name, takes(**(everywhere | only_size | (own or {})))(plain))
        if isinstance(examples, Examples):
            for name, of_a_run in hooks.items():
                setattr(cls, name, _look_at_first(examples, of_a_run, own_hooks[name]))
            if "predict_step" not in vars(cls):
                setattr(cls, "predict_step", _predict(examples))  # noqa: B010, mypy knows no such attribute
        return cls

    return decorate


def _look_at_first(examples: "Examples", of_a_run: bool, then: Callable | None) -> Callable:
    """Return a Lightning hook that checks the values of the first batch.

    Args:
        examples: the check of the examples.
        of_a_run: True checks only the first batch of a run, and also all training examples of a datamodule with
            ``splits``. False checks the first batch of each pass over the data.
        then: the model's own hook, which is called after the check, or None.
    """

    def look(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and not (of_a_run and self.trainer.fit_loop.total_batch_idx):
            x, *rest = examples.of_batch(self, "batch", batch)
            examples.check_values(self, "batch", x)
            _check_classes(self, rest)
            if of_a_run and isinstance(data := self.trainer.datamodule, SplitData):
                images, *rest = data.splits["train"]
                if isinstance(images, Tensor) and images.is_floating_point():  # all values of bytes are allowed
                    examples.check_values(self, "batch", images)
                _check_classes(self, [labels for labels in rest if labels is not None])
        if then is not None:
            then(self, batch, batch_idx)

    return look


def _predict(examples: "Examples") -> Callable:
    """Return the method ``predict_step``, which ``trainer.predict`` calls for each batch.

    It returns ``forward`` of the examples, and of the labels if ``forward`` needs them. A model without ``forward``
    returns its features, from ``transform``.
    """

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        batch = examples.of_batch(self, "batch", batch)
        if isinstance(self, Features):
            return self.transform(batch[0])
        kind = type(self)
        needed = list(inspect.signature(kind.forward).parameters) if "forward" in vars(kind) else []
        if needed == ["self", "x"]:
            return self(batch[0])
        if needed == ["self", "x", "y"]:
            return self(batch[0], labels_in(batch, self))
        raise UserError(
            f"{kind.__name__} predicts nothing from images alone: call sample(n) or another method instead of "
            "trainer.predict"
        )

    return predict_step


def _check_classes(model: Any, rest: Sequence[Tensor]) -> None:
    """Check the labels, if the model has classes. ``rest`` holds the labels of a batch, or is empty without labels."""
    if rest and (classes := model.hparams.get("num_classes")) is not None:
        as_labels(rest[0], len(rest[0]), classes, model.device)


# Checks for each kind of argument.


class Examples(NamedTuple):
    """Check that examples (B, ...) have the model's shape. Return them in float32, or in float64 for a float64 model.

    Attributes:
        values: allowed values. ``data`` allows images in [0, 1], one-hot sequences and finite points. ``observed``
            allows images in [0, 1], or any finite numbers if the likelihood is Gaussian. ``networks`` allows images in
            [-1, 1], which the networks of a GAN receive. ``noisy`` allows any finite numbers, such as noisy images.
            ``pixels`` allows numbers in [0, 1]. ``states`` allows the same for binary units, and any finite numbers for
            Gaussian units.
        leading: True allows any number of axes before the shape. False requires exactly one.
        any_shape: whether examples may have another shape with as many numbers, such as vectors of pixels.
    """

    values: str = "data"
    leading: bool = False
    any_shape: bool = False

    def __call__(self, model: Any, name: str, x: Any, arguments: Mapping[str, Any] | None = None) -> Tensor:
        x = as_examples(name, x, self._shape(model), floating(model), self.leading)
        self.check_values(model, name, x)
        return x

    def check_values(self, model: Any, name: str, x: Tensor) -> None:
        """Raise UserError if ``x`` contains values that ``values`` does not allow."""
        shape = shape_of(model)
        pixels = self.values in ("pixels", "states") or len(shape) == 3
        option = {"observed": "likelihood", "states": "visible"}.get(self.values)
        anywhere = self.values == "noisy" or str(model.hparams.get(option)).startswith("gaussian")
        if pixels and not anywhere:
            check_pixels(x, -1 if self.values == "networks" else 0)
        elif self.values == "data" and len(shape) == 2:
            check_one_hot(name, x)  # not for "networks", because the networks of a GAN also accept relaxed sequences
        else:
            check_finite(name, x)

    def of_batch(self, model: Any, name: str, batch: Any, arguments: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the batch as a list: the examples, then the labels if any. Only shapes and dtypes are checked."""
        x, *rest = as_batch(batch)
        x = as_examples("the examples of a batch", x, self._shape(model), floating(model))
        if not len(x):
            raise UserError(f"the batch has no examples, its shape is {tuple(x.shape)}: give at least one example")
        return [x, *rest]

    def _shape(self, model: Any) -> tuple[int, ...] | int:
        return math.prod(shape_of(model)) if self.any_shape else shape_of(model)


def batch_of_any_shape(model: Any, name: str, batch: Any, arguments: Mapping[str, Any]) -> list[Any]:
    """Return the batch as a list. Shapes are not checked, because ``noise`` uses only the size of the batch."""
    return as_batch(batch)


def labels_in(batch: Sequence[Any], model: Any) -> Tensor:
    """Return the labels of a batch.

    Raises:
        UserError: if the batch has no labels.
    """
    if len(batch) < 2:
        raise UserError(
            f"the batch has only x, and {type(model).__name__} needs labels: give a batch (x, y), or a dictionary with "
            f"one of the keys {', '.join(LABEL_KEYS)}"
        )
    return batch[1]


def optional_labels(batch: Sequence[Any], model: Any) -> Tensor | None:
    """Return the labels of a batch. Return None if the model was trained without labels.

    Raises:
        UserError: if the model needs labels and the batch has none.
    """
    return None if model.hparams.num_classes is None else labels_in(batch, model)


def shape_of(model: Any) -> tuple[int, ...]:
    """Return the shape of one example."""
    return tuple(model.hparams.get("shape", IMAGE))


def floating(model: Any) -> torch.dtype:
    """Return the dtype of the model's data: float64 if the weights are float64, and float32 if not.

    Models in bfloat16 or float16 also receive float32. In bfloat16, some of the 256 grey values would become equal.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.promote_types(dtype, torch.float32)


def numbers(
    shape: Callable[[Any], tuple[int, ...]], leading: bool = True, fractions: Callable[[Any], bool] = lambda _: False
) -> Kind:
    """Return a check for finite numbers.

    Args:
        shape: model -> shape of one example.
        leading: True allows any number of axes before the shape. False requires exactly one.
        fractions: model -> whether the numbers must be in [0, 1].
    """

    def check(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
        x = as_examples(name, x, shape(model), floating(model), leading)
        check_finite(name, x, *((0, 1) if fractions(model) else ()))
        return x

    return check


def positive(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Check positive numbers, one for each example, (B,)."""
    x = as_examples(name, x, (), floating(model))
    check_one_for_each(name, x, arguments)
    check_finite(name, x, 1e-30, math.inf)
    return x


def check_one_for_each(name: str, x: Tensor, arguments: Mapping[str, Any]) -> None:
    """Raise UserError unless ``x`` has one row for each example in the other arguments."""
    n = number_of_examples(name, arguments)
    if len(x) != n:
        raise UserError(f"{name} must have one number for each of {n} examples; got {tuple(x.shape)}")


def number_of_examples(name: str, arguments: Mapping[str, Any]) -> int:
    """Return the number of examples: the length of the first tensor among the arguments other than ``name``."""
    return next(len(value) for key, value in arguments.items() if isinstance(value, Tensor) and key != name)


def grey_images(model: Any, name: str, x: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Check a set of at least one image of 256 grey values, (N, C, H, W), uint8."""
    shape = shape_of(model)
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or tuple(x.shape[1:]) != shape or not len(x):
        wanted = f"(N, {', '.join(map(str, shape))})"
        got = f"a tensor of {x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{name} must be images {wanted} of grey values in torch.uint8, N >= 1; got {got}")
    return x


def labels(model: Any, name: str, y: Any, arguments: Mapping[str, Any]) -> Tensor | None:
    """Check labels, (B,), of the examples in the other arguments.

    In methods with data ``x``, the label must be below ``num_classes``. These methods ignore ``y`` if the model was
    trained without labels. In other methods, the check is :func:`network_labels`.
    """
    classes = model.hparams.num_classes
    if "x" not in arguments:
        return network_labels(model, name, y, arguments)
    return None if classes is None else as_labels(y, number_of_examples(name, arguments), classes, model.device)


def network_labels(model: Any, name: str, y: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Check labels, (B,), of noisy examples. The label ``num_classes`` is also allowed and means "no label"."""
    classes = model.hparams.num_classes
    if classes is None:
        raise UserError(f"this model was trained without labels (num_classes=null): leave out {name}")
    return as_labels(y, number_of_examples(name, arguments), classes + 1, model.device)


def count(model: Any, name: str, n: Any, arguments: Mapping[str, Any]) -> int:
    """Check a number of samples. It must be an integer >= 0, and all samples must fit into one tensor."""
    if isinstance(n, Integral) and not isinstance(n, bool):
        n = int(n)
    check_integer(name, n, least=0)
    most = MOST_NUMBERS // math.prod(shape_of(model))
    if n > most:
        raise UserError(f"{name} must be at most {most:,} per call, got {n:,}: draw the samples in several calls")
    return n


def whole(model: Any, name: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    """Check an integer >= 1."""
    check_integer(name, value)
    return value


def generator(model: Any, name: str, value: Any, arguments: Mapping[str, Any]) -> torch.Generator:
    """Check a torch.Generator."""
    if not isinstance(value, torch.Generator):
        raise UserError(
            f"{name} must be None or a torch.Generator, such as torch.Generator().manual_seed(0); got {value!r}"
        )
    return value


def integers_below(limit: Callable[[Any], int], axes: int = 1) -> Kind:
    """Return a check for a tensor of integers from 0 to ``limit(model)`` - 1, such as steps or words.

    Args:
        limit: model -> the first integer that is too large.
        axes: number of axes of the tensor; 0 allows any number.
    """

    def check(model: Any, name: str, t: Any, arguments: Mapping[str, Any]) -> Tensor:
        plain = isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
        if not plain or axes not in (0, t.ndim):
            got = f"a tensor of {t.dtype}, {tuple(t.shape)}" if isinstance(t, Tensor) else f"{t!r:.80}"
            shape = ", (B,)" if axes == 1 else ""
            raise UserError(f"{name} must be a tensor of integers{shape}; got {got}")
        if axes == 1:
            check_one_for_each(name, t, arguments)
        outside = t[(t < 0) | (t >= limit(model))]
        if len(outside):
            raise UserError(f"{name} must lie between 0 and {limit(model) - 1}, got {outside[0].item()}")
        return t.long()

    return check


def rows_of_text(model: Any, name: str, batch: Any, arguments: Mapping[str, Any]) -> list[Tensor]:
    """Check a batch of text, and return it as rows: words (B, window + 32 + window), and the reach of centres, (B, 32).

    The reach is the number of neighbours on each side. A batch of pairs of words, (B,) and (B,), becomes rows with
    these pairs. Only shapes and dtypes are checked.
    """
    rows = list(batch) if isinstance(batch, list | tuple) else [batch]
    whole = all(isinstance(t, Tensor) and not t.is_floating_point() for t in rows)
    pairs = whole and len(rows) == 2 and rows[0].ndim == rows[1].ndim == 1 and len(rows[0]) == len(rows[1]) > 0
    wide = whole and len(rows) == 2 and rows[0].ndim == rows[1].ndim == 2 and len(rows[0]) == len(rows[1])
    if not pairs and not (wide and rows[0].shape[1] > rows[1].shape[1]):
        got = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in rows]
        raise UserError(
            f"a batch of text has the shapes {got}: give integers, words (B, window + 32 + window) and reach (B, 32), "
            "or pairs of words, (B,) and (B,)"
        )
    return as_rows(rows)


images = data = Examples()
pixels, states = Examples("pixels", any_shape=True), Examples("states", any_shape=True)
observed = Examples("observed", leading=True)  # (..., C, H, W)
seen_by_networks = Examples("networks")
noisy = Examples("noisy")
