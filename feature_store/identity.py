"""What makes two feature sets the same.

The digest is taken over everything that can change a stored number, and over nothing else. Batch shape and attention
kernel, which change at most the last bits on some devices, stand beside it in `feature_set.json`; a resumed run takes
them from there.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from math import prod
from typing import Any, Literal

from feature_store.canonical import canonical_json, digest_of
from feature_store.errors import CorruptError, IdentityMismatchError
from feature_store.growth import Growth, read_growth
from feature_store.records import Fields
from feature_store.shards import ROWS_PER_CHUNK
from feature_store.storage import INT8, STORAGE_DTYPES, Compression, read_compression

TokenKind = Literal["patches", "cls", "registers", "attention"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("patches", "cls", "registers", "attention")
# Those whose last axis is the model's features; that of `attention` is the patches.
FEATURE_KINDS: tuple[TokenKind, ...] = ("patches", "cls", "registers")
# Raised whenever the extraction code may give other numbers for the same inputs.
EXTRACTION_SCHEMA = 1
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_REMEDY = "Restore it from a copy, or move the feature set away and extract anew."
_SHOWN_CHARACTERS = 200
# A stranger's record must not ask for more memory than any real feature set does.
_MOST_ROWS = 1 << 31
_MOST_ROWS_PER_SHARD = 1 << 24
_MOST_SHARDS = 1 << 18
_MOST_GRID = 1 << 14
_MOST_FEATURES = 1 << 20
_MOST_VALUES_PER_ROW = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides the numbers of a feature set.

    Attributes:
        views_digest: of the manifest's first group of columns.
        weights_sha256: of the checkpoint file.
        architecture: name and arguments of the model, and the norm that every layer passes.
        preprocessing: decoder, size, fit, interpolation, where it runs, antialias, mean, std, position embedding.
        layers: block numbers counted from 1, ascending.
        token_kinds: in the order of `TOKEN_KINDS`.
        storage_dtype: of the arrays.
        compute_dtype: of the forward pass.
        extraction_schema: the extraction code's own number.
        compression: how it was made from another feature set; None where it was extracted.
        grown_from: where the order of the rows comes from; None for a fresh dataset, whose rows are in uri order.
    """

    views_digest: str
    weights_sha256: str
    architecture: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    layers: tuple[int, ...]
    token_kinds: tuple[TokenKind, ...]
    storage_dtype: str = "float16"
    compute_dtype: str = "float32"
    extraction_schema: int = EXTRACTION_SCHEMA
    compression: Compression | None = None
    grown_from: Growth | None = None

    def to_json(self) -> dict[str, Any]:
        """The identity as JSON values; `compression` and `grown_from` only where there is one."""
        value = {**asdict(self), "layers": list(self.layers), "token_kinds": list(self.token_kinds)}
        for name in ("compression", "grown_from"):
            part = value.pop(name)
            if part is not None:
                value[name] = getattr(self, name).to_json()
        return value

    @property
    def digest(self) -> str:
        """Sha256 that names the feature set."""
        return digest_of(self.to_json())

    @property
    def computation(self) -> str:
        """Sha256 without layers, kinds and storage: what two requests for the same forward pass share."""
        return self._digest_without("layers", "token_kinds", "storage_dtype")

    @property
    def recipe(self) -> str:
        """As `computation`, without the views and their order too: what makes a view's tokens in any dataset."""
        return self._digest_without("layers", "token_kinds", "storage_dtype", "views_digest", "grown_from")

    @property
    def basis(self) -> str | None:
        """What feature numbers mean besides the weights: a PCA's digest; None for the model's own features."""
        return None if self.compression is None else self.compression.projection_sha256

    @property
    def value_dtype(self) -> str:
        """Of what reading gives: int8 is dequantised."""
        return "float32" if self.storage_dtype == INT8 else self.storage_dtype

    def _digest_without(self, *names: str) -> str:
        return digest_of({name: value for name, value in self.to_json().items() if name not in names})


