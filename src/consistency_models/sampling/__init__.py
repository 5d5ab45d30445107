"""From noise to images: solvers of the probability-flow ODE, samplers, the generator, and zero-shot editing."""
