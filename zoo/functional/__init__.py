"""Mathematics without a network: densities, posteriors, clusters, diffusion, Langevin, Boltzmann, contrast."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.functional", "zoo.functional.densities")
