"""What an identity and a plan need of a model; a backbone that can run is one of these with a network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.backbones.preprocessing import Preprocessing
from pipelines.backbones.request import BackboneRequest


@dataclass(frozen=True, kw_only=True)
class BackboneDescription:
    """A frozen model as plans and identities record it.

    Attributes:
        request: what it is loaded from.
        preprocessing: how views become its input.
        architecture: name, arguments and the norm that every layer passes, as the identity records them.
        depth: transformer blocks.
        grid: (height, width) of the patch lattice.
        n_features: width of a token.
        n_registers: register tokens, 0 where there are none.
        has_cls: whether there is a class token.
        n_heads: attention heads of a block, 0 where the class token's attention cannot be told.
    """

    request: BackboneRequest
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]
    depth: int
    grid: tuple[int, int]
    n_features: int
    n_registers: int
    has_cls: bool
    n_heads: int = 0

    def to_json(self) -> dict[str, Any]:
        """The description alone as JSON values, of a backbone too."""
        return {
            "request": asdict(self.request),
            "preprocessing": asdict(self.preprocessing),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BackboneDescription":
        """Read what `to_json` gave, after a way through JSON, which knows no tuples."""
        height, width = value["grid"]
        return BackboneDescription(
            **{name: value[name] for name in _PLAIN if name != "grid"},
            request=BackboneRequest.from_json(value["request"]),
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            grid=(height, width),
        )


_PLAIN = ("architecture", "depth", "grid", "n_features", "n_registers", "has_cls", "n_heads")


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """A model as a plan takes it.

    Attributes:
        backbone: its description.
        attention_kernel: that it would run with now: `fused`, `explicit`, or `none` where it has no attention.
    """

    backbone: BackboneDescription
    attention_kernel: str

    @property
    def request(self) -> BackboneRequest:
        """What it is loaded from."""
        return self.backbone.request
