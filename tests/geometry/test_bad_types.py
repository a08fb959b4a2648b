"""Strings, None, complex numbers, lists and Booleans, in every argument of every function."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from jaxlimit import geometry, limits, spectrum

BAD = {"string": "1", "None": None, "complex": 1j, "list": [0.5, 0.5], "Boolean": True}
WEIGHTS = jnp.array([3.0, 1.0])
MEASURE = spectrum.exact_measure(jnp.array([1.0, 2.0]))
HALF = jnp.array([0.5, 0.5])

CALLS = [
    (geometry.statistical_dimension_subspace, {"k": 2.0}),
    (geometry.statistical_dimension_orthant, {"dim": 2.0}),
    (geometry.statistical_dimension_psd_cone, {"n": 2.0}),
    (geometry.statistical_dimension_circular_cone, {"dim": 4.0, "half_angle": 0.5}),
    (geometry.statistical_dimension_l1_descent_cone, {"dim": 4.0, "num_nonzero": 2.0}),
    (geometry.statistical_dimension_ellipsoid_cone, {"semi_axes": WEIGHTS, "distance": 4.0}),
    (geometry.ellipsoid_section_threshold, {"semi_axes": WEIGHTS, "distance": 4.0}),
    (geometry.intrinsic_volumes_subspace, {"k": 2.0, "dim": 3}),
    (geometry.intrinsic_volumes_orthant, {"dim": 3}),
    (geometry.intrinsic_volumes_circular_cone, {"half_angle": 0.5, "dim": 3}),
    (
        geometry.kinematic_probability,
        {"intrinsic_volumes_a": HALF, "intrinsic_volumes_b": HALF},
    ),
    (
        geometry.kinematic_band,
        {"statistical_dimension": 2.0, "dim": 4.0, "confidence": 0.9, "method": "refined"},
    ),
    (geometry.gaussian_width_ball, {"dim": 4.0, "radius": 1.0}),
    (geometry.gaussian_width_box, {"half_widths": WEIGHTS}),
    (geometry.gaussian_width_ellipsoid, {"semi_axes": WEIGHTS}),
    (geometry.gaussian_width_cross_polytope, {"dim": 4.0, "radius": 1.0}),
    (geometry.gaussian_width_l1_l2_ball, {"dim": 4.0, "l1_radius": 1.0, "l2_radius": 1.0}),
    (geometry.ball_support, {"radius": 1.0}),
    (geometry.box_support, {"half_widths": WEIGHTS}),
    (geometry.ellipsoid_support, {"semi_axes": WEIGHTS}),
    (geometry.cross_polytope_support, {"radius": 1.0}),
    (geometry.finite_set_support, {"points": jnp.eye(2)}),
    (geometry.l1_l2_ball_support, {"l1_radius": 1.0, "l2_radius": 1.0}),
    (geometry.subspace_projection, {"basis": jnp.eye(2)}),
    (geometry.circular_cone_projection, {"half_angle": 0.5}),
    (geometry.psd_cone_projection, {"n": 2}),
    (geometry.l1_descent_cone_projection, {"signs": jnp.array([1.0, 0.0])}),
    (
        geometry.ellipsoid_cone_projection,
        {"semi_axes": jnp.ones(2), "viewpoint": jnp.array([3.0, 0.0])},
    ),
    (limits.ridge, {"radius": 1.0, "epsilon": 1.0}),
    (limits.curvature_share, {"eigenvalues": WEIGHTS, "ridge": 1.0, "negative": "abs"}),
    (
        limits.lower_bound,
        {"measure": MEASURE, "radius": 1.0, "epsilon": 1.0, "negative": "abs"},
    ),
    (limits.upper_bound, {"removed_measure": MEASURE, "radius": 1.0, "epsilon": 1.0, "dim": 4}),
    (limits.gap, {"removed_measure": MEASURE, "radius": 1.0, "epsilon": 1.0, "dim": 4}),
    (limits.trace_bound, {"trace": 1.0, "radius": 1.0, "epsilon": 1.0, "dim": 4}),
    (limits.pruning_limit, {"measure": MEASURE, "weights": WEIGHTS, "epsilon": 1.0}),
    (
        limits.random_subspace_threshold,
        {"measure": MEASURE, "weights": WEIGHTS, "epsilon": 1.0, "offset": "random"},
    ),
    (limits.key_factors, {"measure": MEASURE, "weights": WEIGHTS, "epsilon": 1.0}),
    (
        limits.sensitivity,
        {
            "measure": MEASURE,
            "limit": limits.pruning_limit(MEASURE, WEIGHTS, 1.0),
            "epsilon": 1.0,
            "negative": "abs",
        },
    ),
    (limits.quadratic_limit, {"hessian": jnp.eye(2), "weights": WEIGHTS, "epsilon": 1.0}),
]


@pytest.mark.parametrize(
    ("function", "good", "name"),
    [(function, good, name) for function, good in CALLS for name in good],
    ids=lambda x: x.__name__ if inspect.isfunction(x) else x if isinstance(x, str) else "",
)
def test_values_of_other_types_are_refused_by_name(function, good, name):
    for kind, bad in BAD.items():
        if name == "weights" and kind == "list" and function is not limits.quadratic_limit:
            continue  # a pytree of two numbers
        with pytest.raises((TypeError, ValueError), match=rf"^{name}(\[0\])? must"):
            function(**good | {name: bad})


def test_every_public_function_is_called():
    exempt = {"polar_projection", "statistical_dimension", "gaussian_width"}  # of functions
    called = {function.__name__ for function, _ in CALLS}
    assert {*geometry.__all__} - called == exempt


@pytest.mark.parametrize("key", [0, None, jax.random.PRNGKey(0)], ids=["int", "None", "legacy"])
def test_keys_of_other_types_are_refused_by_name(key):
    how = {"dim": 2, "num_samples": 4}
    for call in (
        lambda: geometry.statistical_dimension(lambda x: x, key, **how),
        lambda: geometry.gaussian_width(geometry.ball_support(1.0), key, **how),
    ):
        with pytest.raises(TypeError, match=r"^key must come from jax\.random\.key"):
            call()
