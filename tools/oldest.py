"""Print the oldest releases that pyproject.toml allows, as constraints for pip.

    python tools/oldest.py medical,plot > oldest.txt && python -m pip install -c oldest.txt ".[medical,plot]"

The named extras and their dependencies are included; of several bounds, the highest counts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip's own copy
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
extras, needs = sys.argv[1].split(","), list(project["dependencies"])
for name in extras:  # the list grows
    for need in project["optional-dependencies"][name]:
        if included := re.match(r"fewshot-ad\[(.*)\]", need):
            extras += included[1].split(",")
        else:
            needs.append(need)
bounds: dict[str, str] = {}
for need in needs:
    if found := re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)", need):
        package, bound = found.groups()
        bounds[package] = max(bound, bounds.get(package, "0"), key=lambda v: [int(part) for part in v.split(".")])
for package, bound in sorted(bounds.items()):
    print(f"{package}=={bound}")
