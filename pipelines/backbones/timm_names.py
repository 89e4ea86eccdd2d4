"""From the name of a model of timm to one checkpoint file and one architecture.

Every way ends in a file on this machine, so that there is one loading path and one digest of weights: a local file
with `--weights`, the file inside a package for `demo`, or the file that the hub's cache holds after a download.
"""

import contextlib
import logging
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from pipelines.backbones.architecture import POOLED, require_plain_vit, takes_pooled
from pipelines.backbones.catalogue import DEMO, DEMO_SHA256, DEMO_TITLE
from pipelines.backbones.checkpoint import read_checkpoint
from pipelines.backbones.hub_folder import WEIGHT_FILES, weights_file
from pipelines.backbones.model_names import refusal
from pipelines.backbones.preprocessing import ImageSize
from pipelines.backbones.request import BackboneRequest, RequestOptions
from pipelines.backbones.stated import network_taken
from pipelines.backbones.weight_files import BackboneError, demo_weights, file_sha256, resolved

DEMO_ARCHITECTURE = "vit_small_patch14_reg4_dinov2.lvd142m"
DEMO_IMAGE_SIZE = (224, 224)
_POOLED_NOTE = "fc_norm=true: the file has the final norm of a model that pools before it"


def resolve_timm(
    model: str,
    *,
    weights: Path | None = None,
    image_size: ImageSize | None = None,
    sha256: str | None = None,
    **options: Unpack[RequestOptions],
) -> BackboneRequest:
    """See `resolve_backbone`, of any name but that of the null model."""
    architecture, title = model, model
    if model == DEMO:
        architecture, title = DEMO_ARCHITECTURE, DEMO_TITLE
        image_size = image_size or DEMO_IMAGE_SIZE
        weights = weights or demo_weights()
    else:
        require_known(model)
    require_plain_vit(architecture, image_size, options.get("arguments", ()))
    path = weights_file(resolved(weights or _hub_weights(model)))
    sha256 = sha256 or file_sha256(path)
    found = read_checkpoint(path, device="meta", network=options.get("network"))
    options["network"] = found.network if len(found.networks) > 1 else None
    pooled = _is_pooled(found.tensors) and takes_pooled(architecture)
    if pooled:
        options["arguments"] = (*options.get("arguments", ()), POOLED)
    if model == DEMO and sha256 != DEMO_SHA256:
        title = f"{title} (given weights {sha256[:8]})"
    return BackboneRequest(
        model=model,
        title=title,
        architecture=architecture,
        weights=str(path),
        weights_sha256=sha256,
        image_size=image_size,
        assumed=(*network_taken(options["network"]), *((_POOLED_NOTE,) if pooled else ())),
        **options,
    )


def _is_pooled(names: Container[str]) -> bool:
    """Whether the final norm of a file is `fc_norm`, as of models that pool before it."""
    return "fc_norm.weight" in names and "norm.weight" not in names


def require_known(model: str) -> None:
    """Refuse what is no name of timm's.

    Raises:
        BackboneError: with names near it.
    """
    if not timm.is_model(model):
        raise BackboneError(refusal(model))


def _hub_weights(model: str) -> Path:
    """The hub's file of a timm model, from the local cache or downloaded."""
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise BackboneError(f"model {model!r} has no published weights on the hub; give a file with --weights.")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHT_FILES
    reason = "the hub has no such file"
    for name in names:
        try:
            with _quiet_hub():
                return Path(hf_hub_download(config.hf_hub_id, name))
        except RemoteEntryNotFoundError:
            continue  # the hub has it under the other name
        except LocalEntryNotFoundError as error:
            # Without a network the cache may still have it under the other name, and nothing else will.
            reason = _first_line(error)
            if (cached := _cached(config.hf_hub_id, names)) is not None:
                return cached
            break
        except (HfHubHTTPError, ValueError, OSError) as error:
            reason = _first_line(error)
            break
    raise BackboneError(
        f"weights of {model!r} ({config.hf_hub_id}) are not in the hub's cache and could not be fetched ({reason}); "
        "give a file with --weights."
    )


def _cached(repository: str, names: Sequence[str]) -> Path | None:
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120].strip()


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's client tells of every retry; the one line of the error that ends them is enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
