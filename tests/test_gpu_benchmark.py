"""The GPU command is kept ready to run: here on the CPU, with a tiny model."""

from benchmarks.gpu_extract import main


def test_the_gpu_benchmark_runs_on_the_cpu() -> None:
    ratio = main(["--model", "test_vit", "--images", "20", "--dtype", "float32", "--device", "cpu"])
    assert ratio > 0
