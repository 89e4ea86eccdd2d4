"""The arithmetic of compressed tokens: a projection, a quantiser, or the one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int8

from feature_store.identity import TokenKind

# Symmetric, so that no level is used by one end alone.
LEVELS = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """The linear map of a PCA.

    Attributes:
        mean: of each feature, subtracted first.
        basis: orthonormal columns, of highest variance first.
    """

    mean: Float32[np.ndarray, " features"]
    basis: Float32[np.ndarray, "features components"]

    def apply(self, tokens: Float[np.ndarray, "*axes features"]) -> Float32[np.ndarray, "*axes components"]:
        """The coordinates of tokens in the basis."""
        # In double precision, so that neither the number of threads nor of rows shows in the rounded result.
        centred = tokens.astype(np.float64)
        centred -= self.mean
        return (centred @ self.basis.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantiser:
    """Eight bits a value, with an offset and a scale for each feature.

    Attributes:
        offset: the value of level 0.
        scale: the distance of two levels; positive.
    """

    offset: Float32[np.ndarray, " features"]
    scale: Float32[np.ndarray, " features"]

    def encode(self, values: Float[np.ndarray, "*axes features"]) -> Int8[np.ndarray, "*axes features"]:
        """The nearest level of each value; what lies outside gets the outermost."""
        levels = values.astype(np.float32)
        levels -= self.offset
        levels /= self.scale
        np.rint(levels, out=levels)
        return np.clip(levels, -LEVELS, LEVELS, out=levels).astype(np.int8)

    def decode(self, levels: Int8[np.ndarray, "*axes features"]) -> Float32[np.ndarray, "*axes features"]:
        """The value of each level: within half a scale of what was encoded, unless that lay outside."""
        values = levels.astype(np.float32)
        values *= self.scale
        values += self.offset
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """What becomes of the tokens of one layer and kind.

    Attributes:
        projection: comes first; None keeps the features.
        quantiser: comes last; None stores floats.
    """

    projection: Projection | None = None
    quantiser: Quantiser | None = None

    def encode(self, tokens: Float[np.ndarray, "*axes features"], dtype: str) -> np.ndarray[Any, Any]:
        """Tokens as they are stored; a float that overflows `dtype` becomes infinite."""
        values = tokens if self.projection is None else self.projection.apply(tokens)
        if self.quantiser is not None:
            return self.quantiser.encode(values)
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def parameters(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """The arrays of the codec by name, in one order."""
        found: dict[str, Any] = {}
        if self.projection is not None:
            found |= {"mean": self.projection.mean, "basis": self.projection.basis}
        if self.quantiser is not None:
            found |= {"offset": self.quantiser.offset, "scale": self.quantiser.scale}
        return found


Codecs: TypeAlias = Mapping[tuple[int, TokenKind], Codec]
