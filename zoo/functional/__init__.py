"""The equations of the models as functions, which take networks as arguments.

The modules cover densities, posteriors, clusters, diffusion, Langevin dynamics, Boltzmann machines and contrastive
losses.
"""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.functional", "zoo.functional.densities")
