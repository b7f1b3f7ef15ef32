"""Values that a module logs during an execution of several batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor
from torchmetrics import Metric


class RecordedLogs:
    """The last value of every name that ``module.log`` received during an execution."""

    def __init__(self):
        self.values: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}

    @contextmanager
    def recording(self, module: L.LightningModule, in_graph: bool = False) -> Iterator[None]:
        """Context in which ``module.log`` and ``module.log_dict`` record values.

        Three kinds of values go to Lightning at once: values that it averages over an epoch, metrics, and values that
        are logged with positional options.

        Args:
            module: the LightningModule.
            in_graph: whether a graph is being captured. A graph cannot hold a value that goes to Lightning.

        Raises:
            RuntimeError: if ``in_graph`` and a value must go to Lightning.
        """
        before = {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
        through = module.log

        def log(name: str, value: Any, *args, **kwargs) -> None:
            if args or isinstance(value, Metric) or kwargs.get("on_epoch") or kwargs.get("on_step") is False:
                if in_graph:
                    raise RuntimeError(
                        f"no graph can log {name!r} with on_epoch, on_step=False, a metric or positional options"
                    )
                through(name, value, *args, **kwargs)
                return
            if isinstance(value, Tensor):
                # Results of operations stay as they are. A parameter or a buffer may change before the value is used.
                value = value.detach() if value.grad_fn is not None else value.detach().clone()
            self.values[module._current_fx_name or "", name] = value, kwargs

        def log_dict(dictionary, *args, **kwargs) -> None:
            for name, value in dictionary.items():
                log(name, value, *args, **kwargs)

        vars(module)["log"], vars(module)["log_dict"] = log, log_dict
        try:
            yield
        finally:
            del vars(module)["log"], vars(module)["log_dict"]
            vars(module).update(before)

    def flush(self, module: L.LightningModule) -> None:
        """Log the recorded values in Lightning, in the order in which their names were first logged."""
        recorded, self.values = self.values, {}
        before, connector, log = module._current_fx_name, module.trainer._logger_connector, type(module).log
        for (hook, name), (value, kwargs) in recorded.items():
            # In the first batch of an epoch, Lightning resets the sums of a hook that logs after another hook.
            module._current_fx_name = connector._current_fx = hook
            log(module, name, value, **kwargs)
        module._current_fx_name = before
