"""Mathematics without parameters: densities, posteriors, importance weights, diffusion, Langevin, Boltzmann."""
