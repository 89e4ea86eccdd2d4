"""Names of a package whose modules are imported when the names are first asked for (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names_loaded_late(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package, of which only a part is imported with it.

    Args:
        package: its name.
        modules: the names that each of its other modules gives.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    return load
