"""The import directions of the package: an import against its layers fails here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxlimit"
OUTSIDE = {"experiments", "benchmarks", "tests"}

# Public rooms, each with the public rooms that it may import.
LEAVES = (
    "curvature",
    "datasets",
    "distributed",
    "formats",
    "geometry",
    "lanczos",
    "models",
    "traces",
)
LAYERS: dict[str, set[str]] = {
    **{name: set() for name in LEAVES},
    "adapters": set(),
    "spectrum": {"lanczos"},
    "limits": {"lanczos", "spectrum"},
    "training": {"curvature"},
    "pruning": {"curvature", "lanczos", "limits", "models", "spectrum", "training"},
    "planning": {"curvature", "lanczos"},
}
NUMERICS = {*LAYERS, "studies"}
FIGURES = {"plotting", "lab", "reports"}
# A result knows how to show itself: it asks for its report when it is shown.
DOORS = {("jaxlimit.studies.result", "jaxlimit.reports")}

# The floors of the frame, from the ground up: a module imports from lower floors alone.
FLOORS = (
    {"digests"},
    {"checks", "memory", "files", "scale", "summaries", "extras", "moved", "convolutions"},
    {"estimate", "programs", "magnitudes", "locks", "sharding", "functions", "host", "principal"},
    {"batches", "weights", "mesh_product", "checkpoints"},
    {"shares", "origin", "losses", "masks"},
    {"operator"},
    {"projection"},
)


def violations(module: str, imported: str) -> list[str]:
    """Say which rules it breaks that the file of `module` imports `imported`, dotted names both."""
    source, target = _part(module), _part(imported)
    broken = []
    if imported.split(".")[0] == "matplotlib" and source not in {"plotting", "lab"}:
        broken.append("only plotting and lab import matplotlib")
    if imported.split(".")[0] in OUTSIDE:
        broken.append("the package does not import what stands outside it")
    if target is None or (module, imported) in DOORS:
        return broken
    if source == target == "_core":
        return broken + _floor_violations(module, imported)
    if target in (source, "_core"):
        return broken
    if source == "_core":
        broken.append("the frame imports no room")
    elif target in FIGURES and source in NUMERICS:
        broken.append("no numerics import figures or the lab")
    elif target == "lab" and source in ("plotting", "reports"):
        broken.append("plotting draws the library's own results and knows nothing of the lab")
    elif target == "reports" and source == "plotting":
        broken.append("reports hold figures, not figures reports")
    elif source not in {"__init__", "studies", *FIGURES, "cli"}:
        if source not in LAYERS:
            broken.append(f"{source} has no place in LAYERS yet")
        elif target not in LAYERS[source]:
            broken.append(f"{source} may import only {sorted(LAYERS[source])} and the frame")
    return broken


def _floor_violations(module: str, imported: str) -> list[str]:
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    source, target = (
        name.split(".")[2] if name.count(".") > 1 else None for name in (module, imported)
    )
    if source is None or target is None or source == target:
        return []
    if source not in floors or target not in floors:
        return [f"{source} or {target} has no floor in FLOORS yet"]
    if floors[target] >= floors[source]:
        return [f"{source} is on floor {floors[source]} and {target} on floor {floors[target]}"]
    return []


def _part(module: str) -> str | None:
    """Return the top-level part a dotted name belongs to; None outside the package."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        return None
    return parts[0] if parts else "__init__"


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
            elif origin == f"{PACKAGE}._core":
                yield from (f"{origin}.{alias.name}" for alias in node.names)
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
        ("jaxlimit.limits", "jaxlimit.pruning"),
        ("jaxlimit.models.mlp", "jaxlimit.training.loop"),
        ("jaxlimit.limits", "jaxlimit.studies"),
        ("jaxlimit.limits", "jaxlimit.__init__"),
        ("jaxlimit._core.weights", "jaxlimit.curvature"),
        ("jaxlimit._core.checks", "jaxlimit._core.weights"),
        ("jaxlimit._core.batches", "jaxlimit._core.shares"),
        ("jaxlimit._core.newcomer", "jaxlimit._core.checks"),
        ("jaxlimit.traces", "matplotlib.pyplot"),
        ("jaxlimit.studies.estimation", "jaxlimit.plotting"),
        ("jaxlimit.studies.estimation", "jaxlimit.lab.reporting"),
        ("jaxlimit.plotting", "jaxlimit.lab"),
        ("jaxlimit.studies.estimation", "experiments.common"),
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
        ("jaxlimit.pruning.lomp", "jaxlimit.training"),
        ("jaxlimit.curvature.operators", "jaxlimit._core.batches"),
        ("jaxlimit._core.weights", "jaxlimit._core.checks"),
        ("jaxlimit.studies.estimation", "jaxlimit.curvature"),
        ("jaxlimit.plotting", "matplotlib.pyplot"),
        ("jaxlimit.lab.figures.growth", "matplotlib.pyplot"),
        ("jaxlimit", "jaxlimit.studies.estimation"),
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
        ("from jaxlimit._core import sharding", "jaxlimit._core.sharding"),
        ("from jaxlimit.spectrum import density", "jaxlimit.spectrum"),
        ("import jaxlimit.spectrum as s", "jaxlimit.spectrum"),
        ("from ..spectrum import density", "jaxlimit.spectrum"),
        ("from .. import spectrum", "jaxlimit.spectrum"),
        ("def late():\n    import matplotlib.pyplot", "matplotlib.pyplot"),
    ],
)
def test_every_form_of_import_is_read(line, imported):
    assert imported in set(imports(line, "jaxlimit.models.mlp", is_package=False))


def test_the_picture_of_the_layers_shows_every_room_and_floor():
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    rooms = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.name[0] not in "_."}
    lines = [set(line.split()) for line in picture.splitlines()]
    missing = {room for room in rooms - {"py"} if not any(room in line for line in lines)}
    assert not missing
    for floor in FLOORS:
        assert any(floor <= line for line in lines), f"docs/architecture.md lacks the floor {floor}"
