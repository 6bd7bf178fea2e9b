"""Draw the picture in docs/architecture.md: the data flow through the package.

python tools/architecture_picture.py --out docs/images/architecture.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BLUE, GREY = "#0072B2", "#555555"
# A box's text, its module, and its column and row.
BOXES = {
    "images": ("images in\nin their own proportions", "data/", 0, 1),
    "teacher": ("teacher\nthree stages, embedding", "method/features.py, teacher.py", 1, 1),
    "student": ("student\nthe same stages", "method/student.py", 2, 0),
    "evidence": ("evidence maps\nssd, tsd, patch; embedding", "method/scoring.py", 3, 1),
    "map": ("anomaly_map\nblurred, scaled, added", "method/scoring.py", 4, 1),
    "score": ("score_samples\none number an image", "method/reduction.py", 5, 1),
    "decision": ("decision_function\nbelow 0 = anomaly", "session.py, threads.py", 6, 1),
    "support": ("FittedSupport\nmaps, patches, embeddings", "support.py, method/memory.py", 2, 2),
    "offset": ("offset_\nfrom the support's scores", "method/calibration.py", 5, 2),
}
ARROWS = [
    ("images", "teacher"), ("teacher", "student"), ("teacher", "evidence"), ("student", "evidence"),
    ("teacher", "support"), ("student", "support"), ("support", "evidence"), ("evidence", "map"), ("map", "score"),
    ("score", "decision"), ("support", "offset"), ("offset", "decision"),
]  # fmt: skip
WIDTH, HEIGHT = 2.0, 0.62


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("architecture.svg"))
    args = parser.parse_args()

    # Reproducible bytes, with letters as outlines: no font is needed to view it.
    plt.rcParams.update({"svg.hashsalt": "fewshot_ad", "svg.fonttype": "path"})
    fig, ax = plt.subplots(figsize=(16, 3.9), layout="constrained")
    fig.patch.set_facecolor("white")
    centres = {name: (2.35 * column, -1.2 * row) for name, (*_, column, row) in BOXES.items()}
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = centres[start], centres[end]
        if x0 < x1:
            tail, head = (x0 + WIDTH / 2, y0), (x1 - WIDTH / 2, y1)
        else:  # downwards, beside what is written below the box
            tail, head = (x0 - 0.9, y0 - HEIGHT / 2), (x1 - 0.9, y1 + HEIGHT / 2)
        ax.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.4})
    for name, (says, module, _, row) in BOXES.items():
        x, y = centres[name]
        fill = "#E6F1F8" if row < 2 else "#FBEFE2"
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        ax.add_patch(plt.Rectangle(corner, WIDTH, HEIGHT, facecolor=fill, edgecolor=BLUE, linewidth=1.2))
        title, detail = says.split("\n")
        ax.text(x, y + 0.12, title, ha="center", va="center", fontsize=13, weight="bold")
        ax.text(x, y - 0.14, detail, ha="center", va="center", fontsize=9)
        ax.text(x, y - HEIGHT / 2 - 0.06, module, ha="center", va="top", fontsize=8, color=GREY, family="monospace")
    ax.text(4.7, -3.05, "orange: computed from the support at fit, and kept", ha="center", fontsize=10, color=GREY)
    ax.set(xlim=(-1.1, 15.2), ylim=(-3.2, 0.5))
    ax.set_axis_off()
    fig.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
