"""How fast a backbone runs here, beside the fastest matrix product of this machine in the same dtype and run."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch.utils.flop_counter import FlopCounterMode

from pipelines.backbones import Backbone

_GEMM_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_SLOW_S = 0.5
_COMPARED_VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a backbone.

    Attributes:
        compute_dtype: of the forward pass.
        threads: of torch; on a GPU they hardly matter.
        channels_last: the memory layout of images and of the patch embedding.
        compiled: whether the blocks go through `torch.compile`.
    """

    compute_dtype: str
    threads: int
    channels_last: bool = False
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one setting gave.

    Attributes:
        setting: the setting.
        images_per_s: views through the forward pass, the best of all rounds.
        tokens_per_s: tokens of a view, prefix tokens among them, times that.
        flops_per_s: multiplications and additions of the model's matrix products, convolutions and attention.
        peak_flops_per_s: the same of one large matrix product in this dtype and with these threads.
        least_cosine: of any patch token to that of the plain float32 pass.
        failed: why it could not be run; the numbers are then 0.
    """

    setting: Setting
    images_per_s: float = 0.0
    tokens_per_s: float = 0.0
    flops_per_s: float = 0.0
    peak_flops_per_s: float = 0.0
    least_cosine: float = 0.0
    failed: str | None = None

    @property
    def share_of_peak(self) -> float:
        """How much of the machine's matrix products the model makes use of."""
        return self.flops_per_s / self.peak_flops_per_s if self.peak_flops_per_s else 0.0


