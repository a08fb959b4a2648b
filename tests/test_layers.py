"""The import directions of the package: an import against its layers fails here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxlimit"
OUTSIDE = {"experiments", "benchmarks", "tests"}

# Public modules, each with the public modules it may import.
LEAVES = (
    "curvature", "datasets", "distributed", "geometry", "lanczos", "models", "pruning", "reporting",
    "traces", "training",
)  # fmt: skip
LAYERS: dict[str, set[str]] = {
    **{name: set() for name in LEAVES},
    "operators": set(),
    "spectrum": {"lanczos"},
    "limits": {"lanczos", "spectrum"},
    "planning": {"curvature", "lanczos"},
}
COMPOSING = {"__init__", "estimation", "lomp"}
FIGURES = "plotting"


def violations(module: str, imported: str) -> list[str]:
    """Say which rules it breaks that the file of `module` imports `imported`, dotted names both.

    The underscore modules of the package are its frame: any module may import them, and they may
    import one another, but no public module.
    """
    source, target = _part(module), _part(imported)
    broken = []
    if imported.split(".")[0] == "matplotlib" and not source.startswith(FIGURES):
        broken.append("only plotting imports matplotlib")
    if imported.split(".")[0] in OUTSIDE:
        broken.append("the package does not import what stands outside it")
    if target is None or target in (source, "_frame"):
        return broken
    if source == "_frame":
        broken.append("an underscore module imports no public module")
    elif target.startswith(FIGURES) and not source.startswith(FIGURES):
        broken.append("nothing imports plotting")
    elif source not in COMPOSING and not source.startswith(FIGURES):
        if source not in LAYERS:
            broken.append(f"{source} has no place in LAYERS yet")
        elif target not in LAYERS[source]:
            broken.append(f"{source} may import only {sorted(LAYERS[source])} and the frame")
    return broken


def _part(module: str) -> str | None:
    """Return the top-level part a dotted name belongs to; None outside the package."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        return None
    if not parts or parts == ["__init__"]:
        return "__init__"
    return "_frame" if parts[0].startswith("_") else parts[0]


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it, relative ones resolved."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin == PACKAGE:
                yield from (f"{PACKAGE}.{_module_or_root(alias.name)}" for alias in node.names)
            else:
                yield origin


def _module_or_root(name: str) -> str:
    """Return `name` if it is a module of the package, and `__init__` if a name defined there."""
    folder = ROOT / PACKAGE
    is_module = (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
    return name if is_module else "__init__"


def package_files() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_runs_against_the_layers():
    found = [
        f"{module_name(path)} imports {imported}: {rule}"
        for path in package_files()
        for imported in imports(path.read_text(), module_name(path), path.name == "__init__.py")
        for rule in violations(module_name(path), imported)
    ]
    assert not found, "\n".join(found)


def test_experiments_leave_figures_to_plotting():
    found = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "experiments").rglob("*.py")
        for imported in imports(path.read_text(), path.stem, is_package=False)
        if imported.split(".")[0] == "matplotlib"
    ]
    assert not found


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("jaxlimit.lanczos", "jaxlimit.spectrum"),
        ("jaxlimit.spectrum", "jaxlimit.limits"),
        ("jaxlimit.curvature.operators", "jaxlimit.lanczos"),
        ("jaxlimit.pruning", "jaxlimit.curvature"),
        ("jaxlimit.models.mlp", "jaxlimit.training.loop"),
        ("jaxlimit.limits", "jaxlimit.estimation"),
        ("jaxlimit.limits", "jaxlimit.__init__"),
        ("jaxlimit._weights", "jaxlimit.curvature"),
        ("jaxlimit.traces", "matplotlib.pyplot"),
        ("jaxlimit.estimation", "jaxlimit.plotting"),
        ("jaxlimit.estimation", "experiments.common"),
        ("jaxlimit.newcomer", "jaxlimit.lanczos"),
    ],
)
def test_the_rules_refuse(module, imported):
    assert violations(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("jaxlimit.spectrum", "jaxlimit.lanczos"),
        ("jaxlimit.limits.bounds", "jaxlimit.spectrum"),
        ("jaxlimit.limits.bounds", "jaxlimit.limits._crossing"),
        ("jaxlimit.curvature.operators", "jaxlimit._batches"),
        ("jaxlimit._weights", "jaxlimit._checks"),
        ("jaxlimit.estimation", "jaxlimit.curvature"),
        ("jaxlimit.plotting", "matplotlib.pyplot"),
        ("jaxlimit", "jaxlimit.estimation"),
        ("jaxlimit.geometry.cones", "jax.numpy"),
    ],
)
def test_the_rules_allow(module, imported):
    assert not violations(module, imported)


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from jaxlimit import spectrum", "jaxlimit.spectrum"),
        ("from jaxlimit import flatten_weights", "jaxlimit.__init__"),
        ("from jaxlimit.spectrum import density", "jaxlimit.spectrum"),
        ("import jaxlimit.spectrum as s", "jaxlimit.spectrum"),
        ("from ..spectrum import density", "jaxlimit.spectrum"),
        ("from .. import spectrum", "jaxlimit.spectrum"),
        ("def late():\n    import matplotlib.pyplot", "matplotlib.pyplot"),
    ],
)
def test_every_form_of_import_is_read(line, imported):
    assert imported in set(imports(line, "jaxlimit.models.mlp", is_package=False))
