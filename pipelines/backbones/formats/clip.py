"""Image towers of CLIP as OpenCLIP and OpenAI name them, under `visual.`; the text tower stays out."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import (
    KeyFormat,
    Published,
    State,
    VitForm,
    count_blocks,
    heads_of,
    size_name,
    square_grid,
    with_both,
)
from pipelines.backbones.normalisation import CLIP_MEAN, CLIP_STD

_BLOCK = r"transformer\.resblocks\.(\d+)\."
_FIRST = "transformer.resblocks.0."
_RENAMES = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (rf"^{_BLOCK}", r"blocks.\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_NAMES = (
    *("class_embedding", "positional_embedding", "conv1.weight", *with_both("ln_pre", "ln_post")),
    *(f"{_FIRST}attn.in_proj_weight", f"{_FIRST}attn.in_proj_bias"),
    *with_both(*(f"{_FIRST}{part}" for part in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"))),
)
# OpenAI's own archives alone hold it beside the towers.
_OF_OPENAI = "input_resolution"
# As timm has it too, for vit_large_patch14_clip_224.laion2b.
_LARGE = (1024, 14)
_HALF_IN_ONE = (
    "mean and std of CLIP: OpenCLIP's ViT-L/14 of LAION-2B looks the same and takes 0.5, which "
    "--arg mean=0.5,0.5,0.5 --arg std=0.5,0.5,0.5 says"
)
_ACTIVATIONS = ("quick_gelu of OpenAI's, gelu of LAION's", "quick_gelu", "gelu")
_LEFT_OUT = ("proj",)


def _read(published: Published) -> VitForm | None:
    shapes = published.shapes
    width, patch = shapes["conv1.weight"][0], shapes["conv1.weight"][2]
    grid = square_grid(shapes["positional_embedding"][0] - 1)
    if grid is None:
        return None
    of_openai = any(name.split(".")[-1] == _OF_OPENAI for name in published.outside)
    return VitForm(
        family="clip",
        title=f"CLIP {size_name(width, patch)}",
        width=width,
        depth=count_blocks(published, _BLOCK),
        heads=heads_of(width),
        mlp_width=shapes[f"{_FIRST}mlp.c_fc.weight"][0],
        patch=patch,
        grid=grid,
        norm_eps=1e-5,
        options={"pre_norm": True, "act_layer": "quick_gelu"},
        positions="timm",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        evaluation=evaluation.CLIP,
        said=frozenset({"act_layer"}) if of_openai else frozenset(),
        undecided={} if of_openai else {"act_layer": _ACTIVATIONS},
        assumed=() if of_openai or (width, patch) != _LARGE else (_HALF_IN_ONE,),
    )


def _finish(state: State, _form: VitForm) -> State:
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"][None]
    return state


CLIP = KeyFormat(
    family="clip",
    needs=(
        "class_embedding",
        "positional_embedding",
        "conv1.weight",
        "ln_pre.weight",
        f"{_FIRST}mlp.c_fc.weight",
    ),
    names=_NAMES,
    read=_read,
    renames=_RENAMES,
    left_out=_LEFT_OUT,
    finish=_finish,
)
