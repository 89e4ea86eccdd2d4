"""`pt:FOLDER`: tensors, or dictionaries of tensors, that torch.save wrote: a file a view, or batches of views."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from feature_store.identity import FEATURE_KINDS, TokenKind
from pipelines.backbones.checkpoint import load_tensors, require_plain
from pipelines.backbones.weight_files import BackboneError
from pipelines.datasets.assemble import Row
from pipelines.datasets.image_folder import place_in_folders
from pipelines.datasets.scan import list_files
from pipelines.imports.rows_file import read_rows
from pipelines.imports.source_arrays import ImportRefusedError, SourceArray, Spool, Values
from pipelines.imports.vectors import ImportOptions, Vectors, kinds_of

SUFFIXES = (".pt", ".pth")
MAX_FILE_BYTES = 4 << 30
# What people and libraries call the token kinds; DINOv2's forward_features among them.
_NAMES: Mapping[TokenKind, tuple[str, ...]] = {
    "patches": ("patches", "patch_tokens", "x_norm_patchtokens", "tokens", "last_hidden_state"),
    "cls": ("cls", "cls_token", "x_norm_clstoken", "embedding", "embeddings", "vector", "vectors", "features", "feats"),
    "registers": ("registers", "register_tokens", "x_norm_regtokens"),
}
_LABELS = ("label", "labels", "target", "targets")
_URIS = ("uri", "uris", "path", "paths", "filename", "filenames")
_AXES: Mapping[TokenKind, int] = {"patches": 2, "cls": 1, "registers": 2}
_VIEW_AXES = 2


def open_pt_folder(path: Path, options: ImportOptions) -> Vectors:
    """Vectors in a folder of `.pt` files, at any depth, in the order of their paths.

    A file is one view, named by its path without the suffix; split and class folders above it are taken as in
    `images:PATH`. With `options.batched` the first axis of every tensor counts views.

    Raises:
        ImportRefusedError: no files, a file that is not tensors alone, tensors that cannot be told apart, or other
            counts than the rows.
    """
    if not path.is_dir():
        raise ImportRefusedError(f"{path} is not a folder; give the folder of .pt files.")
    files = list_files(path, SUFFIXES)
    if not files:
        raise ImportRefusedError(f"no .pt file under {path}.")
    spools: dict[TokenKind, Spool] = {}
    rows: list[Row] = []
    stems = [str(PurePosixPath(uri).with_suffix("")) for uri in files]
    # Folders say nothing of a batch: its rows are named inside it, or by --rows.
    placed = None if options.batched or options.rows else place_in_folders(stems)
    for index, uri in enumerate(files):
        tensors, said = _read(path / uri, batched=options.batched)
        if spools and set(spools) != set(tensors):
            raise ImportRefusedError(f"{path / uri} holds {sorted(tensors)}, and the files before it {sorted(spools)}.")
        for kind, values in tensors.items():
            spools.setdefault(kind, Spool(f"{path} ({kind})")).append(values, name=str(path / uri))
        counts = {kind: len(values) for kind, values in tensors.items()}
        if len(set(counts.values())) != 1:
            raise ImportRefusedError(f"{path / uri} holds different numbers of rows: {counts}.")
        rows += _rows_of(stems[index], said, next(iter(counts.values())), path / uri, batched=options.batched)
        if placed is not None:
            rows[-1] |= {"split": placed[index].split, "label": placed[index].class_name or rows[-1].get("label")}
    if options.rows:
        rows = _in_order_of(
            rows, read_rows(options.rows, renamed=options.columns), options.rows, batched=options.batched
        )
    elif options.root is not None and not options.batched:
        rows = _with_images(rows, options.root)
    return Vectors(layout="pt", arrays=_arrays(spools, options), rows=rows, name=path.resolve().name)


def _arrays(spools: Mapping[TokenKind, Spool], options: ImportOptions) -> Mapping[TokenKind, SourceArray]:
    if set(spools) == {"patches"} and options.prefix_tokens:
        return kinds_of(spools["patches"], prefix_tokens=options.prefix_tokens)
    return dict(spools)


def _read(path: Path, *, batched: bool) -> tuple[dict[TokenKind, Values], dict[str, Any]]:
    """The tensors of a file by kind, each with an axis of rows, and what else it says."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ImportRefusedError(
            f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read. Split it."
        )
    try:
        loaded = load_tensors(path, what="tensors")
        if isinstance(loaded, torch.Tensor):
            tensors: dict[TokenKind, torch.Tensor] = {_kind_of(loaded, path, batched=batched): loaded}
            said: dict[str, Any] = {}
        elif isinstance(loaded, Mapping):
            tensors, said = _named(loaded, path), dict(loaded)
        else:
            raise ImportRefusedError(
                f"{path} holds a {type(loaded).__name__}; save a tensor or a dictionary of tensors."
            )
        for kind, tensor in tensors.items():
            require_plain(kind, tensor, path, what="tensors")
    except BackboneError as error:
        raise ImportRefusedError(str(error)) from error
    return {kind: _values(kind, tensor, path, batched=batched) for kind, tensor in tensors.items()}, said


