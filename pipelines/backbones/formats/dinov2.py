"""DINOv2 (facebookresearch/dinov2), with and without registers, as published and as timm renames it."""

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
)
from pipelines.backbones.formats.plain import NAMES

# Blocks in chunks are of training checkpoints; the mixed names `w12` and `w3` of the giant's.
_RENAMES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_BLOCK = ("blocks.0.ls1.gamma", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
_LEFT_OUT = ("mask_token", "head.", "dino_head.", "ibot_head.")


def read(published: Published) -> VitForm | None:
    """A ViT with layer scale `ls1.gamma` and learned positions."""
    shapes: dict[str, tuple[int, ...]] = {DINOV2.renamed(name): shape for name, shape in published.shapes.items()}
    renamed = Published(shapes=shapes)
    if not renamed.has(*_BLOCK):
        return None
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    # timm stores the class token's position in the token where there are registers.
    class_position = 0 if "reg_token" in published.shapes else 1
    grid = square_grid(shapes["pos_embed"][1] - class_position)
    width, patch = shapes["patch_embed.proj.weight"][0], shapes["patch_embed.proj.weight"][2]
    if grid is None:
        return None
    gated = shapes["blocks.0.mlp.fc1.weight"][0] != shapes["blocks.0.mlp.fc2.weight"][1]
    return VitForm(
        family="dinov2",
        title=f"DINOv2 {size_name(width, patch)}{f' with {registers} registers' if registers else ''}",
        width=width,
        depth=count_blocks(renamed),
        heads=heads_of(width),
        mlp_width=shapes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        registers=registers,
        options={
            "init_values": 1.0,
            **({"no_embed_class": True} if registers else {}),
            **({"mlp_layer": "SwiGLUPacked", "act_layer": "silu"} if gated else {}),
        },
        positions="dinov2-registers" if registers else "dinov2",
        evaluation=evaluation.DINOV2,
    )


def _finish(state: State, form: VitForm) -> State:
    """With registers timm adds no position to the class token, so its own is added to it beforehand."""
    if form.registers and state["pos_embed"].shape[1] > form.grid[0] * form.grid[1]:
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


DINOV2 = KeyFormat(
    family="dinov2",
    needs=("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight"),
    names=(*NAMES, "blocks.0.ls1.gamma", "blocks.0.ls2.gamma"),
    read=read,
    renames=_RENAMES,
    left_out=_LEFT_OUT,
    finish=_finish,
)
