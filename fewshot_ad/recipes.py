"""Recipes: other published methods as parameters of the detector (network, layers, reduction of the map)."""

from __future__ import annotations

from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """A published method.

    Attributes
    ----------
    source : str
        Publication and code.
    parameters : dict
        Parameters of `DualDistillationDetector`; all that differ from its defaults are included.
    """

    source: str
    parameters: dict[str, Any]


# The score depends on the patches alone, without subtraction of the mean or weighting of the border.
_PLAIN = {"aspect": "keep", "aggregation": 0.01, "blur_sigma": 0.0, "border_weight": 1.0, "contrast": 0.0}
# docs/differences.md lists the deviations from each publication.
RECIPES = {
    "anomalydino": Recipe(
        "Damm et al., AnomalyDINO, WACV 2025, arXiv:2405.14529; github.com/dammsi/AnomalyDINO",
        {
            **_PLAIN, "backbone": "vit_small_patch14_dinov2.lvd142m", "layers": "last", "image_size": 448,
            "evidence": "patch", "augment": True, "max_patches": 1_000_000,
        },
    ),
    "subspacead": Recipe(
        "Lendering et al., SubspaceAD, CVPR 2026, arXiv:2602.23013; github.com/CLendering/SubspaceAD",
        {
            **_PLAIN, "backbone": "vit_giant_patch14_reg4_dinov2.lvd142m", "layers": "auto", "image_size": 672,
            "evidence": "subspace", "augment": True,
        },
    ),
}  # fmt: skip


def parameters_of(name: str) -> dict[str, Any]:
    """Return the parameters of a recipe.

    Raises
    ------
    ValueError
        There is no recipe of this name.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe={name!r} was given; it must be one of {', '.join(map(repr, RECIPES))}.")
    return dict(RECIPES[name].parameters)
