"""Which of the published key formats a file is in."""

from collections.abc import Sequence

from pipelines.backbones.formats.beit import BEIT, BEIT_V2
from pipelines.backbones.formats.clip import CLIP
from pipelines.backbones.formats.dino import DINO, IBOT
from pipelines.backbones.formats.dinov2 import DINOV2
from pipelines.backbones.formats.dinov3 import DINOV3
from pipelines.backbones.formats.form import KeyFormat, Published, UnsupportedFormError, VitForm
from pipelines.backbones.formats.ijepa import IJEPA
from pipelines.backbones.formats.mae import MAE
from pipelines.backbones.formats.mocov3 import MOCO_V3
from pipelines.backbones.formats.nearness import Nearness, nearest_format
from pipelines.backbones.formats.plain import NEEDS as PLAIN_NAMES
from pipelines.backbones.formats.plain import has_head
from pipelines.backbones.formats.scale_mae import SCALE_MAE
from pipelines.backbones.formats.simmim import SIMMIM
from pipelines.backbones.formats.torchvision_vit import TORCHVISION
from pipelines.backbones.formats.transformers_folder import MODEL_TYPES, TRANSFORMERS
from pipelines.backbones.weight_files import BackboneError

# In the order of asking: what shares its names with others comes behind what has names of its own.
FORMATS: Sequence[KeyFormat] = (
    *TRANSFORMERS,
    CLIP,
    SIMMIM,
    BEIT,
    BEIT_V2,
    TORCHVISION,
    DINOV3,
    DINOV2,
    SCALE_MAE,
    MOCO_V3,
    MAE,
    IJEPA,
    IBOT,
    DINO,
)
FAMILIES = {key_format.family: key_format for key_format in FORMATS}
_NAMES_TOLD = 3
_SIZE_WORDS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_DEIT_WIDTHS = frozenset({192, 384, 768})
# Beside an image tower: the scale of the similarities that image-text models are trained with.
_OF_IMAGE_TEXT = frozenset({"logit_scale", "logit_bias"})
# Below this a file is no ViT that is known here, and a family's name would mislead.
_LEAST_LIKE = 0.25
# Part of the names of every ViT of transformers, and of none elsewhere.
_EMBEDDING_OF_TRANSFORMERS = ".patch_embedding"


def recognise(published: Published, *, file: str, family: str | None = None) -> tuple[KeyFormat, VitForm]:
    """The format of a file, and the network that runs it.

    Args:
        published: names and shapes of the file.
        file: its name, for errors.
        family: the only one to try, where the user named it.

    Raises:
        BackboneError: in no known format, not in that of the family, or with a configuration that is not supported.
    """
    for key_format in FORMATS if family is None else (FAMILIES[family],):
        try:
            form = key_format.recognise(published, named=family is not None)
        except UnsupportedFormError as error:
            raise BackboneError(f"weights {file} are not supported: {error}.") from error
        except (IndexError, KeyError):  # names of this format over shapes of something else
            continue
        if form is not None and family is None:
            _refuse_image_text(published, key_format, file)
        if form is not None:
            return key_format, form
    _refuse_other_folders(published, file)
    if family is None and published.has(*PLAIN_NAMES) and has_head(published):
        raise BackboneError(
            f"weights {file} classify under timm's names, which do not say how images are normalised; give timm's name "
            f"with --model, {_names_by_mean(published)}."
        )
    tried = [form for form in FORMATS if form.names] if family is None else [FAMILIES[family]]
    refusal = _refusal(nearest_format(published, tried), published, family)
    raise BackboneError(
        f"weights {file} are {refusal} `vitrine models` lists the families; for another ViT give timm's name with "
        "--model."
    )


def _names_by_mean(published: Published) -> str:
    """Which names of the file's own size stand for which mean: nothing else in such a file tells them apart."""
    embedding = published.shapes["patch_embed.proj.weight"]
    size = f"{_SIZE_WORDS.get(embedding[0], 'base')}_patch{embedding[-1]}_224"
    deit = f"deit_{size}.fb_in1k, or " if embedding[0] in _DEIT_WIDTHS else ""
    return (
        f"such as vit_{size}.augreg_in21k for a mean and std of 0.5, or for ImageNet's {deit}mae, MAE fine-tuned; "
        "--arg mean=M,M,M --arg std=S,S,S states others"
    )


def _refusal(nearest: Nearness, published: Published, family: str | None) -> str:
    """Of which family a file is not, and which of its tensors say so."""
    if family is None and nearest.score < _LEAST_LIKE:
        return f"of no family known here, and near none: their names are {_told(list(published.shapes))}."
    what = "of no family known here; the nearest is" if family is None else "not of the family"
    parts = [
        f"{verb} {_told(names)}"
        for verb, names in (
            ("lacks", nearest.lacking),
            ("does not know", nearest.unknown),
            ("has other shapes in", nearest.other_shapes),
        )
        if names
    ]
    reason = ", ".join(parts) or "has the names, but others or other shapes beside"
    if not nearest.lacking and nearest.unknown and not nearest.other_shapes:
        reason = f"has the names, but others beside: {_told(nearest.unknown)}"
    return (
        f"{what} {nearest.family!r}, for which it {reason} ({nearest.explained} of {len(published.shapes)} tensors are "
        "as there)."
    )


def _refuse_image_text(published: Published, key_format: KeyFormat, file: str) -> None:
    """Refuse the tower of an image-text model under plain names: its images are normalised in another way.

    Raises:
        BackboneError: such a tower.
    """
    beside = {name.split(".")[-1] for name in published.outside}
    if key_format.names and key_format is not CLIP and beside & _OF_IMAGE_TEXT:
        raise BackboneError(
            f"weights {file} are the image tower of an image-text model, of which the file does not say how images are "
            "normalised; give timm's name with --model, such as vit_base_patch16_siglip_224.webli, or the family whose "
            f"names it has, --model {key_format.family}, with --arg mean=... and --arg std=...."
        )


def _refuse_other_folders(published: Published, file: str) -> None:
    """A folder of transformers that is none of a ViT known here, or whose config.json is not there."""
    model_type = published.config.get("model_type")
    if model_type is not None:
        raise BackboneError(
            f"weights {file} are not supported: config.json says model_type {model_type!r}, which is not one of "
            f"{', '.join(MODEL_TYPES)}; for another ViT give timm's name with --model."
        )
    if any(_EMBEDDING_OF_TRANSFORMERS in f".{name}" for name in published.shapes):
        raise BackboneError(
            f"weights {file} have transformers' names, and no config.json with a model_type stands beside them; fetch "
            "the whole folder, and give it with --weights."
        )


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    return ", ".join(repr(name) for name in names[:_NAMES_TOLD]) + more
