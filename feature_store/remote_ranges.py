"""A range of an object's bytes in bounded memory, also from a server that sends whole objects whatever is asked.

fsspec reads every answer to its end. A server or a proxy that passes over `Range` would so put a whole object into
memory, gigabytes for a few kilobytes. Here the answer is looked at first, and no more of it is read than was asked for.
"""

from typing import Any

from fsspec.asyn import sync

_PARTIAL_CONTENT, _BEYOND_END = 206, 416


class RangeIgnoredError(Exception):
    """The server answered with another part of the object than the one that was asked for."""


def get_range(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    """Bytes `start`:`stop` of an object, fewer where it ends before; at least one byte is asked for.

    Behind S3 and plain HTTP at most so many bytes are read; other clients of fsspec hand over what the server sends.

    Args:
        filesystem: fsspec's.
        path: what it calls the object.
        start, stop: half open.

    Raises:
        RangeIgnoredError: the server sends the whole object, or another part of it.
        OSError: and whatever else the client raises.
    """
    if hasattr(filesystem, "call_s3"):
        return bytes(sync(filesystem.loop, _get_from_s3, filesystem, path, start, stop))
    if "http" in filesystem.protocol:
        return bytes(sync(filesystem.loop, _get_by_http, filesystem, path, start, stop))
    data = bytes(filesystem.cat_file(path, start=start, end=stop))
    if start and len(data) > stop - start:
        raise RangeIgnoredError(path)
    return data[: stop - start]


async def _get_from_s3(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    bucket, key, _ = filesystem.split_path(path)
    answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=_header(start, stop))
    try:
        _require_range(answer["ResponseMetadata"]["HTTPStatusCode"], answer.get("ContentRange"), start)
        return await _read(answer["Body"], stop - start)
    finally:
        answer["Body"].close()


async def _get_by_http(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    headers = {**options.pop("headers", {}), "Range": _header(start, stop), "Accept-Encoding": "identity"}
    async with session.get(filesystem.encode_url(path), headers=headers, **options) as answer:
        if answer.status == _BEYOND_END:
            return b""
        filesystem._raise_not_found_for_status(answer, path)
        _require_range(answer.status, answer.headers.get("Content-Range"), start)
        return await _read(answer.content, stop - start)


def _header(start: int, stop: int) -> str:
    return f"bytes={start}-{stop - 1}"


def _require_range(status: int, content_range: str | None, start: int) -> None:
    # A whole object begins with the bytes that are asked for when those are its first.
    begins_right = content_range.startswith(f"bytes {start}-") if content_range else start == 0
    if not begins_right or (status != _PARTIAL_CONTENT and start):
        raise RangeIgnoredError


async def _read(body: Any, n_bytes: int) -> bytes:
    """The first bytes of a body; fewer where it ends before."""
    parts = []
    left = n_bytes
    while left and (part := await body.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
