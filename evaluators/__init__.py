"""Pure functions from a store to a result record: no backbone, no images, no printing."""

from evaluators.answers import Answer, Question, ask, question
from evaluators.knn import KNN_REVISION, KnnParameters, evaluate_knn, evaluate_knn_for, predict_knn
from evaluators.linear_probe import LINEAR_REVISION, LinearParameters, evaluate_linear
from evaluators.nearest_rows import NearestRows, nearest, stored_query
from evaluators.probe_input import Subject
from evaluators.prune import drop_listed, drop_random, drop_top_variance
from evaluators.results import ImageScores, ProbeResult, SegmentationScores, VarianceResult
from evaluators.variance import VARIANCE_REVISION, VarianceParameters, evaluate_variance

__all__ = [
    "KNN_REVISION",
    "LINEAR_REVISION",
    "VARIANCE_REVISION",
    "Answer",
    "ImageScores",
    "KnnParameters",
    "LinearParameters",
    "NearestRows",
    "ProbeResult",
    "Question",
    "SegmentationScores",
    "Subject",
    "VarianceParameters",
    "VarianceResult",
    "ask",
    "drop_listed",
    "drop_random",
    "drop_top_variance",
    "evaluate_knn",
    "evaluate_knn_for",
    "evaluate_linear",
    "evaluate_variance",
    "nearest",
    "predict_knn",
    "question",
    "stored_query",
]
