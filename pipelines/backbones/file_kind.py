"""What a file that is no checkpoint is instead, as its first bytes tell."""

import zipfile
from pathlib import Path

EMPTY, TEXT = "an empty file", "a text file"
POINTER = "a Git LFS pointer to one, which `git lfs pull` replaces by the file"
CUT_SHORT = "an archive that ends early, as of a broken download"
_HEAD_BYTES = 512
_LFS_POINTER, _ARCHIVE = b"version https://git-lfs", b"PK\x03\x04"
# Printable, or white space, or a part of a letter in UTF-8.
_TEXT_BYTES = {*range(0x20, 0x7F), *b"\t\n\r\f", *range(0xC2, 0xF5), *range(0x80, 0xC0)}


def kind_of(path: Path) -> str:
    """What a file that is no checkpoint is instead, as its first bytes tell."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return EMPTY
    if head.startswith(_LFS_POINTER):
        return POINTER
    if head.startswith(_ARCHIVE) and not zipfile.is_zipfile(path):
        return CUT_SHORT
    if head[:1] == b"\x80":
        return "a pickle that torch.save did not write"
    return TEXT if all(byte in _TEXT_BYTES for byte in head) else "bytes of another format"
