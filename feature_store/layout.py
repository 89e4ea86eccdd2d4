"""Names and paths of everything in a store, in one place."""

import re

from feature_store.errors import SelectionError, StoreError
from feature_store.identity import FeatureSetSpec, TokenKind
from feature_store.shards import Shard

SCHEMA_NUMBER = 1
STORE_FILE = "vitrine.json"
FEATURE_SET_FILE = "feature_set.json"
FEATURES = "features"
DATASETS = "datasets"
SELECTIONS = "selections"
RESULTS = "results"
RUNS = "runs"
ASIDE = "aside"
# What is left of the record of a feature set or dataset whose removal was begun.
REMOVED_FILE = "removed.json"
_DIGITS = 8
# File systems allow 255, and a partial file's name is 42 longer.
_MAX_SEGMENT = 200


def slug(text: str) -> str:
    """`text` as a path segment: everything but letters, digits, `.`, `_` and `-` becomes `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def check_segment(segment: str) -> str:
    """Refuse a name that would not be one plain path segment.

    Raises:
        StoreError: empty, a dot path, too long, or with a separator.
    """
    if slug(segment) != segment or len(segment) > _MAX_SEGMENT:
        raise StoreError(
            f"name {segment[:_MAX_SEGMENT]!r} is not a plain name; use up to {_MAX_SEGMENT} letters, digits, '.', '_' "
            "and '-', with a letter, digit or '_' at both ends."
        )
    return segment


def dataset_folder(name: str, views_digest: str, annotations_digest: str) -> str:
    """Where one dataset with one set of annotations stands."""
    return f"{DATASETS}/{slug(name)}/{views_digest[:_DIGITS]}-{annotations_digest[:_DIGITS]}"


def dataset_pointer(name: str, views_digest: str) -> str:
    """The file that says which annotations of these views are in force."""
    return f"{DATASETS}/{slug(name)}/{views_digest[:_DIGITS]}.json"


def is_annotations_of(folder: str, pointer: str) -> bool:
    """Whether `folder` is one that `dataset_folder` could have named for the views of this pointer."""
    start = f"{pointer.removesuffix('.json')}-"
    return folder.startswith(start) and re.fullmatch(rf"[0-9a-f]{{{_DIGITS}}}", folder.removeprefix(start)) is not None


def feature_set_folder(dataset: str, spec: FeatureSetSpec) -> str:
    """Where a feature set stands: its dataset and views, then its model and digest."""
    return (
        f"{FEATURES}/{slug(dataset)}-{spec.identity.views_digest[:_DIGITS]}/"
        f"{slug(spec.model)}-{spec.identity.digest[:_DIGITS]}"
    )


def feature_set_name(folder: str) -> str:
    """The name of the feature set that stands in a folder, as `FeatureStore.names` has it."""
    return folder.removeprefix(f"{FEATURES}/")


def dataset_of(name: str) -> str:
    """The dataset in a feature set's name, without the digits of its views."""
    return name.split("/", maxsplit=1)[0].rpartition("-")[0]


def tokens_group(folder: str) -> str:
    """The Zarr group of a feature set's arrays."""
    return f"{folder}/tokens.zarr"


def valid_array(folder: str) -> str:
    """The Zarr array that says which rows are valid."""
    return f"{tokens_group(folder)}/valid"


def token_array(folder: str, layer: int, kind: TokenKind) -> str:
    """The Zarr array of one layer and token kind."""
    return f"{tokens_group(folder)}/layer_{layer}/{kind}"


def compression_group(folder: str) -> str:
    """The Zarr group of what a compressed feature set was fitted with."""
    return f"{folder}/compression.zarr"


def compression_array(folder: str, layer: int, kind: TokenKind, parameter: str) -> str:
    """The Zarr array of one parameter of a layer and token kind."""
    return f"{compression_group(folder)}/layer_{layer}/{kind}/{parameter}"


def shard_object(array: str, shard: Shard, n_dimensions: int) -> str:
    """The object that holds a shard of an array: Zarr's default chunk key, whole in all but the first axis."""
    return "/".join([array, "c", str(shard.index), *["0"] * (n_dimensions - 1)])


def receipts_folder(folder: str) -> str:
    """Where the receipts of a feature set stand."""
    return f"{folder}/receipts"


def receipt(folder: str, shard: Shard) -> str:
    """The receipt of one shard."""
    return f"{receipts_folder(folder)}/{shard.name}.json"


def receipts_index(folder: str) -> str:
    """What all receipts of a finished feature set say, in one file."""
    return f"{folder}/receipts.json"


def selection(name: str) -> str:
    """The file of a selection.

    Raises:
        SelectionError: the name cannot be a file's.
    """
    try:
        return f"{SELECTIONS}/{check_segment(name)}.json"
    except StoreError as error:
        raise SelectionError(f"selection {error}") from error


def result(evaluator: str, digest: str) -> str:
    """The file of a result."""
    return f"{RESULTS}/{check_segment(evaluator)}/{check_segment(digest)}.json"


def run_file(run_id: str, name: str) -> str:
    """A file of one run's own folder."""
    return f"{RUNS}/{check_segment(run_id)}/{name}"
