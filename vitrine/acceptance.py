"""A run held to a paper: the same images and features, and every number of its table beside ours."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluators import Answer, KnnParameters, Subject
from feature_store import FeatureSet, open_store
from pipelines.backbones.description import DescribedModel
from pipelines.backbones.weight_files import file_sha256
from pipelines.datasets import Dataset
from pipelines.plan import ExtractionSettings
from pipelines.run import prepare_extraction
from vitrine import exits
from vitrine.acceptance_cityscapes import open_split
from vitrine.acceptance_published import Published
from vitrine.extraction import ModelWords, RunOptions, extract_dataset, resolve_model
from vitrine.output import console, print_json, print_table
from vitrine.questions import Dropping, ask_knn, ask_linear, ask_variance, linear_parameters, make_selection

_TOPS = (10, 50, 100)
# What is done here in another way than in the paper, as far as its authors' code tells.
DIFFERENCES = (
    "tiles are resized on 8-bit values by Pillow's bicubic filter, which smooths where it shrinks; the paper's by "
    "OpenCV's INTER_CUBIC on normalised values",
    "tokens are stored as float16, the inner product is float32; the paper's is float64",
    "the linear probe is a logistic regression by L-BFGS on standardised features, its penalty chosen on held-out "
    "training images; the paper's is trained by Adam behind a BatchNorm, its epoch chosen on the validation images",
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the features of highest variance are the published ones.

    Attributes:
        agree: how many of the published features are among as many of ours.
        published: how many are published.
        by_chance: how many would agree on average if ours were drawn at random.
        tops: by their number: how many of the highest of both lists agree.
        only_published, only_here: the features that differ.
    """

    agree: int
    published: int
    by_chance: float
    tops: Mapping[int, int]
    only_published: tuple[int, ...]
    only_here: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One number of the table.

    Attributes:
        probe: `1-NN` or `linear`.
        n_dropped: features of highest variance that were dropped.
        standardised: whether features were standardised over the training tokens.
        published, ours: mIoU.
        digest: of our result in the store.
        cached: whether it stood there.
    """

    probe: str
    n_dropped: int
    standardised: bool
    published: float
    ours: float
    digest: str | None
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, with the difference."""
        return {**asdict(self), "difference": self.ours - self.published}

    @property
    def words(self) -> str:
        """What was asked, for people."""
        features = "all features" if not self.n_dropped else f"without the top {self.n_dropped}"
        return f"{self.probe}, {features}{', standardised' if self.standardised else ''}"


def run_acceptance(
    experiment: Published,
    *,
    weights: Path,
    cityscapes: Path,
    store: str,
    limit_per_split: int | None = None,
    workers: int = 1,
    json: bool = False,
) -> int:
    """Extract the split, ask every question of the table, report; returns the exit code.

    Everything is kept in the store: run again, only what is missing is computed.

    Raises:
        ManifestError: images or masks are missing.
        BackboneError: the weights cannot be used.
    """
    caveats = _caveats(experiment, weights, limit_per_split)
    dataset = open_split(cityscapes, experiment, limit_per_split=limit_per_split)
    model = resolve_model(ModelWords(model=experiment.model, weights=weights, fit="squash"), dataset)
    settings = ExtractionSettings()
    code = extract_dataset(dataset, model, settings, store=store, options=RunOptions(workers=workers, quiet=json))
    if code not in {exits.DONE, exits.INCOMPLETE}:
        return code
    features = _extracted(store, dataset, model, settings)
    agreement = compare_top_variance(ask_variance(features).result["order"], experiment.top_variance)
    numbers = []
    for compared in compare_numbers(features, experiment):
        numbers.append(compared)
        if not json:
            console(stderr=True).print(f"{compared.words}: {compared.ours:.4f}", markup=False)
    _report(features, experiment, agreement, numbers, caveats=caveats, json=json)
    return code


def _caveats(experiment: Published, weights: Path, limit_per_split: int | None) -> list[str]:
    """Why the numbers may not be comparable at all."""
    file_sha256(weights)  # which says in its own words what is wrong with a file that cannot be read
    with weights.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    caveats = []
    if not md5.startswith(experiment.weights_md5_prefix):
        caveats.append(
            f"the weights are not the published {experiment.weights_file}: their md5 begins with {md5[:6]}, not "
            f"{experiment.weights_md5_prefix}"
        )
    if limit_per_split is not None:
        caveats.append(f"only {limit_per_split} images a split were taken, so no number compares with the paper's")
    return caveats


