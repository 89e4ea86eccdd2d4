"""What all tests share: a place of their own, the real images where there are some, and tiny stand-ins.

Nothing here imports torch, timm or Pillow until a test asks for it: the tests of the store and the evaluators also run
where only the core is installed.
"""

import atexit
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pytest

TEST_DATA_VARIABLE = "VITRINE_TEST_DATA"
# Test modules are loaded one by one, not as a package; what stands beside them (`tests.feature_store.samples`) is found
# from the root. At the end, so that a wheel that is installed comes first.
sys.path.append(str(Path(__file__).resolve().parent.parent))

TINY_CLASSES = ("grass", "brick", "water")
TINY_VOID = 255
TINY_SIZE = (64, 48)
TINY_IMAGES_PER_SPLIT = {"train": 16, "test": 8}

# Shapes in signatures are checked here and nowhere else; of a container, Beartype looks at one item. It refuses the
# hint `np.ndarray[Any, Any]`, which mypy --strict asks for, so that one is checked as plain `np.ndarray`.
_SHAPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(hint_overrides=beartype.FrozenDict("
    "{__import__('numpy').ndarray[__import__('typing').Any, __import__('typing').Any]: __import__('numpy').ndarray})))"
)
if importlib.util.find_spec("beartype") is not None:
    jaxtyping.install_import_hook(["feature_store", "evaluators"], _SHAPE_CHECKER)

# A shell starts what runs in the background with SIGINT ignored, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything that reads these when it is imported: no test sees the user's caches, or a network, or a GPU.
_HOME = Path(tempfile.mkdtemp(prefix="vitrine-tests-"))
# At exit, since Hypothesis writes there when pytest itself has finished.
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
_WITH_GPU = os.environ.get("VITRINE_TEST_GPU") == "1"
os.environ.update(
    HOME=str(_HOME),
    XDG_CACHE_HOME=str(_HOME / "cache"),
    XDG_CONFIG_HOME=str(_HOME / "config"),
    HF_HOME=str(_HOME / "huggingface"),
    HF_HUB_OFFLINE="1",
    HYPOTHESIS_STORAGE_DIRECTORY=str(_HOME / "hypothesis"),
    MPLBACKEND="agg",
    OMP_WAIT_POLICY="passive",
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
    TORCH_HOME=str(_HOME / "torch"),
)
if not _WITH_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A machine under load must not fail a test, and one commit gives one verdict; `--hypothesis-profile=explore` looks
# for new examples.
hypothesis.settings.register_profile("steady", deadline=None, database=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, database=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU unless it was asked for."""
    if _WITH_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; VITRINE_TEST_GPU=1 runs it"))


@pytest.fixture(autouse=True)
def _shapes_unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test marked `unchecked_shapes` hand over what signatures forbid, to see what the code itself says."""
    before = jaxtyping.config.jaxtyping_disable
    if request.node.get_closest_marker("unchecked_shapes"):
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images; skips where none is named, fails where the one that is named is not there."""
    named = os.environ.get(TEST_DATA_VARIABLE)
    if not named:
        pytest.skip(f"{TEST_DATA_VARIABLE} names no folder with real images")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"{TEST_DATA_VARIABLE} is {named!r}, which is not a folder; correct it, or unset it to skip")
    return folder.resolve()


@pytest.fixture(scope="session")
def camvid(test_data: Path) -> Path:
    """CamVid in the real images: `train`, `trainannot`, `test`, `testannot` and `dataset.json`."""
    folder = test_data / "camvid"
    if not (folder / "dataset.json").is_file():
        pytest.fail(f"{folder} holds no dataset.json; put CamVid there, or unset {TEST_DATA_VARIABLE} to skip")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A local S3 server over real HTTP; skips where its packages are not installed."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from tests.s3_server import running_s3_server

    with running_s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str) -> Iterator[str]:
    """Where a store may be made, in a bucket of its own; the environment names the server and the credentials."""
    from tests.s3_server import make_bucket, using_endpoint

    with using_endpoint(s3_endpoint):
        yield f"s3://{make_bucket()}/a/store"


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """The architecture of `tiny_weights`: 6 blocks, 64 features, 16-pixel patches, a class token."""
    return "test_vit.r160_in1k"


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, the same in every run, in which every block and every bias matters."""
    return _random_weights(tiny_model, tmp_path_factory.mktemp("tiny_weights"))


@pytest.fixture(scope="session")
def tiny_register_model() -> str:
    """The architecture of `tiny_register_weights`: 8 blocks, a register but no class token, its norm in `fc_norm`."""
    return "test_vit2.r160_in1k"


@pytest.fixture(scope="session")
def tiny_register_weights(tiny_register_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_weights`, for a model without a class token."""
    return _random_weights(tiny_register_model, tmp_path_factory.mktemp("tiny_register_weights"))


def _random_weights(architecture: str, folder: Path) -> Path:
    import timm
    import torch

    generator = torch.Generator().manual_seed(0)
    state = timm.create_model(architecture, pretrained=False, num_classes=0).state_dict()
    for name, tensor in sorted(state.items()):
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            # Biases near 0; the scales of norms and of whole blocks near 1, where timm starts some at 1e-5.
            state[name] = 0.1 * values + (0.0 if name.endswith("bias") else 1.0)
        else:
            state[name] = values / tensor[0].numel() ** 0.5
    path = folder / f"{architecture}.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with masks in the layout of `segmentation:PATH`, PNG and JPEG by turns; copy it before changing it.

    24 images of 64 x 48 pixels, 16 train and 8 test. Three classes differ in colour and texture; the border between
    them is void.
    """
    from PIL import Image

    root: Path = tmp_path_factory.mktemp("tiny_images")
    description = {"name": "tiny", "classes": list(TINY_CLASSES), "void": TINY_VOID, "license": "CC0-1.0"}
    (root / "dataset.json").write_text(json.dumps(description))
    random = np.random.default_rng(0)
    for split, n_images in TINY_IMAGES_PER_SPLIT.items():
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for index in range(n_images):
            pixels, mask = _tiny_scene(random)
            suffix = "png" if index % 2 == 0 else "jpg"
            Image.fromarray(pixels).save(root / split / f"{index:02d}.{suffix}")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{index:02d}.png")
    return root


def _tiny_scene(random: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A half-plane of one class over another, with a disc of the third in it: RGB pixels and their mask."""
    width, height = TINY_SIZE
    y, x = np.mgrid[:height, :width]
    order = random.permutation(3)
    angle, centre = random.uniform(0, 2 * np.pi), random.uniform((16, 12), (48, 36))
    distance = np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2)
    radius = np.hypot(x - centre[0], y - centre[1]) - random.uniform(8, 14)
    mask = np.where(radius < 0, order[2], np.where(distance < 0, order[0], order[1])).astype(np.uint8)
    colours = np.array([[70, 150, 60], [170, 80, 60], [60, 100, 170]])
    textures = np.stack([np.zeros(x.shape), 40.0 * ((x // 4 + y // 3) % 2), 20 * np.sin(y / 2)])
    light = np.take_along_axis(textures, mask[None].astype(np.int64), axis=0)[0] + random.uniform(-15, 15)
    pixels = colours[mask] + light[..., None] + random.normal(0, 8, (height, width, 3))
    mask[(np.abs(radius) < 1) | ((np.abs(distance) < 1) & (radius > 0))] = TINY_VOID
    return pixels.clip(0, 255).astype(np.uint8), mask
