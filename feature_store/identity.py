"""What makes two feature sets the same.

The digest is taken over everything that can change a stored number, and over nothing else. Batch shape and attention
kernel, which change at most the last bits on some devices, stand beside it in `feature_set.json`; a resumed run takes
them from there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from feature_store.canonical import digest_of
from feature_store.errors import CorruptError, IdentityMismatchError

TokenKind = Literal["patches", "cls", "registers"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("patches", "cls", "registers")
# Raised whenever the extraction code may give other numbers for the same inputs.
EXTRACTION_SCHEMA = 1
STORAGE_DTYPES = ("float16", "float32")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


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

    def to_json(self) -> dict[str, Any]:
        """The identity as JSON values."""
        return {**asdict(self), "layers": list(self.layers), "token_kinds": list(self.token_kinds)}

    @property
    def digest(self) -> str:
        """Sha256 that names the feature set."""
        return digest_of(self.to_json())

    @property
    def computation(self) -> str:
        """Sha256 without layers, kinds and storage: what two requests for the same forward pass share."""
        kept = self.to_json()
        for name in ("layers", "token_kinds", "storage_dtype"):
            del kept[name]
        return digest_of(kept)


@dataclass(frozen=True, kw_only=True)
class FeatureSetSpec:
    """The content of `feature_set.json`: the identity, and the shape of what is stored.

    Attributes:
        identity: what decides the numbers.
        model: the short name that users typed.
        title: what reports call the model.
        n_rows: views, one a row.
        rows_per_shard: a multiple of the rows of a chunk.
        grid: (height, width) of the patch lattice.
        n_features: width of a token.
        n_registers: register tokens of a view, 0 where the model has none.
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
    batch_size: int
    attention_kernel: str

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
        }
        return shapes[kind]

    def to_json(self) -> dict[str, Any]:
        """The content of `feature_set.json`."""
        return {
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "grid": list(self.grid),
            "identity": self.identity.to_json(),
            "digest": self.identity.digest,
            "computation": self.identity.computation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, name: str = "feature_set.json") -> "FeatureSetSpec":
        """Read what `to_json` wrote, perhaps changed by a stranger.

        Raises:
            CorruptError: a field is missing or of the wrong type, or the digest is not that of the identity.
        """
        try:
            stored = dict(value["identity"])
            identity = Identity(
                **{**stored, "layers": tuple(stored["layers"]), "token_kinds": tuple(stored["token_kinds"])}
            )
            height, width = value["grid"]
            spec = cls(
                identity=identity,
                grid=(int(height), int(width)),
                **{name: kind(value[name]) for name, kind in _PLAIN_FIELDS.items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"{name} is not a feature set's record ({error!r}). Restore it, or extract anew."
            ) from error
        if identity.digest != value.get("digest"):
            raise CorruptError(
                f"{name} states digest {value.get('digest')!r}, but its identity has {identity.digest!r}: the file was "
                "changed after it was written. Restore it from a copy, or remove the feature set and extract anew."
            )
        _check_bounds(spec, name)
        return spec


_PLAIN_FIELDS: dict[str, type] = {
    "model": str,
    "title": str,
    "n_rows": int,
    "rows_per_shard": int,
    "n_features": int,
    "n_registers": int,
    "batch_size": int,
    "attention_kernel": str,
}


def _check_bounds(spec: FeatureSetSpec, name: str) -> None:
    identity = spec.identity
    bounds = {
        "n_rows": 1 <= spec.n_rows < 1 << 40,
        "rows_per_shard": 8 <= spec.rows_per_shard < 1 << 24 and spec.rows_per_shard % 8 == 0,
        "grid": all(1 <= side < 1 << 14 for side in spec.grid),
        "n_features": 1 <= spec.n_features < 1 << 20,
        "n_registers": 0 <= spec.n_registers < 1 << 14,
        "storage_dtype": identity.storage_dtype in STORAGE_DTYPES,
        "layers": bool(identity.layers) and all(isinstance(i, int) and 1 <= i < 1 << 14 for i in identity.layers),
        "token_kinds": bool(identity.token_kinds) and set(identity.token_kinds) <= set(TOKEN_KINDS),
    }
    wrong = [key for key, holds in bounds.items() if not holds]
    if wrong:
        raise CorruptError(f"{name} has impossible values in {wrong}. Restore it from a copy, or extract anew.")


def require_same(stored: FeatureSetSpec, wanted: FeatureSetSpec) -> None:
    """Refuse to let two identities share one feature set.

    Raises:
        IdentityMismatchError: names every field that differs, with both values.
    """
    differences = _differences(stored.to_json(), wanted.to_json(), "")
    if differences:
        lines = "; ".join(f"{path}: stored {left!r}, this run {right!r}" for path, left, right in differences)
        raise IdentityMismatchError(
            f"this run would mix two feature sets in one place ({lines}). Use another --store, or the stored settings."
        )


def _differences(left: Any, right: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found = []
        for key in sorted(set(left) | set(right)):
            found += _differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if left == right else [(path, left, right)]
