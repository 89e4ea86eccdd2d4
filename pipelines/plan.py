"""What one extraction will do: frozen, checked when built, saved inside the store that it makes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_store import (
    FeatureSetSpec,
    Identity,
    StoredDataset,
    TokenKind,
    suggest_rows_per_shard,
)
from feature_store.arrays import row_bytes
from feature_store.identity import COMPUTE_DTYPES, TOKEN_KINDS
from feature_store.manifest import VIEW_FIELDS
from feature_store.nearest_name import did_you_mean
from feature_store.shards import ROWS_PER_CHUNK
from feature_store.storage import STORAGE_DTYPES
from pipelines.backbones import BackboneRequest
from pipelines.backbones.description import BackboneDescription
from pipelines.image_files import MAX_IMAGE_PIXELS, ReadingRules

DEFAULT_BATCH_SIZE = {"cpu": 16, "cuda": 128}
ORDERS = ("grown", "uri")


class PlanError(ValueError):
    """An extraction that was asked for and cannot be planned."""


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """What a user chooses of an extraction besides dataset and model.

    Attributes:
        layers: block numbers counted from 1, or `last`.
        token_kinds: among `patches`, `cls`, `registers`, `attention`; None for patches and, where there is one, cls.
        storage_dtype: `float16` or `float32`.
        batch_size: views of one forward pass; None for the device's default, or what the feature set already has.
        rows_per_shard: None for a size that writes well and loses little.
        order: of the rows: `grown`, where a feature set of the same dataset and recipe in the store keeps its rows, or
            `uri`, as of a fresh dataset.
    """

    layers: tuple[int | str, ...] = ("last",)
    token_kinds: tuple[TokenKind, ...] | None = None
    storage_dtype: str = "float16"
    batch_size: int | None = None
    rows_per_shard: int | None = None
    order: str = "grown"

    def __post_init__(self) -> None:
        for layer in self.layers:
            if layer != "last" and not (str(layer).isdecimal() and int(layer) >= 1):
                near = did_you_mean(str(layer), ["last"])
                raise PlanError(f"layer {layer!r}: name blocks by their numbers, counted from 1, or `last`{near}.")
        unknown = [kind for kind in self.token_kinds or () if kind not in TOKEN_KINDS]
        if unknown or self.token_kinds == ():
            raise PlanError(f"token kinds {unknown or 'none'}: choose among {', '.join(TOKEN_KINDS)}.")
        if self.storage_dtype not in STORAGE_DTYPES:
            raise PlanError(f"storage dtype {self.storage_dtype!r}: choose among {', '.join(STORAGE_DTYPES)}.")
        if self.order not in ORDERS:
            raise PlanError(f"order {self.order!r}: choose among {', '.join(ORDERS)}.")
        for name in ("batch_size", "rows_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{name} {value}: must be at least 1.")
        if self.rows_per_shard is not None and self.rows_per_shard % ROWS_PER_CHUNK:
            raise PlanError(
                f"rows_per_shard {self.rows_per_shard}: must be a multiple of {ROWS_PER_CHUNK}, the rows of a chunk."
            )


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """Everything that a worker needs to compute and commit any shard of a feature set.

    Attributes:
        store: URL of the store.
        folder: of the feature set in it.
        dataset_root: folder of the images on the workers' machines.
        dataset_folder: of the manifest in the store.
        spec: the feature set's record.
        backbone: what to load.
        threads: of one worker, for the model and for decoding each.
        sources: names of feature sets whose rows are copied where they are the same; see `reuse`.
        devices: that workers of one machine take in turn; empty where each uses the backbone's.
        max_pixels: of an image that is decoded.
        link_roots: folders outside `dataset_root` that links in it may lead into.
        keys_stated: whether a user's table states content keys, which are held to the images before rows are copied.
    """

    store: str
    folder: str
    dataset_root: str
    dataset_folder: str
    spec: FeatureSetSpec
    backbone: BackboneRequest
    threads: int
    sources: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    max_pixels: int = MAX_IMAGE_PIXELS
    link_roots: tuple[str, ...] = ()
    keys_stated: bool = False

    @property
    def rules(self) -> ReadingRules:
        """How images are read."""
        return ReadingRules(max_pixels=self.max_pixels, link_roots=tuple(map(Path, self.link_roots)))

    def to_json(self) -> str:
        """The plan as text, for another process or for the record."""
        return json.dumps({**asdict(self), "spec": self.spec.to_json()})

    @classmethod
    def from_json(cls, text: str) -> "ExtractionPlan":
        """Read what `to_json` wrote."""
        value: dict[str, Any] = json.loads(text)
        return cls(
            **{
                **value,
                "spec": FeatureSetSpec.from_json(value["spec"], name="plan"),
                "backbone": BackboneRequest.from_json(value["backbone"]),
                "sources": tuple(value["sources"]),
                "devices": tuple(value.get("devices", ())),
                "link_roots": tuple(value.get("link_roots", ())),
            }
        )


def feature_set_spec(
    dataset: StoredDataset,
    backbone: BackboneDescription,
    settings: ExtractionSettings,
    *,
    attention_kernel: str,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> FeatureSetSpec:
    """The record of the feature set that these would make.

    Args:
        dataset: in the store.
        backbone: the model.
        settings: the user's.
        attention_kernel: that the backbone runs with.
        max_pixels: of an image that is decoded.

    Raises:
        PlanError: a layer or token kind that the model does not have, or an unknown compute dtype.
    """
    require_possible(backbone, settings)
    request = backbone.request
    identity = Identity(
        views_digest=dataset.views_digest,
        weights_sha256=request.weights_sha256,
        architecture=backbone.architecture,
        preprocessing=recorded_preprocessing(backbone, max_pixels),
        layers=resolve_layers(settings.layers, backbone.depth),
        token_kinds=_token_kinds(backbone, settings),
        storage_dtype=settings.storage_dtype,
        compute_dtype=request.compute_dtype,
    )
    batch_size = settings.batch_size or DEFAULT_BATCH_SIZE[request.device.split(":")[0]]
    spec = FeatureSetSpec(
        identity=identity,
        model=request.model,
        title=request.title,
        assumed=request.assumed,
        n_rows=dataset.n_rows,
        rows_per_shard=ROWS_PER_CHUNK,  # until the size of a row is known, just below
        grid=backbone.grid,
        n_features=backbone.n_features,
        n_registers=backbone.n_registers,
        n_heads=backbone.n_heads,
        batch_size=batch_size,
        attention_kernel=attention_kernel,
    )
    rows = settings.rows_per_shard or suggest_rows_per_shard(dataset.n_rows, row_bytes(spec), multiple_of=batch_size)
    return replace(spec, rows_per_shard=rows)


def with_stored_shape(spec: FeatureSetSpec, stored: FeatureSetSpec) -> FeatureSetSpec:
    """`spec` with what a resumed run takes from the feature set that stands there: batch, kernel and shard size."""
    kept = ("batch_size", "attention_kernel", "rows_per_shard", "model", "title", "assumed")
    return replace(spec, **{name: getattr(stored, name) for name in kept})


def recorded_preprocessing(backbone: BackboneDescription, max_pixels: int) -> dict[str, Any]:
    """How views become pixels, as the identity records it.

    The limit of pixels decides which rows are valid, so any but the default is part of it: else one name could mean two
    contents.
    """
    limit = {} if max_pixels == MAX_IMAGE_PIXELS else {"max_pixels": max_pixels}
    return {**backbone.preprocessing.to_json(), **limit}


def resolve_layers(layers: Sequence[int | str], depth: int) -> tuple[int, ...]:
    """Layers as ascending block numbers.

    Raises:
        PlanError: none, one outside 1..depth, or something that is neither a number nor `last`.
    """
    numbers = set()
    for layer in layers:
        number = depth if layer == "last" else int(layer) if str(layer).isdecimal() else 0
        if not 1 <= number <= depth:
            raise PlanError(f"layer {layer!r}: this model has blocks 1..{depth}; name numbers of them, or `last`.")
        numbers.add(number)
    if not numbers:
        raise PlanError(f"no layer: name some of the blocks 1..{depth}, or `last`.")
    return tuple(sorted(numbers))


def _token_kinds(backbone: BackboneDescription, settings: ExtractionSettings) -> tuple[TokenKind, ...]:
    """Those asked for, in the one order that they have everywhere."""
    if settings.token_kinds is None:
        return ("patches", "cls") if backbone.has_cls else ("patches",)
    return tuple(kind for kind in TOKEN_KINDS if kind in settings.token_kinds)


def require_possible(backbone: BackboneDescription, settings: ExtractionSettings) -> None:
    """Refuse what this model cannot give, before anything is read or written.

    Raises:
        PlanError: a layer or token kind that the model does not have, or an unknown compute dtype.
    """
    dtype = backbone.request.compute_dtype
    if dtype not in COMPUTE_DTYPES:
        raise PlanError(f"compute dtype {dtype!r}: choose among {', '.join(COMPUTE_DTYPES)}.")
    resolve_layers(settings.layers, backbone.depth)
    has = {
        "patches": True,
        "cls": backbone.has_cls,
        "registers": backbone.n_registers > 0,
        "attention": backbone.has_cls and backbone.n_heads > 0,
    }
    lacking = [kind for kind in settings.token_kinds or () if not has[kind]]
    if lacking:
        offered = ",".join(kind for kind, there in has.items() if there)
        where = " in windows" if backbone.preprocessing.windows is not None else ""
        words = " or ".join(kind.removesuffix("s") if kind == "registers" else kind for kind in lacking)
        raise PlanError(f"{backbone.request.title} has no {words} tokens{where}; ask for --tokens {offered}.")


def view_columns() -> list[str]:
    """The manifest's columns that decide pixels: all that a worker reads."""
    return [field.name for field in VIEW_FIELDS]


def views_of(table: pa.Table, start: int, stop: int) -> list[Mapping[str, Any]]:
    """Rows of the manifest as dictionaries."""
    rows: list[Mapping[str, Any]] = table.slice(start, stop - start).to_pylist()
    return rows
