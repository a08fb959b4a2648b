"""Settings and results in a form for TOML and JSON, and back."""

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import jax
import msgspec
import numpy as np

from jaxlimit._core import files
from jaxlimit._core.files import OtherRunError as OtherRunError
from jaxlimit._core.files import read_json as read_json

T = TypeVar("T")


def plain(tree: Any) -> Any:
    """Turn results into a form for JSON; a number that is not finite becomes its name."""
    if hasattr(tree, "_asdict"):
        return plain(tree._asdict())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        return {field.name: plain(getattr(tree, field.name)) for field in fields}
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(tree).tolist())
    if isinstance(tree, float):
        return float(f"{tree:.7g}") if np.isfinite(tree) else str(tree)
    return str(tree) if isinstance(tree, Path) else tree


def without_paths(config: Any) -> dict[str, Any]:
    """Return a script's settings without its paths, which belong to one machine."""
    fields = [field.name for field in dataclasses.fields(config)]
    values = {name: getattr(config, name) for name in fields}
    return {name: plain(value) for name, value in values.items() if not isinstance(value, Path)}


def write_json(path: Path, content: Any) -> None:
    """Write results as JSON with a digest, whole or not at all; `read_json` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, plain(content))


def build(cls: type[T], values: dict[str, Any], where: str, *, strict: bool = True) -> T:
    """Make a dataclass from the content of TOML or JSON, the inverse of `plain`.

    Args:
        cls: the dataclass; its fields may be dataclasses again.
        values: its fields by name.
        where: their place, for the messages.
        strict: refuse unknown names, and numbers that are written as text ("nan").

    Raises:
        TypeError: if a value is not of its field's type.
        ValueError: if a name is no field (names the nearest), a field is missing, or the dataclass
            itself refuses a value.
    """
    if strict:
        _check_names(cls, values, where)
    try:
        return msgspec.convert(values, cls, strict=strict, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise _explain(error, cls, values, where) from error


def _check_names(cls: Any, values: dict[str, Any], where: str) -> None:
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, _names(cls), n=1, cutoff=0.0)[0]
            raise ValueError(f"{where}: unknown setting {name!r}, did you mean {near!r}?")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            _check_names(hints[name], value, where)


def _names(cls: Any) -> list[str]:
    """List the names of the fields, those of nested dataclasses too."""
    below = [hint for hint in get_type_hints(cls).values() if dataclasses.is_dataclass(hint)]
    return [*get_type_hints(cls), *(name for hint in below for name in _names(hint))]


def _path(hint: type, value: Any) -> Any:
    """Convert values of types that msgspec lacks."""
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"Expected `{hint.__name__}`, got `{type(value).__name__}`")


def _explain(error: Exception, cls: Any, values: Any, where: str) -> Exception:
    """Say what a field must be, and what was given."""
    found = re.search(r" - at `\$((?:\.\w+)+)", str(error))
    missing = "missing required field" in str(error)
    if isinstance(error.__cause__, ValueError) or missing or found is None:
        return ValueError(f"{where}: {error.__cause__ or error}")
    hint, name = cls, ""
    for name in found[1].strip(".").split("."):
        if not isinstance(values, dict) or name not in get_type_hints(hint):
            break
        hint, values = get_type_hints(hint)[name], values.get(name)
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kind = hint.__name__ if isinstance(hint, type) else hint
    return TypeError(f"{where}: {name} must be {kind}, got {values!r}")
