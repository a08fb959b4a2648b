"""Encoded images: their size is checked by their header before anything is decoded."""

import io

from PIL import Image


def check_size(encoded: bytes, height: int, width: int) -> None:
    """Raise `ValueError` unless these bytes begin an image of this size."""
    try:
        # Reads no more than the header; an image of too many pixels raises by itself.
        with Image.open(io.BytesIO(encoded)) as image:
            found = image.size[::-1]
    except Exception as error:  # each of its formats fails in a way of its own
        raise ValueError(f"{len(encoded)} bytes that are no image: {error}") from error
    if found != (height, width):
        raise ValueError(f"an image of {found} pixels where {(height, width)} was announced")
