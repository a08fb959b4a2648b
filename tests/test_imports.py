"""What importing costs and needs: the numerics load and want none of the extras."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlimit

ROOMS = (
    "adapters",
    "curvature",
    "distributed",
    "geometry",
    "lanczos",
    "limits",
    "planning",
    "pruning",
    "spectrum",
    "studies",
    "traces",
)
EXTRAS = (
    "flax", "optax", "orbax", "matplotlib", "tensorflow_datasets", "sklearn", "cv2", "PIL",
    "array_record", "filelock", "jinja2", "rich", "safetensors", "tyro",
)  # fmt: skip

REFUSE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(jaxlimit.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_loads_nothing_that_it_does_not_need(tmp_path):
    rooms = "".join(f"jaxlimit.{name}\n" for name in ROOMS)
    loaded = run(
        f"import sys, jaxlimit\nassert 'jax' not in sys.modules\n{rooms}"
        "jaxlimit.estimate_limit; jaxlimit.flatten_weights\n"
        "print(*sys.modules)",
        tmp_path,
    )
    assert "jaxlimit.spectrum" in loaded
    # JAX itself loads filelock where there is one.
    unwanted = {*EXTRAS, "scipy.stats", "scipy.optimize", "pandas", "torch"} - {"filelock"}
    assert not unwanted & {*loaded, *(name.split(".")[0] for name in loaded)}


def test_the_numerics_run_without_the_extras(tmp_path):
    code = f"""{REFUSE}
import jax, jax.numpy as jnp, jaxlimit
for name in {ROOMS}:
    getattr(jaxlimit, name)
def loss(params, batch):
    return jnp.mean((batch @ params["kernel"]) ** 2)
H = jaxlimit.curvature.hessian_matvec(loss, {{"kernel": jnp.ones(4)}}, [jnp.eye(4)])
measure = jaxlimit.spectrum.spectral_measure(H, jax.random.key(0), dim=4, num_steps=4)
print(round(float(measure.nodes.max()), 4))
"""
    assert run(code, tmp_path) == ["0.5"]


@pytest.mark.parametrize(
    ("action", "extra"),
    [
        ("import jaxlimit.training", "train"),
        ("import jaxlimit.models", "train"),
        ("import jaxlimit.pruning.lomp", "train"),
        ("import jaxlimit.plotting", "plot"),
        ("from jaxlimit import datasets; datasets.load('digits', 'train')", "data"),
        ("from jaxlimit import datasets; datasets.load('cifar10', 'train')", "data"),
        ("import jaxlimit.datasets.tiny_imagenet", "data"),
        (
            "import jax, jaxlimit; jaxlimit.spectrum.run_probes("
            "lambda v: v, jax.random.key(0), dim=4, num_steps=2, "
            "monitor=jaxlimit.spectrum.Monitor(checkpoint_dir='run'))",
            "train",
        ),
    ],
)
def test_a_missing_extra_is_named(action, extra, tmp_path):
    code = f"""{REFUSE}
try:
    {action}
except ImportError as error:
    print(error)
"""
    assert f"pip install 'jaxlimit[{extra}]'" in " ".join(run(code, tmp_path))
    assert not list(tmp_path.iterdir())
