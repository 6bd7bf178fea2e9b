"""Print the oldest releases that pyproject.toml admits, as constraints for pip.

python tools/oldest.py > oldest.txt && python -m pip install -c oldest.txt ".[test]"
"""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
needs = list(project["dependencies"])
for name, extra in project["optional-dependencies"].items():
    if name not in ("bench", "docs"):  # these are not what users run
        needs += extra
bounded = (re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)", need) for need in needs)
for line in sorted({"==".join(found.groups()) for found in bounded if found}):
    print(line)
