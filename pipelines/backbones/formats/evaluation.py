"""How the authors of each family bring an image to its network when they evaluate it, and which of their files says so.

timm has values of its own for many of these models, such as a crop of .9 for BEiT and DeiT and of 1 for DINOv2. What
the authors' own evaluation does is the default here, for their files and for timm's names of the same models.
"""

import re
from dataclasses import dataclass

_OF_256 = 224 / 256


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How an image becomes a network's input.

    Attributes:
        source: the repository and the file that says so; empty where its authors publish no evaluation.
        share: the side of the input over that of the resized view whose centre it is.
        whole_from: inputs with a longer side of so many pixels are cut from a view that just covers them, or None.
        interpolation: `bicubic` or `bilinear`.
        squash: the whole view is resized to the input, whatever its proportions, and nothing is cut off.
    """

    source: str
    share: float = _OF_256
    whole_from: int | None = None
    interpolation: str = "bicubic"
    squash: bool = False

    def crop_fraction(self, image_size: tuple[int, int]) -> float:
        """The side of the centre crop over that of what it is cut from.

        Args:
            image_size: (height, width) of the input in pixels.
        """
        if self.whole_from is not None and max(image_size) >= self.whole_from:
            return 1.0
        return self.share

    @property
    def text(self) -> str:
        """The rule for people."""
        if self.squash:
            return f"squash, {self.interpolation}"
        share = f"{self.share:.3f}".rstrip("0").rstrip(".")
        whole = "" if self.whole_from is None else f", from {self.whole_from} pixels on 1"
        return f"crop {share}{whole}, {self.interpolation}"


MAE = Evaluation(source="facebookresearch/mae, util/datasets.py", whole_from=225)
SIMMIM = Evaluation(source="microsoft/SimMIM, data/data_finetune.py")
MOCO_V3 = Evaluation(source="facebookresearch/moco-v3, main_lincls.py", interpolation="bilinear")
DINO = Evaluation(source="facebookresearch/dino, eval_knn.py")
IBOT = Evaluation(source="bytedance/ibot, evaluation/eval_knn.py")
DINOV2 = Evaluation(source="facebookresearch/dinov2, dinov2/data/transforms.py")
DINOV3 = Evaluation(source="facebookresearch/dinov3, dinov3/data/transforms.py")
BEIT = Evaluation(source="microsoft/unilm, beit/datasets.py", whole_from=384)
BEIT_V2 = Evaluation(source="microsoft/unilm, beit2/datasets.py", whole_from=384)
DEIT = Evaluation(source="facebookresearch/deit, datasets.py and main.py")
CLIP = Evaluation(source="openai/CLIP, clip/clip.py", share=1.0)
SCALE_MAE = Evaluation(
    source="bair-climate-initiative/scale-mae, scalemae/dataloaders/utils.py (fMoW)",
    share=1.0,
    interpolation="bilinear",
)
# The repository holds pre-training alone. Nothing is cut off but what the proportions make necessary.
IJEPA = Evaluation(source="", share=1.0)
_TORCHVISION = "pytorch/vision, torchvision/models/vision_transformer.py"
TORCHVISION = Evaluation(source=f"{_TORCHVISION}, IMAGENET1K_V1", interpolation="bilinear")
TORCHVISION_L16 = Evaluation(
    source=f"{_TORCHVISION}, ViT_L_16 IMAGENET1K_V1", share=224 / 242, interpolation="bilinear"
)
TORCHVISION_SWAG = Evaluation(source=f"{_TORCHVISION}, IMAGENET1K_SWAG", share=1.0)

EVALUATIONS = {
    "mae": MAE,
    "simmim": SIMMIM,
    "dino": DINO,
    "ibot": IBOT,
    "dinov2": DINOV2,
    "dinov3": DINOV3,
    "mocov3": MOCO_V3,
    "beit": BEIT,
    "beit2": BEIT_V2,
    "deit": DEIT,
    "clip": CLIP,
    "scale-mae": SCALE_MAE,
    "ijepa": IJEPA,
    "torchvision": TORCHVISION,
    "torchvision L/16": TORCHVISION_L16,
    "torchvision SWAG": TORCHVISION_SWAG,
}
# What timm's name of a model matches, tag and all, where the model is of one of these families.
_OF_TIMM = (
    (r"beitv2_", BEIT_V2),
    (r"beit_", BEIT),
    (r"deit3?_", DEIT),
    (r"vit_\w+_dinov3(_qkvb)?\.(lvd1689m|sat493m)$", DINOV3),
    (r"vit_\w+_dinov2\.lvd142m$", DINOV2),
    (r"vit_\w+\.dino$", DINO),
    (r"vit_\w+\.mae$", MAE),
    (r"vit_\w+\.in\d+k_ijepa$", IJEPA),
    (r"vit_\w+_clip_\w+\.openai$", CLIP),
)


def of_timm(name: str) -> Evaluation | None:
    """The evaluation of the authors of a model of timm, or None where timm's own configuration is all there is.

    Args:
        name: timm's name, with its tag.
    """
    return next((evaluation for pattern, evaluation in _OF_TIMM if re.match(pattern, name)), None)
