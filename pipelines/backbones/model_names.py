"""Every name that `--model` takes, known without loading torch or timm, so that a mistyped one is refused at once."""

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from feature_store.nearest_name import nearest_names
from pipelines.backbones.catalogue import AUTO, CATALOGUE, NULL

# As in `formats.FAMILIES`, whose modules need torch; a test holds the two together.
FAMILY_NAMES = (
    "beit",
    "beit2",
    "clip",
    "dino",
    "dinov2",
    "dinov3",
    "hf-beit",
    "hf-clip",
    "hf-dinov2",
    "hf-dinov2-with-registers",
    "hf-dinov3-vit",
    "hf-ijepa",
    "hf-siglip",
    "hf-vit",
    "hf-vit-mae",
    "ibot",
    "ijepa",
    "mae",
    "mocov3",
    "scale-mae",
    "simmim",
    "torchvision",
)
_PLAIN_MODULES = {"beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos"}
_LONG_SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


def unknown_model(model: str) -> str | None:
    """What to say of a name that no model has, with the names nearest to it; None for one that may be known.

    Names of timm are looked up in its sources: importing timm to ask it takes some four seconds.
    """
    name = model.split(".", maxsplit=1)[0]
    if model in {NULL, AUTO, *FAMILY_NAMES, *(entry.name for entry in CATALOGUE)}:
        return None
    sources = "\n".join(_timm_sources().values())
    # Names that timm has given up, and still takes, stand in its sources as text alone.
    if not sources or f"def {name}(" in sources or re.search(rf"['\"]{re.escape(name)}['\"]", sources):
        return None
    return refusal(model)


def refusal(model: str) -> str:
    """What to say of a name that no model has."""
    aliases = dict(_aliases())
    # What an author calls a model is one model; other names are a matter of spelling.
    near = [aliases[model]] if model in aliases else nearest_names(model, {*aliases, *_suggested_names()})
    named = " or ".join(repr(name) for name in dict.fromkeys(aliases.get(name, name) for name in near))
    question = f" (did you mean {named}?)" if named else ""
    return (
        f"model {model!r} is not known{question}; `vitrine models` lists the published ones, and any plain ViT of timm "
        "loads by timm's name."
    )


def _suggested_names() -> set[str]:
    """What there is besides the catalogue: of timm the modules that hold plain ViTs alone."""
    found = {NULL, AUTO, *FAMILY_NAMES}
    for module, text in _timm_sources().items():
        if module in _PLAIN_MODULES:
            found.update(re.findall(r"@register_model\s+def (\w+)\(", text))
    return found


def _aliases() -> Iterator[tuple[str, str]]:
    """The names of the catalogue, and what their authors call the same models, each with the catalogue's name."""
    for entry in CATALOGUE:
        yield entry.name, entry.name
        match = re.fullmatch(r"([a-z0-9]+)-([a-z]+)(\d+)(.*)", entry.name)
        if match is not None:
            family, letter, patch, rest = match.groups()
            rest = rest.replace("-", "_").replace("reg4", "reg")
            yield f"{family}_vit{letter}{patch}{rest}", entry.name
            yield f"{family}_vit_{_LONG_SIZES.get(letter, letter)}_patch{patch}{rest}", entry.name


@functools.cache
def _timm_sources() -> Mapping[str, str]:
    """The modules in which timm registers its models, and their text; none where timm is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return {}
    files = sorted((Path(found.origin).parent / "models").glob("*.py"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}
