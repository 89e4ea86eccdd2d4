"""What the words of `vitrine extract` alone can be refused for: before torch is loaded, and before images are read."""

from pathlib import Path

from feature_store.identity import COMPUTE_DTYPES
from feature_store.nearest_name import did_you_mean
from pipelines.backbones.catalogue import known
from pipelines.backbones.model_names import unknown_model
from pipelines.datasets import DatasetOptions
from pipelines.plan import ExtractionSettings, PlanError, resolve_layers

FITS = ("auto", "squash", "crop")


def refuse_early(
    settings: ExtractionSettings, *, model: str, weights: Path | None, fit: str, device: str, compute: str
) -> None:
    """Refuse what no dataset and no file could make right.

    Args:
        settings: the layers, which must exist where the model's depth is known by its name.
        model, weights, fit, device, compute: see `ModelWords`.

    Raises:
        PlanError: a name or word that is not known, a file that is not there, or a block that the model lacks.
    """
    check_fit(fit)
    check_device(device)
    if compute not in COMPUTE_DTYPES:
        near = did_you_mean(compute, COMPUTE_DTYPES)
        raise PlanError(f"compute dtype {compute!r}: choose among {', '.join(COMPUTE_DTYPES)}{near}.")
    unknown = unknown_model(model)
    if unknown is not None:
        raise PlanError(unknown)
    # A link that leads nowhere is looked into later, which says why.
    if weights is not None and not weights.exists() and not weights.is_symlink():
        raise PlanError(f"weights {weights} cannot be read (No such file or directory); check the path.")
    entry = known(model)
    if entry is not None:
        resolve_layers(settings.layers, entry.depth)


def refuse_idle(dataset: str, options: DatasetOptions) -> None:
    """Refuse options that would do nothing, of which a user expects something.

    Args:
        dataset: as the user names it.
        options: the user's.

    Raises:
        PlanError: --root for a dataset that has its own, or --tile-fit without tiles.
    """
    if options.root is not None and not dataset.startswith("manifest:"):
        raise PlanError(f"--root {options.root} is for 'manifest:FILE' alone, and this is {dataset!r}; leave it out.")
    if options.tile is None and options.tile_fit != "refuse":
        raise PlanError(f"--tile-fit {options.tile_fit} says how --tile fits; give --tile too, or leave it out.")


def check_fit(fit: str) -> None:
    """Refuse another word than `auto`, `squash` and `crop`.

    Raises:
        PlanError: it is another.
    """
    if fit not in FITS:
        raise PlanError(f"--fit {fit!r}: choose auto, squash or crop{did_you_mean(fit, FITS)}.")


def check_device(device: str) -> None:
    """Refuse a word that names no device of any machine.

    Raises:
        PlanError: it is none of `auto`, `cpu`, `cuda` and `cuda:N`.
    """
    if device.partition(":")[0] not in {"auto", "cpu", "cuda"}:
        raise PlanError(f"--device {device!r}: choose auto, cpu, cuda or cuda:N.")
