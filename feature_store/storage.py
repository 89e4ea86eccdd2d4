"""How stored tokens differ from computed ones: rounded, and in a derived feature set projected or quantised."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from feature_store.records import Fields

# What an extraction may store; a compressed feature set may store int8 too.
STORAGE_DTYPES = ("float16", "float32")
INT8 = "int8"
# As of every feature set: a stranger's record must not ask for more memory.
_MOST_FEATURES = 1 << 20
_REQUIRED = ("source", "source_features", "fitted_on", "fitted_rows_sha256")
_OPTIONAL = ("n_components", "projection_sha256", "quantiser_sha256")


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How a feature set was made from another one, without model or images; part of its identity.

    Attributes:
        source: digest of the feature set that it was made from.
        source_features: width of its tokens.
        fitted_on: the rows that its parameters were fitted on, in words.
        fitted_rows_sha256: of their numbers.
        n_components: features of a PCA; None where the model's own features are kept.
        projection_sha256: of means and bases of that PCA.
        quantiser_sha256: of offsets and scales of int8; None where floats are stored.
    """

    source: str
    source_features: int
    fitted_on: str
    fitted_rows_sha256: str
    n_components: int | None = None
    projection_sha256: str | None = None
    quantiser_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The compression as JSON values, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def words(self) -> str:
        """What was done, in words."""
        steps = [] if self.n_components is None else [f"PCA to {self.n_components}"]
        return ", ".join([*steps, *([INT8] if self.quantiser_sha256 else [])])


def read_compression(value: Mapping[str, Any], *, name: str, remedy: str) -> Compression:
    """Read what `Compression.to_json` wrote, perhaps changed by a stranger.

    Raises:
        CorruptError: a field is missing, of the wrong type, unknown or impossible.
    """
    fields = Fields(value, name=name, remedy=remedy)
    unknown = sorted(set(value) - {*_REQUIRED, *_OPTIONAL})
    if unknown:
        raise fields.corrupt(f"its compression has {unknown}, which this Vitrine does not know")
    if ("n_components" in value) != ("projection_sha256" in value) or not set(value) & set(_OPTIONAL):
        raise fields.corrupt("its compression names neither a whole PCA nor a quantiser")
    digests = [key for key in value if key.endswith("sha256")]
    for key in ("source", *digests):
        if not re.fullmatch(r"[0-9a-f]{64}", fields.text(key)):
            raise fields.corrupt(f"{key!r} of its compression is no sha256")
    return Compression(
        **{key: fields.text(key) for key in ("source", "fitted_on", *digests)},
        source_features=fields.integer("source_features", least=1, most=_MOST_FEATURES),
        n_components=fields.integer("n_components", least=1) if "n_components" in value else None,
    )
