"""The whole chain on one trained network.

Names are loaded on first use: the command line reads its settings without the numerics.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlimit.studies.data import HostBatches, count_examples, held_batches
    from jaxlimit.studies.estimation import (
        LimitEstimate,
        LimitSettings,
        check_deterministic,
        estimate_limit,
    )
    from jaxlimit.studies.layers import LayerStudy, layer_limits
    from jaxlimit.studies.pruning_to import PrunedTo, prune_to
    from jaxlimit.studies.result import Study
    from jaxlimit.studies.run import study, study_task
    from jaxlimit.studies.settings import Budget, StudySettings
    from jaxlimit.studies.task import Task, check_task

__all__ = [
    "Budget",
    "HostBatches",
    "LayerStudy",
    "LimitEstimate",
    "LimitSettings",
    "PrunedTo",
    "Study",
    "StudySettings",
    "Task",
    "check_deterministic",
    "check_task",
    "count_examples",
    "estimate_limit",
    "held_batches",
    "layer_limits",
    "prune_to",
    "study",
    "study_task",
]

_HOMES = {
    "data": ("HostBatches", "count_examples", "held_batches"),
    "estimation": ("LimitEstimate", "LimitSettings", "check_deterministic", "estimate_limit"),
    "layers": ("LayerStudy", "layer_limits"),
    "pruning_to": ("PrunedTo", "prune_to"),
    "result": ("Study",),
    "run": ("study", "study_task"),
    "settings": ("Budget", "StudySettings"),
    "task": ("Task", "check_task"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"jaxlimit.studies.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'jaxlimit.studies' has no attribute {name!r}")
