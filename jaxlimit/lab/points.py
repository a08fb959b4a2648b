"""Parts of an experiment that are kept, so that the same part is not computed twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlimit._core.digests import of_json
from jaxlimit.lab.content import plain, read_json, write_json


def known_or_made(path: Path, identity: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read what was made with the same settings, or make it and keep it.

    Args:
        path: of the JSON file.
        identity: the settings that decide the result.
        make: makes the result; called where the file is missing or of other settings.

    Returns:
        The result as JSON holds it.

    Raises:
        ValueError: if the file is damaged or was changed since.
    """
    told = of_json(plain(identity))
    if path.exists() and (known := read_json(path)).get("identity") == told:
        return known["point"]
    point = plain(make())
    write_json(path, {"identity": told, "point": point})
    return point