def _extracted(store: str, dataset: Dataset, model: DescribedModel, settings: ExtractionSettings) -> FeatureSet:
    """The feature set that the extraction made or found."""
    prepared = prepare_extraction(dataset, model, settings, store=store)
    return open_store(store).features(prepared.done_as or prepared.name)


def compare_top_variance(ours: list[int], theirs: tuple[int, ...]) -> Agreement:
    """Hold our features by falling variance to the published ones."""
    mine, published = set(ours[: len(theirs)]), set(theirs)
    return Agreement(
        agree=len(mine & published),
        published=len(theirs),
        by_chance=len(theirs) ** 2 / len(ours),
        tops={top: len(set(ours[:top]) & set(theirs[:top])) for top in _TOPS if top <= len(theirs)},
        only_published=tuple(sorted(published - mine)),
        only_here=tuple(sorted(mine - published)),
    )


def compare_numbers(features: FeatureSet, experiment: Published) -> Iterator[Compared]:
    """Every number of the table, one after another, as soon as it is there."""
    subject = Subject(on="patches", scored=experiment.scored)
    selections = {n_dropped: _selection(features, n_dropped) for n_dropped in experiment.n_dropped}
    for n_dropped, theirs in zip(experiment.n_dropped, experiment.miou_1nn, strict=True):
        answer = _ask_1nn(features, KnnParameters(subject=subject, metric="dot"), selections[n_dropped])
        yield _compared("1-NN", n_dropped, theirs, answer)
    answer = _ask_1nn(features, KnnParameters(subject=subject, metric="dot", standardise=True), None)
    yield _compared("1-NN", 0, experiment.miou_1nn_standardised, answer, standardised=True)
    linear = linear_parameters(subject)
    for n_dropped, theirs in zip(experiment.n_dropped, experiment.miou_linear, strict=True):
        answer = ask_linear(features, linear, selection=selections[n_dropped])
        yield _compared("linear", n_dropped, theirs, answer)
    # Ours always standardises.
    answer = ask_linear(features, linear)
    yield _compared("linear", 0, experiment.miou_linear_standardised, answer, standardised=True)


def _ask_1nn(features: FeatureSet, parameters: KnnParameters, selection: str | None) -> Answer:
    return ask_knn(features, parameters, selection=selection)[0]


def _selection(features: FeatureSet, n_dropped: int) -> str | None:
    """The stored selection without the features of highest variance; its name tells feature sets apart."""
    if not n_dropped:
        return None
    name = f"acceptance-{features.digest[:8]}-no-top-{n_dropped}"
    return make_selection(features, Dropping(top_variance=n_dropped), name=name).name


def _compared(probe: str, n_dropped: int, theirs: float, answer: Answer, *, standardised: bool = False) -> Compared:
    return Compared(
        probe=probe,
        n_dropped=n_dropped,
        standardised=standardised,
        published=theirs,
        ours=answer.result["miou"],
        digest=answer.digest,
        cached=answer.cached,
    )


def _report(
    features: FeatureSet,
    experiment: Published,
    agreement: Agreement,
    numbers: list[Compared],
    *,
    caveats: list[str],
    json: bool,
) -> None:
    if json:
        print_json(
            {
                "experiment": experiment.title,
                "source": experiment.source,
                "features": features.name,
                "weights_sha256": features.spec.identity.weights_sha256,
                "top_variance": asdict(agreement),
                "numbers": [compared.to_json() for compared in numbers],
                "caveats": caveats,
                "differences": list(DIFFERENCES),
            }
        )
        return
    print_table(
        f"{experiment.title}: mIoU over {len(experiment.scored)} classes at full resolution",
        ("", "paper", "here", "difference"),
        [(each.words, each.published, each.ours, f"{each.ours - each.published:+.4f}") for each in numbers],
    )
    out = console()
    tops = ", ".join(f"{count} of the top {top}" for top, count in agreement.tops.items())
    out.print(
        f"features of highest variance: {agreement.agree} of the paper's {agreement.published} are among ours ({tops}),"
        f" {agreement.by_chance:.0f} would be by chance",
        markup=False,
    )
    for caveat in caveats:
        out.print(f"NOTE: {caveat}", markup=False)
    out.print("Done in another way here: " + "; ".join(DIFFERENCES) + ".", markup=False)
    out.print(f"Paper: {experiment.source}.", markup=False)
