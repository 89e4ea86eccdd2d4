"""The GPU command is kept ready to run: here on the CPU, with a tiny model."""

import pytest

from benchmarks.gpu_extract import main


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_the_gpu_benchmark_runs_on_the_cpu(decode: str) -> None:
    command = ["--model", "test_vit", "--images", "20", "--dtype", "float32", "--device", "cpu", "--seconds", "0.03"]
    (found,) = main([*command, "--decode", decode])
    assert found.forward > 0
    assert found.extraction > 0
    assert found.share_of_peak > 0
    if decode == "gpu":
        assert found.decoded_there is not None
        assert found.decoded_there > 0
        # Another decoder and another resize of the same pictures: near, and not the same.
        assert found.least_cosine is not None
        assert 0.9 < found.least_cosine < 1
