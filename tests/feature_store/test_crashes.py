"""A writer killed at any time, run again, ends byte for byte where an undisturbed one ends."""

import random
import subprocess
from pathlib import Path

from feature_store.durable_files import PARTIAL_SUFFIX
from tests.feature_store.samples import files_of, fill_store
from tests.feature_store.writing_process import INVALID, ROOT, command

_TRIALS = 30


def _run(killer: "subprocess.Popen[str]", store: Path, n_files: int, delay_s: float) -> int:
    """Fill the store in a process that is killed a moment after so many files stand there; its exit code."""
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(f"{store} {n_files} {delay_s}\n")
    killer.stdin.flush()
    return int(killer.stdout.readline())


def test_a_killed_run_that_is_run_again_equals_an_undisturbed_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    killed_midway = swept = 0
    with subprocess.Popen(
        command("killer"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killer:
        assert _run(killer, tmp_path / "undisturbed", 1000, 0) == 0
        expected = files_of(tmp_path / "undisturbed")
        assert len(expected) > 20
        for trial in range(_TRIALS):
            store = tmp_path / f"killed-{trial}"
            for n_files in sorted(chance.sample(range(len(expected)), k=2)):
                code = _run(killer, store, n_files, chance.uniform(0, 0.01))
                assert code in (0, -9)
                left = files_of(store)
                partials = [path for path in left if path.endswith(PARTIAL_SUFFIX)]
                swept += len(partials)
                assert {path: left[path] for path in left if path not in partials}.items() <= expected.items()
                killed_midway += code == -9 and 0 < len(left) < len(expected)
            fill_store(str(store), invalid=INVALID)
            assert files_of(store) == expected, f"trial {trial}"
        assert killer.stdin is not None
        killer.stdin.close()
    assert killer.returncode == 0
    # Else the test would prove nothing.
    assert killed_midway > _TRIALS // 2
    assert swept > 0
