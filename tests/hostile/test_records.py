"""No bytes in a record of a store lead to anything but an answer or a refusal, soon and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.hostile.record_fuzz import MAX_GROWTH_BYTES, MAX_SECONDS

_ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("VITRINE_FAULTS") == "full"
_N_INPUTS = 60_000 if FULL else 3_000


def test_every_reader_of_a_record_answers_or_refuses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hostile.record_fuzz", str(tmp_path / "store"), str(_N_INPUTS), "0"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["uncaught"] == []
    assert found["read"] + found["refused"] == _N_INPUTS
    assert found["refused"] > _N_INPUTS // 2
    assert found["read"] > _N_INPUTS // 100, "some changes change nothing that counts"
    assert found["slowest_s"] < MAX_SECONDS
    assert found["growth_bytes"] < MAX_GROWTH_BYTES
