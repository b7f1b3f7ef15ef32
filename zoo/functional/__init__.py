"""Mathematics without parameters: densities, posteriors, importance weights, diffusion, Langevin, Boltzmann."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.functional", "zoo.functional.densities")
