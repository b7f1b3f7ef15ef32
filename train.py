"""Train one model of the zoo from a checkout: ``python train.py model=ddpm data=mnist trainer.max_epochs=2``.

The command ``zoo train`` of an installed zoo does the same.
"""

import sys

from zoo.commands.training import build, build_all, run, train

__all__ = ["build", "build_all", "run", "train"]

if __name__ == "__main__":
    run(sys.argv[1:])
