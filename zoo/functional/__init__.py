"""Equations as functions that need no network.

The modules cover densities, posteriors, clusters, diffusion, Langevin dynamics, Boltzmann machines and contrastive
losses.
"""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.functional", "zoo.functional.densities")
