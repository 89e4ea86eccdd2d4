"""Pure functions from a store to a result record: no backbone, no images, no printing."""

# What computes is loaded when it is first asked for, since torch takes two seconds: an answer that the store has
# needs the question alone.
from typing import TYPE_CHECKING

from evaluators.answers import Answer, Question, ask, question
from evaluators.parameters import (
    KNN_REVISION,
    LINEAR_REVISION,
    VARIANCE_REVISION,
    KnnParameters,
    LinearParameters,
    VarianceParameters,
)
from evaluators.prune import drop_listed, drop_random, drop_top_variance
from evaluators.results import ImageScores, ProbeResult, SegmentationScores, VarianceResult
from evaluators.subject import Subject
from feature_store.late_names import names_loaded_late

if TYPE_CHECKING:
    from evaluators.knn import evaluate_knn, evaluate_knn_for, predict_knn
    from evaluators.linear_probe import evaluate_linear
    from evaluators.mae_decoder import (
        DecoderError,
        MaeDecoder,
        encoder_depth,
        read_decoder,
    )
    from evaluators.nearest_rows import NearestRows, nearest, stored_query
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
    from evaluators.variance import evaluate_variance
else:
    __getattr__ = names_loaded_late(
        __name__,
        {
            "knn": ("evaluate_knn", "evaluate_knn_for", "predict_knn"),
            "linear_probe": ("evaluate_linear",),
            "mae_decoder": ("DecoderError", "MaeDecoder", "encoder_depth", "read_decoder"),
            "nearest_rows": ("NearestRows", "nearest", "stored_query"),
            "reconstruction": (
                "RECONSTRUCTION_REVISION",
                "Arm",
                "Pixels",
                "ReconstructionParameters",
                "ReconstructionResult",
                "arms_of",
                "decoded_views",
                "evaluate_reconstruction",
                "require_decodable",
                "resolve_parameters",
                "views_to_decode",
            ),
            "variance": ("evaluate_variance",),
        },
    )

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
