"""The checkpoints that are known by name: what each is, whose, under which license, and where its file is."""

from collections.abc import Iterator
from dataclasses import dataclass

# (letter of the size, patch) -> (width, depth), as the literature has them.
_SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "h": (1280, 32), "g": (1536, 40)}
_MAE = "https://dl.fbaipublicfiles.com/mae"
_DINO = "https://dl.fbaipublicfiles.com/dino"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"


@dataclass(frozen=True, kw_only=True)
class KnownCheckpoint:
    """A checkpoint that its authors publish.

    Attributes:
        name: as `vitrine models` lists it.
        family: its key format.
        source: the repository that it comes from.
        license: as the repository states it; None where that is not known here.
        where: where to get the file.
        digest: the first digits of the file's digest, where one is published: `md5:...` or `sha256:...`.
        patch: side of a patch in pixels.
        width, depth: features of a token and blocks.
        native_size: side of the square input that it was trained for, in pixels.
        normalisation: `imagenet`, or the mean and standard deviation.
    """

    name: str
    family: str
    source: str
    license: str | None
    where: str
    digest: str | None = None
    patch: int
    width: int
    depth: int
    native_size: int
    normalisation: str = "imagenet"


def _mae() -> Iterator[KnownCheckpoint]:
    digests = {"b": "md5:8cad7c", "l": "md5:b8b06e", "h": "md5:9bdbb0"}
    for letter, size, patch in (("b", "base", 16), ("l", "large", 16), ("h", "huge", 14)):
        width, depth = _SIZES[letter]
        yield KnownCheckpoint(
            name=f"mae-{letter}{patch}",
            family="mae",
            source="facebookresearch/mae",
            license="CC-BY-NC-4.0",
            where=f"{_MAE}/pretrain/mae_pretrain_vit_{size}.pth",
            digest=digests[letter],
            patch=patch,
            width=width,
            depth=depth,
            native_size=224,
        )
    for file, letter in (("base", "b"), ("large", "l"), ("large_ganloss", "l")):
        width, depth = _SIZES[letter]
        yield KnownCheckpoint(
            name=f"mae-{letter}16-visualize{'-ganloss' if 'gan' in file else ''}",
            family="mae",
            source="facebookresearch/mae",
            license="CC-BY-NC-4.0",
            where=f"{_MAE}/visualize/mae_visualize_vit_{file}.pth",
            patch=16,
            width=width,
            depth=depth,
            native_size=224,
        )


def _dino() -> Iterator[KnownCheckpoint]:
    for folder, letter, patch in (
        ("dino_deitsmall16_pretrain", "s", 16),
        ("dino_deitsmall8_pretrain", "s", 8),
        ("dino_vitbase16_pretrain", "b", 16),
        ("dino_vitbase8_pretrain", "b", 8),
    ):
        yield KnownCheckpoint(
            name=f"dino-{letter}{patch}",
            family="dino",
            source="facebookresearch/dino",
            license="Apache-2.0",
            where=f"{_DINO}/{folder}/{folder}.pth",
            patch=patch,
            width=_SIZES[letter][0],
            depth=12,
            native_size=224,
        )


def _dinov2() -> Iterator[KnownCheckpoint]:
    for letter in ("s", "b", "l", "g"):
        for registers in (0, 4):
            width, depth = _SIZES[letter]
            file = f"dinov2_vit{letter}14_{f'reg{registers}_' if registers else ''}pretrain.pth"
            yield KnownCheckpoint(
                name=f"dinov2-{letter}14{f'-reg{registers}' if registers else ''}",
                family="dinov2",
                source="facebookresearch/dinov2",
                license="Apache-2.0",
                where=f"{_DINOV2}/dinov2_vit{letter}14/{file}",
                patch=14,
                width=width,
                depth=depth,
                native_size=518,
            )


def _others() -> Iterator[KnownCheckpoint]:
    yield KnownCheckpoint(
        name="simmim-b16",
        family="simmim",
        source="microsoft/SimMIM",
        license="MIT",
        where="Google Drive, file 1dJn6GYkwMIcoP3zqOEyW1_iQfpBi8UOw (simmim_pretrain__vit_base__img224__800ep.pth)",
        patch=16,
        width=768,
        depth=12,
        native_size=224,
    )
    yield KnownCheckpoint(
        name="torchvision-b16",
        family="torchvision",
        source="pytorch/vision",
        license="BSD-3-Clause",
        where="https://download.pytorch.org/models/vit_b_16-c867db91.pth",
        digest="sha256:c867db91",
        patch=16,
        width=768,
        depth=12,
        native_size=224,
    )


CATALOGUE = (*_mae(), *_others(), *_dino(), *_dinov2())
_BY_NAME = {entry.name: entry for entry in CATALOGUE}


def known(name: str) -> KnownCheckpoint | None:
    """The checkpoint of a name, or None."""
    return _BY_NAME.get(name)


def of_digest(sha256: str) -> KnownCheckpoint | None:
    """The checkpoint whose file has this sha256, as far as its publisher tells it, or None."""
    for entry in CATALOGUE:
        kind, _, digits = (entry.digest or "").partition(":")
        if kind == "sha256" and sha256.startswith(digits):
            return entry
    return None
