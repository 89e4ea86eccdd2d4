"""Pure functions from a store to a result record: no backbone, no images, no printing."""

from evaluators.answers import Answer, Question, ask, question
from evaluators.knn import KNN_REVISION, KnnParameters, evaluate_knn, evaluate_knn_for, predict_knn
from evaluators.linear_probe import LINEAR_REVISION, LinearParameters, evaluate_linear
from evaluators.mae_decoder import DecoderError, MaeDecoder, encoder_depth, read_decoder
from evaluators.nearest_rows import NearestRows, nearest, stored_query
from evaluators.probe_input import Subject
from evaluators.prune import drop_listed, drop_random, drop_top_variance
from evaluators.reconstruction import (
    RECONSTRUCTION_REVISION,
    Arm,
    Pixels,
    ReconstructionParameters,
    ReconstructionResult,
    arms_of,
    decoded_views,
    evaluate_reconstruction,
    require_decodable,
    resolve_parameters,
    views_to_decode,
)
from evaluators.results import ImageScores, ProbeResult, SegmentationScores, VarianceResult
from evaluators.variance import VARIANCE_REVISION, VarianceParameters, evaluate_variance

__all__ = [
    "KNN_REVISION",
    "LINEAR_REVISION",
    "RECONSTRUCTION_REVISION",
    "VARIANCE_REVISION",
    "Answer",
    "Arm",
    "DecoderError",
    "ImageScores",
    "KnnParameters",
    "LinearParameters",
    "MaeDecoder",
    "NearestRows",
    "Pixels",
    "ProbeResult",
    "Question",
    "ReconstructionParameters",
    "ReconstructionResult",
    "SegmentationScores",
    "Subject",
    "VarianceParameters",
    "VarianceResult",
    "arms_of",
    "ask",
    "decoded_views",
    "drop_listed",
    "drop_random",
    "drop_top_variance",
    "encoder_depth",
    "evaluate_knn",
    "evaluate_knn_for",
    "evaluate_linear",
    "evaluate_reconstruction",
    "evaluate_variance",
    "nearest",
    "predict_knn",
    "question",
    "read_decoder",
    "require_decodable",
    "resolve_parameters",
    "stored_query",
    "views_to_decode",
]
