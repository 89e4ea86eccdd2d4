"""Folders of transformers: the file of weights in one, and what is said beside it."""

import json
from pathlib import Path
from typing import Any

from pipelines.backbones.parts import INDEX_FILES, is_index, lone_part
from pipelines.backbones.weight_files import BackboneError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_MAX_JSON_BYTES = 1 << 20


def weights_file(path: Path) -> Path:
    """The file of weights that a path names: itself, or the one in a folder of transformers, which may be an index.

    Raises:
        BackboneError: a folder without one such file, or one of several files without the others.
    """
    if not path.is_dir():
        if said := lone_part(path):
            raise BackboneError(f"weights {path} {said}.")
        return path
    found = next((path / name for name in (*WEIGHT_FILES, *INDEX_FILES) if (path / name).is_file()), None)
    if found is None:
        raise BackboneError(
            f"weights {path} are a folder without {' or '.join(WEIGHT_FILES)}, and without {INDEX_FILES[0]} of weights "
            "in several files; give a file, or a folder of transformers."
        )
    return found


def folder_settings(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and preprocessor_config.json say beside a file of weights; empty where they say nothing.

    Raises:
        BackboneError: a file of that name that is no JSON object of at most 1 MB.
    """
    if file.name not in (*WEIGHT_FILES, *INDEX_FILES):
        return {}, {}
    config, preprocessor = (_object(file.with_name(name)) for name in (_CONFIG, _PREPROCESSOR))
    # A folder of timm has another config.json, and the names of timm.
    return (config, preprocessor) if isinstance(config.get("model_type"), str) else ({}, {})


def beside_weights(file: Path) -> list[Path]:
    """The files, besides those that hold the numbers, that say something of the model in a file of weights."""
    if file.name not in (*WEIGHT_FILES, *INDEX_FILES):
        return []
    said = [file.with_name(name) for name in (_CONFIG, _PREPROCESSOR)]
    return [path for path in (*said, *([file] if is_index(file) else [])) if path.is_file()]


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is larger than 1 MB")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path} cannot be read as JSON ({str(error)[:160]}); fetch the folder again.") from error
    return value
