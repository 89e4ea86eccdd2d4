"""What a published file is: its family and size, and the network of timm that runs it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pipelines.backbones.formats.evaluation import Evaluation
from pipelines.backbones.normalisation import IMAGENET_MEAN, IMAGENET_STD

State = dict[str, torch.Tensor]
Network = Literal["VisionTransformer", "Beit", "Eva", "ScaleMae"]

# By width; the rest of the published ViTs have 64 features a head, and nothing in a file says otherwise.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_FEATURES_PER_HEAD = 64
# Features, and features and blocks, of which published ViTs have heads in different numbers.
_LEAST_DECIDED, _FIRST_SMALL = 384, (768, 8)
_MOST = 1 << 20
_LETTERS = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1152: "So400m", 1280: "H", 1408: "g", 1536: "g", 4096: "7B"}


class UnsupportedFormError(ValueError):
    """What a file's configuration says of the network, and no network here has or none can have."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published file as formats see it: names and shapes, and what stands around them.

    Attributes:
        shapes: of the tensors, by name, wrappers taken off.
        wrapper: the names of the wrappers, outermost first.
        prefix: what stood before the network's names, such as `backbone.`; taken off `shapes`.
        outside: names, or their first parts, of tensors beside the network, such as `decoder` or `model.head`.
        beside: what else stands at the file's top.
        sincos: whether `pos_embed` holds the fixed sine and cosine waves of MAE and its children.
        config, preprocessor: of a folder of transformers, its config.json and preprocessor_config.json.
    """

    shapes: Mapping[str, tuple[int, ...]]
    wrapper: tuple[str, ...] = ()
    prefix: str = ""
    outside: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    sincos: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether the file has a tensor of every name."""
        return all(name in self.shapes for name in names)

    def has_any(self, *prefixes: str) -> bool:
        """Whether the name of a tensor begins with one of these."""
        return any(name.startswith(prefixes) for name in self.shapes)


