"""DINOv3 (facebookresearch/dinov3): rotary positions, and registers called storage tokens."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, State, VitForm, count_blocks, heads_of, size_name
from pipelines.backbones.formats.plain import NAMES

_HEADS = {1280: 20, 4096: 32}
# Of the sizes with a gated perceptron, the 7B alone has no plus in its name.
_WITHOUT_PLUS = 4096
_RENAMES = (
    (r"^storage_tokens$", "reg_token"),
    # In bfloat16, as the models were trained; timm and transformers compute their own in float32.
    (r"^rope_embed\.periods$", "rope.periods"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_LEFT_OUT = ("mask_token", "local_cls_norm.", "head.")
_NAMES = (
    *(name for name in NAMES if name != "pos_embed"),
    *("storage_tokens", "blocks.0.ls1.gamma", "blocks.0.ls2.gamma"),
)
_QKV_BIAS = ".attn.qkv.bias"


def _read(published: Published) -> VitForm | None:
    shapes = published.shapes
    width, patch = shapes["patch_embed.proj.weight"][0], shapes["patch_embed.proj.weight"][2]
    registers = shapes["storage_tokens"][1]
    gated = "blocks.0.mlp.w1.weight" in shapes
    first = shapes.get("blocks.0.mlp.w1.weight" if gated else "blocks.0.mlp.fc1.weight")
    if first is None:
        return None
    plus = gated and width != _WITHOUT_PLUS
    return VitForm(
        family="dinov3",
        title=f"DINOv3 {size_name(width, patch, plus=plus)} with {registers} registers",
        network="Eva",
        width=width,
        depth=count_blocks(published),
        heads=_HEADS.get(width, heads_of(width)),
        mlp_width=first[0],
        patch=patch,
        grid=(256 // patch, 256 // patch),
        plus=plus,
        registers=registers,
        norm_eps=1e-5,
        options={
            "qkv_bias": f"blocks.0{_QKV_BIAS}" in shapes,
            "init_values": 1.0,
            "rope_type": "dinov3",
            "rope_temperature": 100,
            "rope_rotate_half": True,
            "use_rot_pos_emb": True,
            "use_abs_pos_emb": False,
            # Aligned, timm keeps gate and value apart, as the file does.
            **({"swiglu_mlp": True, "swiglu_align_to": 8} if gated else {}),
        },
        positions="rotary",
        evaluation=evaluation.DINOV3,
        assumed=(
            "256 x 256 pixels and ImageNet's mean and std, as of LVD-1689M's models; those of SAT-493M take others",
        ),
    )


def _finish(state: State, _form: VitForm) -> State:
    """The network has biases of queries and values alone; those of keys are masked in training and do nothing."""
    split: State = {}
    for name, tensor in state.items():
        if name.endswith(_QKV_BIAS):
            block = name.removesuffix(_QKV_BIAS)
            split[f"{block}.attn.q_bias"], _, split[f"{block}.attn.v_bias"] = tensor.chunk(3)
        elif not name.endswith(".bias_mask"):
            split[name] = tensor
    return split


DINOV3 = KeyFormat(
    family="dinov3",
    needs=("cls_token", "storage_tokens", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"),
    names=_NAMES,
    read=_read,
    renames=_RENAMES,
    left_out=_LEFT_OUT,
    finish=_finish,
)
