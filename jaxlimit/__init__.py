"""How sparse can a trained network be pruned? Hessian spectra and convex-geometry limits in JAX."""

__version__ = "0.1.0"
