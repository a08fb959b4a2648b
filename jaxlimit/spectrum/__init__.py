"""The spectrum of a symmetric operator as a measure: stochastic Lanczos quadrature and its errors.

A probe u, uniform on the unit sphere, sees the spectrum as the measure Σ (uᵀvᵢ)² δ(λᵢ), whose mean
is the spectral distribution (1/D) Σ δ(λᵢ). Lanczos from u gives that measure's moments, and Gauss
quadrature turns them into (1/D) tr f(H) for any f. Two errors are kept apart throughout: averaging
over probes reduces one, only more steps reduce the other.
"""

from jaxlimit.spectrum.blocks import block_measures
from jaxlimit.spectrum.densities import density, log_density
from jaxlimit.spectrum.functions import psd_bracket, trace_bracket, trace_function
from jaxlimit.spectrum.measure import (
    PinnedRules,
    SpectralMeasure,
    exact_measure,
    measure_from,
    pinned_measure,
    truncate,
)
from jaxlimit.spectrum.monitor import Monitor
from jaxlimit.spectrum.persistence import load, save
from jaxlimit.spectrum.probes import spectral_measure
from jaxlimit.spectrum.recurrences import probe
from jaxlimit.spectrum.staged import TraceRun, run_probes, trace_within

__all__ = [
    "Monitor",
    "PinnedRules",
    "SpectralMeasure",
    "TraceRun",
    "block_measures",
    "density",
    "exact_measure",
    "load",
    "log_density",
    "measure_from",
    "pinned_measure",
    "probe",
    "psd_bracket",
    "run_probes",
    "save",
    "spectral_measure",
    "trace_bracket",
    "trace_function",
    "trace_within",
    "truncate",
]
