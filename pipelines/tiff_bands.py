"""TIFF files as remote sensing writes them: three bands become RGB, any other number is told by a reason of its own."""

import ctypes
import logging
import warnings
from pathlib import Path

from PIL import ImageFile, TiffImagePlugin

_WIDTH, _HEIGHT, _PLANES, _SEPARATE = 256, 257, 284, 2
_SAMPLES, _BITS, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 277, 258, 262, 338, 339
_GRAY, _RGB = (0, 1), 2
_UNSIGNED = 1
_ALPHA = (1, 2)
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}
_MAPS = Path("/proc/self/maps")


class UnsupportedBandsError(Exception):
    """A sound TIFF whose bands are no picture that can be shown."""


class BandedTiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF, and besides it three bands of 8 or 16 bits whose colours the file does not state.

    GDAL and rasterio write three bands of 16 bits as gray with two more samples; viewers show them as RGB, and so they
    are read here.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))
        kinds, extra = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)), tags.get(_EXTRA_SAMPLES, ())
        if tags.get(_PHOTOMETRIC, 0) in _GRAY and samples > 1 and not (samples == 2 and extra and extra[0] in _ALPHA):
            if samples != 3 or set(bits) not in ({8}, {16}) or set(kinds) != {_UNSIGNED}:
                raise UnsupportedBandsError(_described(samples, bits, kinds))
            tags[_PHOTOMETRIC] = _RGB
            if _EXTRA_SAMPLES in tags:
                del tags[_EXTRA_SAMPLES]
        elif isinstance(samples, int) and samples > TiffImagePlugin.MAX_SAMPLESPERPIXEL:
            raise UnsupportedBandsError(_described(samples, bits, kinds))
        super()._setup()
        if tags.get(_PLANES, 1) == _SEPARATE and 16 in bits and not self.use_load_libtiff:
            self._leave_planes_to_libtiff()

    def _leave_planes_to_libtiff(self) -> None:
        """Let libtiff read uncompressed planes of 16 bits, of which Pillow's own reader takes the low bytes."""
        width, height = self.tag_v2[_WIDTH], self.tag_v2[_HEIGHT]
        raw_mode = "RGBX;16N" if len(self.tag_v2.get(_BITS, ())) > 3 else "RGB;16N"
        raw_mode = "RGBA;16N" if self.mode == "RGBA" else raw_mode
        self.use_load_libtiff = True
        self.tile = [ImageFile._Tile("libtiff", (0, 0, width, height), 0, (raw_mode, "raw", False, self.tag_v2.offset))]


def _described(samples: object, bits: tuple[object, ...], kinds: tuple[object, ...]) -> str:
    kind = _KINDS.get(kinds[0], "unknown") if kinds and isinstance(kinds[0], int) else "unknown"
    return f"{samples} bands of {bits[0] if bits else '?'} bits, {kind}; save three bands as RGB"


def silence_decoders() -> None:
    """Keep Pillow and libtiff from writing lines of their own to stderr: they name no file, and a reason code says it.

    libtiff's handlers are the process's own and print from C; they are taken off where the library can be found.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        lines = _MAPS.read_text().splitlines()
        paths = {line.split()[-1] for line in lines if "libtiff" in line.rpartition("/")[2]}
        for path in paths:
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError, IndexError):
        return  # another system, or another build of Pillow: the lines stay, and the codes are the same
