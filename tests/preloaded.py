"""Imports of most runs. The fork server of the tests imports this module once, so that its children need not.

The first composition of a configuration builds the tables of Hydra's parser. No tensor is computed here, because a
process that is forked must have one thread.
"""

import importlib

import fsspec.implementations.chained
import matplotlib.backends.backend_agg
import sklearn.datasets.data
import sklearn.datasets.descr
import sklearn.linear_model  # noqa: F401
import torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook
import torch.utils.serialization.config  # noqa: F401
from helpers import TINY, config
from PIL import Image

import zoo
import zoo.callbacks.run_end
import zoo.datamodules
import zoo.evaluation.distances
import zoo.evaluation.protocol
import zoo.hub.initialising  # noqa: F401

for path in zoo.MODELS.values():
    importlib.import_module(path.rpartition(".")[0])
Image.init()
config("/", *TINY["vae"])