def _kind_of(tensor: torch.Tensor, path: Path, *, batched: bool) -> TokenKind:
    axes = tensor.ndim - (1 if batched else 0)
    if not batched and axes > 1 and tensor.shape[0] == 1:
        axes -= 1  # [1, ...] as models give it for a batch of one
    if axes not in (1, _VIEW_AXES):
        raise ImportRefusedError(
            f"{path} holds a tensor of shape {list(tensor.shape)}; a view is [features] or [patches, features]"
            + (", with a first axis of views." if batched else "; a file of many views needs --batched.")
        )
    return "cls" if axes == 1 else "patches"


def _named(loaded: Mapping[Any, Any], path: Path) -> dict[TokenKind, torch.Tensor]:
    found: dict[TokenKind, torch.Tensor] = {}
    for kind in FEATURE_KINDS:
        names = [name for name in _NAMES[kind] if isinstance(loaded.get(name), torch.Tensor)]
        if len(names) > 1:
            raise ImportRefusedError(f"{path} holds {names}, each of which could be the {kind}; save one of them.")
        if names and loaded[names[0]].numel():
            found[kind] = loaded[names[0]]
    if not found:
        known = ", ".join(name for names in _NAMES.values() for name in names)
        raise ImportRefusedError(f"{path} holds {sorted(map(str, loaded))[:10]}; name the tensors among {known}.")
    return found


def _values(kind: TokenKind, tensor: torch.Tensor, path: Path, *, batched: bool) -> Values:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # exact; numpy has no such type
    shape = tuple(tensor.shape)
    if not batched and len(shape) == _AXES[kind]:
        shape = (1, *shape)
    if len(shape) != _AXES[kind] + 1 or (not batched and shape[0] != 1):
        way = "" if batched else "; a file of many views needs --batched"
        raise ImportRefusedError(f"{path} holds {kind} of shape {list(tensor.shape)}, which are not one view's{way}.")
    return tensor.detach().numpy().reshape(shape)


def _rows_of(stem: str, said: Mapping[str, Any], n_rows: int, path: Path, *, batched: bool) -> list[Row]:
    names, labels = (next((said[name] for name in group if name in said), None) for group in (_URIS, _LABELS))
    if isinstance(labels, torch.Tensor):
        labels = labels.reshape(-1).tolist()
    listed = [
        None if value is None else [value] if not isinstance(value, list | tuple) else value
        for value in (names, labels)
    ]
    uris, classes = (value if value is not None else [None] * n_rows for value in listed)
    if len(uris) != n_rows or len(classes) != n_rows:
        raise ImportRefusedError(f"{path} holds {n_rows} vectors, {len(uris)} paths and {len(classes)} labels.")
    own = [f"{stem}/{index:06d}" for index in range(n_rows)] if batched else [stem]
    return [
        {"uri": own[index] if uris[index] is None else str(uris[index]), "label": _text(classes[index])}
        for index in range(n_rows)
    ]


def _text(label: Any) -> str | None:
    return None if label is None else str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _in_order_of(found: Sequence[Row], stated: Sequence[Row], path: Path, *, batched: bool) -> list[Row]:
    """The stated rows in the order of the files, matched by path without suffix; of batches, by order alone."""
    if batched:
        return list(stated)
    by_stem = {_stem(row.get("uri")): row for row in stated}
    missing = [row["uri"] for row in found if row["uri"] not in by_stem]
    if missing or len(stated) != len(found):
        first = f"; the file {missing[0]!r} has no row" if missing else ""
        raise ImportRefusedError(
            f"{path} has {len(stated)} rows and there are {len(found)} .pt files{first}. A row's uri is its file's "
            "path in the folder, with any suffix."
        )
    return [by_stem[row["uri"]] for row in found]


def _stem(uri: Any) -> str:
    return "" if uri is None else str(PurePosixPath(uri).with_suffix(""))


def _with_images(rows: Sequence[Row], root: Path) -> list[Row]:
    """Rows under the names of the images that have their stems."""
    images = {_stem(uri): uri for uri in list_files(root)}
    return [{**row, "uri": images.get(row["uri"], row["uri"])} for row in rows]