def settings_to_try(device: str, threads: int, compute_dtypes: Sequence[str]) -> list[Setting]:
    """Every combination that may pay on a device: dtypes, layouts, compiled or not, and numbers of threads.

    Args:
        device: `cpu` or a CUDA device.
        threads: the most to use.
        compute_dtypes: to try.
    """
    counts = sorted({1, max(1, threads // 2), threads}) if device == "cpu" else [threads]
    return [
        Setting(compute_dtype=dtype, threads=count, channels_last=last, compiled=compiled)
        for dtype, count, compiled, last in itertools.product(compute_dtypes, counts, (False, True), (False, True))
        # The layout touches the patch embedding alone, so that one number of threads tells enough.
        if count == threads or not (last or compiled)
    ]


def measure(
    load: Callable[[], Backbone], settings: Sequence[Setting], *, batch_size: int, seconds: float, rounds: int = 3
) -> list[Throughput]:
    """Run a backbone under each setting by turns, and a large matrix product beside each.

    By turns, so that what else the machine does meanwhile falls on all of them; the best of the rounds counts.

    Args:
        load: gives the backbone, a new one with the same weights each time it is called.
        settings: to try.
        batch_size: views of one forward pass.
        seconds: of one setting in one round.
        rounds: how often.
    """
    plain, compiled = load(), load() if any(setting.compiled for setting in settings) else None
    images = _images(plain, batch_size)
    flops_per_image = count_flops(plain, images[:1])
    exact = _patches(_computing_in(plain, "float32"), images[:_COMPARED_VIEWS])
    before = torch.get_num_threads()
    try:
        runs = [_Run(setting, compiled if setting.compiled and compiled else plain) for setting in settings]
        for run in runs:
            run.begin(images, exact)
        for run in itertools.chain.from_iterable([runs] * rounds):
            run.measure(images, seconds)
    finally:
        torch.set_num_threads(before)
    return [run.result(flops_per_image) for run in runs]


def count_flops(backbone: Backbone, images: Float32[torch.Tensor, "1 3 height width"]) -> int:
    """Floating point operations of one image's forward pass: a multiplication and an addition count two."""
    with FlopCounterMode(display=False) as counter:
        backbone.tokens_of(images, [backbone.depth])
    return int(counter.get_total_flops())


def matmul_flops_per_s(compute_dtype: str, device: str) -> float:
    """The most that a square matrix product of this dtype reaches on the device now, over some sizes."""
    dtype, best = getattr(torch, compute_dtype), 0.0
    for side in _GEMM_SIDES[device.split(":", maxsplit=1)[0]]:
        left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
        left @ right
        _finish(device)
        start = time.perf_counter()
        for _ in range(2):
            left @ right
        _finish(device)
        taken_s = (time.perf_counter() - start) / 2
        best = max(best, 2 * side**3 / taken_s)
        if taken_s > _SLOW_S:
            break
    return best


class _Run:
    """One setting, measured round by round."""

    def __init__(self, setting: Setting, backbone: Backbone) -> None:
        self.setting = setting
        self._backbone = _computing_in(backbone, setting.compute_dtype)
        self._images_per_s = self._peak = self._cosine = 0.0
        self._failed: str | None = None

    def begin(self, images: torch.Tensor, exact: torch.Tensor) -> None:
        """Compile where asked to, warm up, and compare the tokens."""
        self._apply()
        if self.setting.compiled:
            for block in self._backbone.module.blocks:
                block.compile()
        try:
            self._backbone.tokens_of(self._laid_out(images), [self._backbone.depth])
            found = _patches(self._backbone, self._laid_out(images)[: len(exact)])
        except Exception as error:  # whatever a compiler raises, one setting that cannot be is no reason to stop
            self._failed = " ".join(str(error).split())[:120] or type(error).__name__
            return
        self._cosine = float(torch.cosine_similarity(found.double(), exact.double(), dim=-1).min())

    def measure(self, images: torch.Tensor, seconds: float) -> None:
        """One round."""
        if self._failed is not None:
            return
        self._apply()
        device = self._backbone.request.device
        self._peak = max(self._peak, matmul_flops_per_s(self.setting.compute_dtype, device))
        laid_out = self._laid_out(images)
        self._backbone.tokens_of(laid_out, [self._backbone.depth])
        _finish(device)
        n_batches, start = 0, time.perf_counter()
        while (taken_s := time.perf_counter() - start) < seconds:
            self._backbone.tokens_of(laid_out, [self._backbone.depth])
            # A GPU is asked for some batches before it is waited for.
            if n_batches % 4 == 3 or device == "cpu":
                _finish(device)
            n_batches += 1
        _finish(device)
        taken_s = time.perf_counter() - start
        self._images_per_s = max(self._images_per_s, n_batches * len(images) / taken_s)

    def result(self, flops_per_image: int) -> Throughput:
        """The best of the rounds."""
        if self._failed is not None:
            return Throughput(setting=self.setting, failed=self._failed)
        tokens = math.prod(self._backbone.grid) + self._backbone.n_registers + int(self._backbone.has_cls)
        return Throughput(
            setting=self.setting,
            images_per_s=self._images_per_s,
            tokens_per_s=self._images_per_s * tokens,
            flops_per_s=self._images_per_s * flops_per_image,
            peak_flops_per_s=self._peak,
            least_cosine=self._cosine,
        )

    def _apply(self) -> None:
        torch.set_num_threads(self.setting.threads)
        layout = torch.channels_last if self.setting.channels_last else torch.contiguous_format
        self._backbone.module.to(memory_format=layout)

    def _laid_out(self, images: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if self.setting.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)


def _computing_in(backbone: Backbone, compute_dtype: str) -> Backbone:
    return replace(backbone, request=replace(backbone.request, compute_dtype=compute_dtype))


def _images(backbone: Backbone, n_views: int) -> Float32[torch.Tensor, "views 3 height width"]:
    generator = torch.Generator().manual_seed(0)
    shape = (n_views, *backbone.preprocessing.image_size, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return backbone.normalise(pixels.to(backbone.request.device)).contiguous()


def _patches(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    return backbone.tokens_of(images, [backbone.depth])[backbone.depth, "patches"]


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def fastest(found: Sequence[Throughput], *, least_cosine: float) -> Throughput | None:
    """The fastest of those that ran and stay as near to float32 as asked for."""
    near: Iterator[Throughput] = (one for one in found if one.failed is None and one.least_cosine >= least_cosine)
    return max(near, key=lambda one: one.images_per_s, default=None)
