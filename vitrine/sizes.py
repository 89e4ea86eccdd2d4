"""Sizes as users write them."""

import re
from typing import TYPE_CHECKING

from vitrine.exits import UsageError

if TYPE_CHECKING:
    from pipelines.backbones import Windows

# Beyond any model, and below what would ask for more memory than a machine has before the model says so.
_MOST_PX = 16384


def image_size_of(text: str | None, option: str) -> tuple[int, int] | None:
    """(height, width) in pixels of `224` or `224x448`; None stays None.

    Raises:
        UsageError: neither of the two forms, or beyond the largest side.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})(?:[xX]([1-9]\d{0,5}))?", text.strip())
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < max(sides) <= _MOST_PX:
        raise UsageError(
            f"{option} {text!r}: write the side of a square or HEIGHTxWIDTH in pixels, at most {_MOST_PX}, e.g. 224 or "
            "224x448."
        )
    return sides


def windows_of(window: str | None, stride: str | None) -> "Windows | None":
    """What --window and --stride say; without a stride windows touch.

    Raises:
        UsageError: one of them is no size, or a stride comes without a window.
    """
    from pipelines.backbones import Windows

    size, step = image_size_of(window, "--window"), image_size_of(stride, "--stride")
    if size is None:
        if step is not None:
            raise UsageError(f"--stride {stride} goes from window to window, and there is none; add --window.")
        return None
    return Windows(size=size, stride=step or size)
