"""What a fresh process has loaded when it is done: tests must not find what another test imported before."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def loaded_after(code: str, *watched: str, blocked: tuple[str, ...] = ()) -> set[str]:
    """Run code in a fresh process, where importing what is blocked raises, and tell which watched modules it loaded."""
    program = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
{code}
print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}} & set({watched!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    return set(lines[-1].split()[1:])
