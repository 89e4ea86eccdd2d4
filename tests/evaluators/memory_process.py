"""Run in a process of its own: by how much its peak of resident memory rises while a linear probe is answered."""

import json
import sys
from pathlib import Path

import torch

from evaluators import LinearParameters, evaluate_linear
from feature_store import open_store


def _kilobytes(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main(tiny: str, large: str, options: str) -> None:
    """Print the rise in bytes, and how the fit was made."""
    torch.set_num_threads(1)
    evaluate_linear(open_store(tiny).features(), LinearParameters(l2s=(1e-1, 1e-2)))  # what a process loads once
    features = open_store(large).features()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _kilobytes("VmRSS")
    result = evaluate_linear(features, LinearParameters(**json.loads(options)))
    rise = (_kilobytes("VmHWM") - before) * 1024
    print(json.dumps({"rise": rise, "fitted": result.details["fitted"], "sample": result.details["sample"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
