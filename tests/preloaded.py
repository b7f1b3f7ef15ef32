"""Imports of most runs. The fork server of the tests imports this module once, so that its children need not.

The first composition of a configuration builds the tables of Hydra's parser. No tensor is computed here, because a
process that is forked must have one thread.
"""

import importlib

from helpers import TINY, config
from PIL import Image

import zoo

MODULES = [path.rpartition(".")[0] for path in zoo.MODELS.values()]
MODULES += ["zoo.callbacks.run_end", "zoo.datamodules", "zoo.evaluation.protocol", "zoo.hub.initialising"]
MODULES += ["fsspec.implementations.chained", "matplotlib.backends.backend_agg", "sklearn.linear_model"]
MODULES += ["sklearn.datasets.data", "sklearn.datasets.descr", "torch.utils.serialization.config"]
MODULES += ["torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook"]  # of DistributedDataParallel

for name in MODULES:
    importlib.import_module(name)
Image.init()
config("/", *TINY["vae"])