@dataclass(frozen=True, kw_only=True)
class FeatureSetSpec:
    """The content of `feature_set.json`: the identity, and the shape of what is stored.

    Attributes:
        identity: what decides the numbers.
        model: the short name that users typed.
        title: what reports call the model.
        assumed: what neither the model's file nor its user said, and the value that was taken; the values themselves
            are in the identity.
        n_rows: views, one a row.
        rows_per_shard: a multiple of the rows of a chunk.
        grid: (height, width) of the patch lattice.
        n_features: width of a token.
        n_registers: register tokens of a view, 0 where the model has none.
        n_heads: attention heads of a block, 0 where no attention can be stored.
        batch_size: the one batch shape that every forward pass has.
        attention_kernel: `fused` or `explicit`.
    """

    identity: Identity
    model: str
    title: str
    n_rows: int
    rows_per_shard: int
    grid: tuple[int, int]
    n_features: int
    n_registers: int
    n_heads: int = 0
    batch_size: int
    attention_kernel: str
    assumed: tuple[str, ...] = ()

    @property
    def n_patches(self) -> int:
        """Patches of a view."""
        return self.grid[0] * self.grid[1]

    def row_shape(self, kind: TokenKind) -> tuple[int, ...]:
        """The shape of one row of a token kind's array."""
        shapes: dict[TokenKind, tuple[int, ...]] = {
            "patches": (self.n_patches, self.n_features),
            "cls": (self.n_features,),
            "registers": (self.n_registers, self.n_features),
            "attention": (self.n_heads, self.n_patches),
        }
        return shapes[kind]

    def to_json(self) -> dict[str, Any]:
        """The content of `feature_set.json`."""
        return {
            **asdict(self),
            "grid": list(self.grid),
            "assumed": list(self.assumed),
            "identity": self.identity.to_json(),
            "digest": self.identity.digest,
            "computation": self.identity.computation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, name: str = "feature_set.json") -> "FeatureSetSpec":
        """Read what `to_json` wrote, perhaps changed by a stranger.

        Raises:
            CorruptError: a field is missing, of the wrong type or impossible, or the digest is not the identity's.
        """
        fields = Fields(value, name=name, remedy=_REMEDY)
        grid = fields.integers("grid", least=1, most=_MOST_GRID)
        if len(grid) != 2:
            raise fields.corrupt(f"'grid' has {len(grid)} values, and must have height and width")
        spec = cls(
            identity=_read_identity(fields.mapping("identity"), name),
            model=fields.text("model"),
            title=fields.text("title"),
            n_rows=fields.integer("n_rows", least=1, most=_MOST_ROWS),
            rows_per_shard=fields.integer("rows_per_shard", least=ROWS_PER_CHUNK, most=_MOST_ROWS_PER_SHARD),
            grid=(grid[0], grid[1]),
            n_features=fields.integer("n_features", least=1, most=_MOST_FEATURES),
            n_registers=fields.integer("n_registers", most=_MOST_GRID),
            n_heads=fields.integer("n_heads", most=_MOST_GRID),
            batch_size=fields.integer("batch_size", least=1),
            attention_kernel=fields.text("attention_kernel"),
            assumed=fields.texts("assumed"),
        )
        if spec.identity.digest != fields.text("digest"):
            raise fields.corrupt(
                f"the digest is {fields.text('digest')[:80]!r}, but its identity has {spec.identity.digest!r}, so the "
                "file was changed after it was written"
            )
        _check_together(spec, fields)
        return spec


