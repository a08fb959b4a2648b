"""Convex geometry of the limit: statistical dimension, Gaussian width, the kinematic formula.

Cones and sets only; networks do not occur here. Closed forms are elementwise in their arguments and
run under `jit`, `vmap` and `grad` in any floating dtype; the Monte Carlo functions take any
projection or support function.
"""

from jaxlimit.geometry.cones import (
    statistical_dimension_circular_cone,
    statistical_dimension_l1_descent_cone,
    statistical_dimension_orthant,
    statistical_dimension_psd_cone,
    statistical_dimension_subspace,
)
from jaxlimit.geometry.ellipsoid import (
    ellipsoid_section_threshold,
    statistical_dimension_ellipsoid_cone,
)
from jaxlimit.geometry.kinematics import (
    intrinsic_volumes_circular_cone,
    intrinsic_volumes_orthant,
    intrinsic_volumes_subspace,
    kinematic_band,
    kinematic_probability,
)
from jaxlimit.geometry.projections import (
    circular_cone_projection,
    ellipsoid_cone_projection,
    l1_descent_cone_projection,
    polar_projection,
    psd_cone_projection,
    statistical_dimension,
    subspace_projection,
)
from jaxlimit.geometry.supports import (
    ball_support,
    box_support,
    cross_polytope_support,
    ellipsoid_support,
    finite_set_support,
    gaussian_width,
    l1_l2_ball_support,
)
from jaxlimit.geometry.widths import (
    gaussian_width_ball,
    gaussian_width_box,
    gaussian_width_cross_polytope,
    gaussian_width_ellipsoid,
    gaussian_width_l1_l2_ball,
)

__all__ = [
    "ball_support",
    "box_support",
    "circular_cone_projection",
    "cross_polytope_support",
    "ellipsoid_cone_projection",
    "ellipsoid_section_threshold",
    "ellipsoid_support",
    "finite_set_support",
    "gaussian_width",
    "gaussian_width_ball",
    "gaussian_width_box",
    "gaussian_width_cross_polytope",
    "gaussian_width_ellipsoid",
    "gaussian_width_l1_l2_ball",
    "intrinsic_volumes_circular_cone",
    "intrinsic_volumes_orthant",
    "intrinsic_volumes_subspace",
    "kinematic_band",
    "kinematic_probability",
    "l1_descent_cone_projection",
    "l1_l2_ball_support",
    "polar_projection",
    "psd_cone_projection",
    "statistical_dimension",
    "statistical_dimension_circular_cone",
    "statistical_dimension_ellipsoid_cone",
    "statistical_dimension_l1_descent_cone",
    "statistical_dimension_orthant",
    "statistical_dimension_psd_cone",
    "statistical_dimension_subspace",
    "subspace_projection",
]