@dataclass(frozen=True, kw_only=True)
class VitForm:
    """The network that runs a published file, and how images become its input.

    Attributes:
        family: `mae`, `dinov2` ...; the name of the key format.
        title: for people, such as "MAE ViT-B/16".
        network: the class of timm that runs it; `ScaleMae` is a `VisionTransformer` with positions in metres.
        width, depth, heads, mlp_width: of the blocks.
        patch: side of a patch in pixels.
        grid: (height, width) of the patch lattice at the size that the file was trained for.
        plus: whether it is the S+, L+ or H+ of its family.
        registers: register tokens.
        class_token: whether there is one.
        norm_eps: of every LayerNorm.
        options: further arguments of the network's class.
        positions: the rule by which the family resamples its position embedding; a name in `positions.RULES`.
        mean, std: see `Preprocessing`.
        evaluation: how its authors bring an image to the network.
        decoder: blocks and width of a decoder in the file, which is not run here, or None.
        said: arguments of the network, by the names that `--arg` takes, that the file itself says.
        undecided: arguments that the file does not say and in which published families differ: how they differ, and
            then a value of each.
        assumed: what else the file does not say and was taken for granted.
    """

    family: str
    title: str
    network: Network = "VisionTransformer"
    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    grid: tuple[int, int]
    plus: bool = False
    registers: int = 0
    class_token: bool = True
    norm_eps: float = 1e-6
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    evaluation: Evaluation
    decoder: Mapping[str, int] | None = None
    said: frozenset[str] = frozenset()
    undecided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name, such as `dinov2-b14-reg4`."""
        letters = _LETTERS.get(self.width, f"w{self.width}-").lower()
        plus = "plus" if self.plus else ""
        return f"{self.family}-{letters}{self.patch}{plus}{f'-reg{self.registers}' if self.registers else ''}"

    @property
    def norm(self) -> str:
        """The norm that every token passes: `norm`, or `fc_norm`, which the authors give the mean of the patches."""
        return "fc_norm" if self.options.get("global_pool") else "norm"

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input that the file was trained for, in pixels."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch


@dataclass(frozen=True, kw_only=True)
class KeyFormat:
    """One published key format.

    Attributes:
        family: its name.
        needs: names that no file in this format lacks; what stands before all names of a network is off already.
        names: all names of a network of one block, `blocks.0...` for any block, by which files are told to be near.
        claims: whether a file that has them is of this family, where several families use the same names.
        read: the form of such a file, from names and shapes alone; None where the shapes fit no ViT.
        renames: (pattern, replacement) pairs, each tried on every name, that give the names of the network.
        left_out: names that begin so belong to heads, decoders and training, not to the frozen network.
        finish: what renaming cannot do: tensors joined, split or added.
    """

    family: str
    needs: tuple[str, ...]
    names: tuple[str, ...] = ()
    claims: Callable[[Published], bool] = lambda _published: True
    read: Callable[[Published], VitForm | None]
    renames: Sequence[tuple[str, str]] = ()
    left_out: tuple[str, ...] = ()
    finish: Callable[[State, VitForm], State] = lambda state, _form: state

    def lacks(self, published: Published) -> tuple[str, ...]:
        """Which of the names that it needs a file does not have."""
        return tuple(name for name in self.needs if name not in published.shapes)

    def recognise(self, published: Published, *, named: bool = False) -> VitForm | None:
        """The form of a file in this format, or None where it is in another.

        Args:
            published: the file.
            named: the user says that it is of this family, so that names that others use too are enough.
        """
        if self.lacks(published) or not (named or self.claims(published)):
            return None
        return self.read(published)

    def convert(self, state: State, form: VitForm) -> State:
        """A file's tensors under the names of the network; names that mean nothing to it are kept as they are."""
        renamed = {}
        for name, tensor in state.items():
            new = self.renamed(name)
            if not new.startswith(self.left_out):
                renamed[new] = tensor
        return self.finish(renamed, form)

    def renamed(self, name: str) -> str:
        """The network's name of a tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def with_both(*modules: str) -> tuple[str, ...]:
    """The names of the weight and the bias of each module."""
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


def count_blocks(published: Published, pattern: str = r"blocks\.(\d+)\.") -> int:
    """Transformer blocks of a file: one more than the highest number in its names."""
    numbers = [int(found[1]) for name in published.shapes if (found := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def pooling(published: Published) -> dict[str, str]:
    """What tells a network of timm that its final norm is `fc_norm`, where a file has it in place of `norm`."""
    return {"global_pool": "avg"} if published.has("fc_norm.weight") and not published.has("norm.weight") else {}


def heads_of(width: int) -> int:
    """Heads of a ViT of so many features, as most published ones have them."""
    return _HEADS.get(width, max(1, width // _FEATURES_PER_HEAD))


def heads_undecided(width: int, depth: int) -> dict[str, tuple[str, ...]]:
    """What a file in nobody's own form leaves open about heads; see `VitForm.undecided`."""
    if width == _LEAST_DECIDED:
        return {"num_heads": ("6 of DeiT, DINO and DINOv2, 12 of MoCo v3", "6", "12")}
    if (width, depth) == _FIRST_SMALL:
        return {"num_heads": ("12 of ViT-B, 8 of the ViT-S that timm had first", "12", "8")}
    return {}


def square_grid(n_patches: int) -> tuple[int, int] | None:
    """(height, width) of a square grid of so many patches, or None where there is none."""
    # A file without a position for any patch may lack the class token's as well.
    side = math.isqrt(max(n_patches, 0))
    return (side, side) if side * side == n_patches and side else None


def whole(value: object) -> int:
    """A positive whole number as a configuration has it, or 0 for anything else."""
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST else 0


def size_name(width: int, patch: int, *, plus: bool = False) -> str:
    """The name by which the literature calls a size, such as ViT-B/16, or ViT-H+/16 with a wider perceptron."""
    return f"ViT-{_LETTERS.get(width, str(width))}{'+' if plus else ''}/{patch}"
