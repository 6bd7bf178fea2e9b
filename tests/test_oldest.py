"""The oldest dependencies, as constraints for pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "oldest.py"
# Python 3.10 has no tomllib.
AS_3_10 = f"import runpy, sys; sys.modules['tomllib'] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"


def run(*command: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return dict(line.split("==") for line in done.stdout.splitlines())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there is one way on Python 3.10")
def test_without_tomllib():
    assert run("-c", AS_3_10, "test") == run(str(SCRIPT), "test")


def test_included_extras_and_highest_bounds():
    alone, all_of_it = run(str(SCRIPT), "plot"), run(str(SCRIPT), "test")
    assert {"matplotlib", "numpy", "scipy", "torch"} <= alone.keys()
    assert {"onnx", "pydicom"} <= all_of_it.keys() - alone.keys()  # from extras that "test" includes
    assert alone["torch"] != all_of_it["torch"]  # "export" requires a newer one
    assert "ray" in run(str(SCRIPT), "test-full")  # with a marker and extras of its own