def _read_identity(stored: Mapping[str, Any], name: str) -> Identity:
    known = {field.name for field in dataclass_fields(Identity)}
    fields = Fields(stored, name=name, remedy=_REMEDY)
    if set(stored) - known:
        unknown = str(sorted(set(stored) - known))[:_SHOWN_CHARACTERS]
        raise CorruptError(
            f"{name}: the identity has {unknown}, which this Vitrine does not know. Read it with "
            "the Vitrine that wrote it."
        )
    kinds = fields.texts("token_kinds")
    in_order = tuple(kind for kind in TOKEN_KINDS if kind in kinds)
    if not kinds or kinds != in_order:
        raise fields.corrupt(f"'token_kinds' is {list(kinds)}, and must be some of {list(TOKEN_KINDS)}, in this order")
    layers = fields.integers("layers", least=1, most=_MOST_GRID)
    if not layers or list(layers) != sorted(set(layers)):
        raise fields.corrupt(f"'layers' is {list(layers)}, and must be block numbers in ascending order")
    return Identity(
        views_digest=_sha256(fields, "views_digest"),
        weights_sha256=fields.text("weights_sha256"),
        architecture=fields.mapping("architecture"),
        preprocessing=fields.mapping("preprocessing"),
        layers=layers,
        token_kinds=in_order,
        storage_dtype=_one_of(fields, "storage_dtype", (*STORAGE_DTYPES, INT8)),
        compute_dtype=_one_of(fields, "compute_dtype", COMPUTE_DTYPES),
        extraction_schema=fields.integer("extraction_schema"),
        compression=None
        if "compression" not in stored
        else read_compression(fields.mapping("compression"), name=name, remedy=_REMEDY),
        grown_from=None
        if "grown_from" not in stored
        else read_growth(fields.mapping("grown_from"), name=name, remedy=_REMEDY),
    )


def _sha256(fields: Fields, key: str) -> str:
    text = fields.text(key)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise fields.corrupt(f"{key!r} is {text[:80]!r}, and must be 64 lower-case hexadecimal digits")
    return text


def _one_of(fields: Fields, key: str, allowed: tuple[str, ...]) -> str:
    text = fields.text(key)
    if text not in allowed:
        raise fields.corrupt(f"{key!r} is {text[:80]!r}, and must be one of {', '.join(allowed)}")
    return text


def _check_together(spec: FeatureSetSpec, fields: Fields) -> None:
    """The bounds that no field breaks alone."""
    if spec.rows_per_shard % ROWS_PER_CHUNK:
        raise fields.corrupt(f"'rows_per_shard' is {spec.rows_per_shard}, and must be a multiple of {ROWS_PER_CHUNK}")
    if spec.n_rows > spec.rows_per_shard * _MOST_SHARDS:
        raise fields.corrupt(
            f"{spec.n_rows} rows in shards of {spec.rows_per_shard} are more than {_MOST_SHARDS} shards"
        )
    compression = spec.identity.compression
    quantised = compression is not None and compression.quantiser_sha256 is not None
    if quantised != (spec.identity.storage_dtype == INT8):
        raise fields.corrupt(f"'storage_dtype' is {spec.identity.storage_dtype!r}, which does not fit its compression")
    if compression is not None and spec.n_features != (compression.n_components or compression.source_features):
        raise fields.corrupt(f"'n_features' is {spec.n_features}, which does not fit its compression")
    for kind in spec.identity.token_kinds:
        values = prod(spec.row_shape(kind))
        if not 0 < values <= _MOST_VALUES_PER_ROW:
            raise fields.corrupt(f"a row of {kind!r} has {values} values, and must have 1..{_MOST_VALUES_PER_ROW}")


def require_same(stored: FeatureSetSpec, wanted: FeatureSetSpec) -> None:
    """Refuse to let two identities share one feature set.

    Raises:
        IdentityMismatchError: names every field that differs, with both values.
    """
    differing = differences(stored, wanted)
    if differing:
        lines = "; ".join(f"{path}: stored {left!r}, this run {right!r}" for path, left, right in differing)
        raise IdentityMismatchError(
            f"this run would mix two feature sets in one place ({lines}). Use another --store, or the stored settings."
        )


def differences(a: FeatureSetSpec, b: FeatureSetSpec) -> list[tuple[str, Any, Any]]:
    """The dotted name of every field that differs, with both values."""
    # Through JSON, which knows no tuples.
    left, right = (json.loads(canonical_json(spec.to_json())) for spec in (a, b))
    return _differences(left, right, "")


def _differences(left: Any, right: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found = []
        for key in sorted(set(left) | set(right)):
            found += _differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if left == right else [(path, left, right)]
