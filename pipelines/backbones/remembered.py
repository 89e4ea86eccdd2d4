"""Descriptions of models, remembered from one command to the next, so that a dry run loads neither torch nor timm.

What a plan needs of a model follows from the user's words, the bytes of its weights and of what stands beside them, and
the code that reads them. An entry of the user's cache folder is named by a digest of all of these: other weights,
another timm or another line in this package find no entry, and the model is described anew. An entry that is damaged
counts for none. Whatever an entry says, a run compares it with the model that it loads.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from feature_store.canonical import canonical_json
from pipelines.backbones.catalogue import DEMO, NULL
from pipelines.backbones.description import BackboneDescription, DescribedModel
from pipelines.backbones.hub_folder import beside_weights, weights_file
from pipelines.backbones.preprocessing import ImageSize, Windows
from pipelines.backbones.request import BackboneRequest, RequestOptions
from pipelines.backbones.weight_files import demo_weights, file_sha256, resolved, weight_parts
from pipelines.user_cache import user_cache_folder

_PACKAGES = ("timm", "torch", "safetensors", "huggingface_hub", "numpy")
# timm reads it to choose its attention kernel.
_KERNEL_VARIABLE = "TIMM_FUSED_ATTN"
_MOST_BYTES = 1 << 20
_MOST_ENTRIES = 256


def describe_model(
    model: str,
    *,
    weights: Path | None = None,
    image_size: ImageSize | None = None,
    windows: Windows | None = None,
    **options: Unpack[RequestOptions],
) -> DescribedModel:
    """Find and describe a model by the words that `resolve_backbone` takes: from memory where it was described before.

    Raises:
        BackboneError: as `resolve_backbone` and `describe_backbone`.
    """

    def describe(sha256: str | None = None) -> DescribedModel:
        from pipelines.backbones.families import resolve_backbone

        request = resolve_backbone(
            model, weights=weights, image_size=image_size, windows=windows, sha256=sha256, **options
        )
        return describe_request(request)

    try:
        files = _find_files(model, weights)
        words = {"model": model, "image_size": image_size, "windows": windows and vars(windows), "options": options}
        entry = None if files is None else _entry(files, words)
    except (ValueError, OSError, RuntimeError):  # a file that is not there, a path that no text can hold, no home
        return describe()  # which says what is wrong, and in its own order
    if files is None or entry is None:
        return describe()
    return _read(entry, files) or _described_and_kept(partial(describe, files.sha256), entry, files)


def describe_request(request: BackboneRequest) -> DescribedModel:
    """Describe a model that was found already; this loads torch, but no weights.

    Raises:
        BackboneError: as `describe_backbone`.
    """
    from pipelines.backbones.families import describe_backbone, kernel_name

    return DescribedModel(backbone=describe_backbone(request), attention_kernel=kernel_name(request))


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files that a model is read from.

    Attributes:
        weights: the path that a request holds; None for a model without a file.
        sha256: of the weights.
        beside: name and sha256 of every other file that says something of the model.
        stamps: what the system says of each file's state: it was taken before the file was read.
    """

    weights: Path | None
    sha256: str
    beside: Mapping[str, str]
    stamps: Mapping[str, tuple[int, ...]]


def _find_files(model: str, weights: Path | None) -> _Files | None:
    """The files of a model, hashed; None where only timm knows which these are.

    Raises:
        BackboneError, OSError: a file that cannot be read.
    """
    if weights is None and model == NULL:
        return _Files(weights=None, sha256="", beside={}, stamps={})
    if weights is None and model != DEMO:
        return None
    path = weights_file(resolved(weights or demo_weights()))
    beside = beside_weights(path)
    stamps = _stamps([*weight_parts(path), *beside])
    return _Files(
        weights=path,
        sha256=file_sha256(path),
        beside={each.name: file_sha256(each) for each in beside},
        stamps=stamps,
    )


def _stamps(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    found = {str(path): path.stat() for path in paths}
    return {name: (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in found.items()}


def _entry(files: _Files, words: Mapping[str, Any]) -> Path:
    """Where the description of a model is kept."""
    decides = {
        "words": words,
        "file": files.weights and files.weights.name,
        "sha256": files.sha256,
        "beside": files.beside,
        "code": code_digest(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "kernel": os.environ.get(_KERNEL_VARIABLE),
    }
    return user_cache_folder() / "models" / f"{hashlib.sha256(canonical_json(decides).encode()).hexdigest()}.json"


def _version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed, as a null model needs no timm."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def code_digest(folder: Path) -> str:
    """Sha256 of all sources in a folder, read once a process: those that run are those of its start."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*.py"))
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(entry: Path, files: _Files) -> DescribedModel | None:
    """What an entry says; None where there is none that can be used."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if not entry.is_file() or entry.stat().st_size > _MOST_BYTES:
            return None
        text, _, sha256 = entry.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != sha256.strip():
            return None
        content = json.loads(text)
        backbone = BackboneDescription.from_json(content["backbone"])
        # The same bytes may stand elsewhere now.
        request = replace(backbone.request, weights=str(files.weights or ""))
        return DescribedModel(backbone=replace(backbone, request=request), attention_kernel=content["kernel"])
    return None


def _described_and_kept(describe: Callable[[], DescribedModel], entry: Path, files: _Files) -> DescribedModel:
    """Describe a model, and keep that if its files stood still meanwhile; a folder that takes nothing is no fault."""
    found = describe()
    content = {"backbone": found.backbone.to_json(), "kernel": found.attention_kernel}
    with contextlib.suppress(OSError, ValueError, TypeError):
        if files.stamps == _stamps([Path(name) for name in files.stamps]):
            text = json.dumps(content)
            _write(entry, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
    return found


def _write(entry: Path, text: str) -> None:
    """Write an entry whole or not at all, and drop the oldest where there are too many.

    Raises:
        OSError: the folder cannot be made or written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    kept = sorted(entry.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in kept[_MOST_ENTRIES - 1 :]:
        path.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=entry.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    try:
        Path(file.name).replace(entry)
    finally:
        Path(file.name).unlink(missing_ok=True)
