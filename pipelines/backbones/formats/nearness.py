"""How near a file is to a key format that it is not in, and which tensors keep it from being in it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.backbones.formats.form import KeyFormat, Published, square_grid

_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")
_EMBEDDING = "patch_embed.proj.weight"
# (rows, columns ...) of tensors under the network's names, in widths; None for what a file is free to have.
_WIDTHS: dict[str, tuple[int | None, ...]] = {
    "blocks.0.norm1.weight": (1,),
    "blocks.0.norm2.weight": (1,),
    "blocks.0.attn.qkv.weight": (3, 1),
    "blocks.0.attn.qkv.bias": (3,),
    "blocks.0.attn.proj.weight": (1, 1),
    "blocks.0.mlp.fc1.weight": (None, 1),
    "blocks.0.mlp.fc2.bias": (1,),
    "norm.weight": (1,),
}
_POSITIONS, _CLASS_TOKEN, _REGISTERS = "pos_embed", "cls_token", "reg_token"
# CLIP's positions are a matrix; all others stand in a batch of one.
_WITHOUT_BATCH = "positional_embedding"
_IMAGE_CHANNELS = 3
_EMBEDDING_DIMENSIONS = 4


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """What a file shares with a format, and what not.

    Attributes:
        family: the format's.
        score: the share of the format's names that the file has, times the share of the file that the format explains.
        explained: how many of the file's tensors have a name and a shape of the format.
        lacking: names of the format that the file does not have.
        unknown: names of the file that the format does not have.
        other_shapes: names of both, with the shape in the file and the shape that is needed.
    """

    family: str
    score: float
    explained: int
    lacking: tuple[str, ...]
    unknown: tuple[str, ...]
    other_shapes: tuple[str, ...]


def nearest_format(published: Published, formats: Sequence[KeyFormat]) -> Nearness:
    """The format that explains most of a file and misses least in it; of equals one that claims such files."""
    near = [(_nearness(published, key_format), key_format.claims(published)) for key_format in formats]
    return max(near, key=lambda pair: (pair[0].score, pair[1]))[0]


def _nearness(published: Published, key_format: KeyFormat) -> Nearness:
    names = dict.fromkeys((*key_format.needs, *key_format.names))
    of_any_block = {name: _NUMBER.sub("0", name, count=1) for name in published.shapes}
    present = set(of_any_block.values())
    other_shapes = dict(_other_shapes(published, key_format))
    unknown = [
        name
        for name, general in of_any_block.items()
        if general not in names and not key_format.renamed(name).startswith(key_format.left_out)
    ]
    explained = len(published.shapes) - len(unknown) - len(other_shapes)
    found = [name for name in names if name in present]
    share = len(found) / max(1, len(names)) * explained / max(1, len(published.shapes))
    return Nearness(
        family=key_format.family,
        score=share,
        explained=explained,
        lacking=tuple(name for name in names if name not in present),
        unknown=tuple(unknown),
        other_shapes=tuple(other_shapes.values()),
    )


def _other_shapes(published: Published, key_format: KeyFormat) -> list[tuple[str, str]]:
    """Names, each with a text that tells the shape in the file and the one that the network needs."""
    renamed = {key_format.renamed(name): name for name in published.shapes}
    embedding = published.shapes.get(renamed.get(_EMBEDDING, ""), ())
    if not embedding:
        return []
    found = []
    if len(embedding) != _EMBEDDING_DIMENSIONS or embedding[1] != _IMAGE_CHANNELS:
        sides = embedding[2:] if len(embedding) == _EMBEDDING_DIMENSIONS else ("patch", "patch")
        needed = (embedding[0], _IMAGE_CHANNELS, *sides)
        found.append((renamed[_EMBEDDING], f"{renamed[_EMBEDDING]} ({by(embedding)}, needed {by(needed)})"))
    for new, name in renamed.items():
        widths = _WIDTHS.get(_NUMBER.sub("0", new, count=1))
        shape = published.shapes[name]
        if widths is None:
            continue
        needed = tuple("any" if n is None else n * embedding[0] for n in widths)
        fits = len(shape) == len(needed) and all(n in {"any", side} for n, side in zip(needed, shape, strict=True))
        if not fits:
            found.append((name, f"{name} ({by(shape)}, needed {by(needed)})"))
    positions = renamed.get(_POSITIONS, "")
    if positions in (*key_format.needs, *key_format.names):
        found += _other_positions(published, key_format, positions, embedding[0])
    return found


def _other_positions(published: Published, key_format: KeyFormat, name: str, width: int) -> Iterator[tuple[str, str]]:
    """The position embedding, where it has not one row a patch of a square and one a class token."""
    shape = published.shapes[name]
    n_prefix = int(_CLASS_TOKEN in map(key_format.renamed, (*key_format.needs, *key_format.names)))
    # Beside registers timm keeps the class token's position in the token itself.
    prefixes = {0, n_prefix} if _REGISTERS in published.shapes else {n_prefix}
    batch = () if name == _WITHOUT_BATCH else (1,)
    rows = shape[len(batch)] if len(shape) == len((*batch, "rows", "width")) else 0
    if shape != (*batch, rows, width) or not any(square_grid(rows - n) for n in prefixes):
        needed = (*batch, "(1 + a square)" if n_prefix else "(a square)", width)
        yield name, f"{name} ({by(shape)}, needed {by(needed)})"


def by(shape: Sequence[object]) -> str:
    """A shape with crosses between, such as `768 x 3 x 16 x 16`."""
    return " x ".join(map(str, shape)) or "one number"
