"""The folder of this user in which Vitrine keeps what it can make again."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`vitrine` in $XDG_CACHE_HOME, or in ~/.cache where that names no place."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "vitrine"
