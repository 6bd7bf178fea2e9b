"""Display of images, their anomaly maps, and the support images that they were compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.datasets import read_mask
from ..drawing import CONTOUR, FILL
from ..exceptions import ImageError
from ..explanation import Box, Explanation, as_uint8
from .common import Saved, check_labels, escaped, named, names_of_support, pyplot, warm_colours, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from ..detector import DualDistillationDetector

_PANELS = ("image", "map", "support", "match")
# The colour scale extends at least this fraction of the threshold below and above it.
_REACH = 0.25
# Inches: side of a square with the area of a picture, longest side, narrowest column, lowest row, height of a title.
_SIDE, _LONGEST, _NARROWEST, _LOWEST, _TITLE = 2.1, 3.4, 1.9, 0.5, 0.45


class AnomalyMapDisplay(Saved):
    """Images, their anomaly maps, and the support images that they were compared with.

    Each row shows the image with a box at its hottest patch; its anomaly map; the support image with the largest
    weight; and, with the score component "patch", the support image that contains the nearest neighbour of the hottest
    patch, in a box. A box is the square that one patch represents. Images keep their aspect ratio; support images are
    shown resized, as the detector stores them. `panels` selects among the four.

    All maps share one colour scale. It shows `Explanation.excess` in units of the threshold's score: the map, with its
    border weighted as in the score, minus the threshold of the mean of this image's hottest pixels (by default the
    highest 1 %). The threshold is 0, the middle of the scale; the mean of the hottest pixels is the image's score minus
    1. Colour begins a quarter below the threshold, so that most of a normal image has none, and is at most 40 % opaque.
    The regions of an anomalous image (`Explanation.regions`) are outlined; a ground-truth mask has a dashed white
    outline.

    Parameters
    ----------
    explanations : sequence of Explanation
        Explanations from `DualDistillationDetector.explain`, one per row.
    support : sequence of ndarray of shape (H, W, 3), uint8, or None
        The K support images, resized. None omits their panels.
    names : sequence of str, optional
        Names of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Names of the support images. By default their numbers.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous, for the titles.
    masks : sequence of path, array-like of shape (H, W), or None, optional
        Ground-truth mask of each image, as in `ImageFolder.masks`: a file or an array, nonzero where anomalous, with
        the aspect ratio of the image; None for an image without a mask.
    panels : sequence of str, optional
        Panels to show, from left to right: "image", "map", "support", "match". By default all that are available.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes, shape (n_images, n_panels)
    """

    def __init__(
        self,
        explanations: Sequence[Explanation],
        support: Sequence[np.ndarray] | None,
        *,
        names: Sequence[str] | None = None,
        support_names: Sequence[str] | None = None,
        y: Any = None,
        masks: Sequence[Any] | None = None,
        panels: Sequence[str] | None = None,
    ) -> None:
        self.explanations = explanations
        self.support = support
        self.names = names
        self.support_names = support_names
        self.y = y
        self.masks = masks
        self.panels = panels

    @classmethod
    def from_estimator(
        cls,
        estimator: DualDistillationDetector,
        X: Any,
        *,
        y: Any = None,
        masks: Sequence[Any] | None = None,
        panels: Sequence[str] | None = None,
        axes: Any = None,
        cmap: str | Colormap | None = None,
    ) -> AnomalyMapDisplay:
        """Explain images and plot them.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted detector.
        X : images, or array-like of shape (n_samples, n_features)
            A few images, as for `fit`; each has a row of panels. Unreadable images have no row with on_error="skip".
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous, for the titles.
        masks : sequence of path, array-like of shape (H, W), or None, optional
            Ground-truth mask of each image, which is outlined on its map.
        panels : sequence of str, optional
            Panels to show: "image", "map", "support", "match". By default all that are available.
        axes : array of matplotlib Axes, optional
            See `plot`.
        cmap : str or matplotlib Colormap, optional
            Colour map of the anomaly map. By default `warm_colours()`.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ImageError
            None of the images, or one of the masks, can be read.
        ValueError
            y or `masks` and X differ in length, y has other labels, `axes` has another shape, or `panels` is not valid.
        """
        pyplot()  # before the work, not after it
        session = estimator.session()
        X, names = named(session, X)
        labels = check_labels(y, len(names))
        _check_masks(masks, len(names))
        explanations = list(session.explanations(X, session.settings.on_error))
        if not explanations:
            raise ImageError(f"None of the {len(names)} images could be read: there is nothing to plot.")
        # A model file may not include the support images.
        support = session.fitted.images
        display = cls(
            [one for _, one in explanations],
            None if support is None else [as_uint8(image) for image in support],
            names=[names[i] for i, _ in explanations],
            support_names=names_of_support(session),
            y=None if labels is None else labels[[i for i, _ in explanations]],
            masks=None if masks is None else [masks[i] for i, _ in explanations],
            panels=panels,
        )
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, axes: Any = None, *, cmap: str | Colormap | None = None) -> AnomalyMapDisplay:
        """Plot the rows of panels.

        Parameters
        ----------
        axes : array of matplotlib Axes, optional
            Axes of shape (n_images, n_panels), or (n_panels,) for one image; by default those of a new figure. There
            are 4 panels by default, 3 without the score component "patch", 2 without support images.
        cmap : str or matplotlib Colormap, optional
            Colour map of the anomaly map. By default `warm_colours()`.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.
        """
        plt = pyplot()
        n_images = len(self.explanations)
        cmap = warm_colours() if cmap is None else cmap
        labels, panels = check_labels(self.y, n_images), self._panels()
        _check_masks(self.masks, n_images)
        self.axes_ = _grid(axes, [one.picture.shape for one in self.explanations], len(panels))
        self.figure_ = self.axes_[0, 0].figure
        scale = self._scale()
        for i, (one, row) in enumerate(zip(self.explanations, self.axes_, strict=True)):
            for panel, ax in zip(panels, row, strict=True):
                if panel == "image":
                    ax.imshow(one.picture)
                    _draw_box(ax, one.hot_box)
                    name = f"image {i}" if self.names is None else self.names[i]
                    label = "" if labels is None else f"\nlabelled {word(labels[i])}"
                    ax.set_title(f"{escaped(name)}{label}")
                elif panel == "map":
                    self._overlay(ax, one, scale, cmap)
                    if self.masks is not None and self.masks[i] is not None:
                        _outline(ax, _mask(self.masks[i]) - 0.5, one.picture.shape, "white", "dashed")
                    _draw_box(ax, one.hot_box)
                    ax.set_title(f"score {one.relative:.2f}\ncalled {word(one.decision)}")
                elif panel == "support":
                    self._plot_support(ax, one)
                else:
                    self._plot_match(ax, one)
        if "map" in panels:
            self._colour_bar(plt.cm.ScalarMappable(scale, cmap))
        return self

    def _panels(self) -> tuple[str, ...]:
        """Return the requested panels, and check that they are available."""
        n_available = 2 if self.support is None else 3 if all(one.matches is None for one in self.explanations) else 4
        available = _PANELS[:n_available]
        if self.panels is None:
            return available
        panels = (self.panels,) if isinstance(self.panels, str) else tuple(self.panels)
        if not panels or not set(panels) <= set(available):
            raise ValueError(
                f"panels={self.panels!r} was given; accepted here are one or more of {', '.join(available)}."
                + (' "support" and "match" need support images and patches.' if n_available < len(_PANELS) else "")
            )
        return panels

    def _colour_bar(self, mappable: Any) -> None:
        scale = mappable.norm
        bar = self.figure_.colorbar(
            mappable, ax=self.axes_, shrink=min(1.0, 0.9 / len(self.explanations) + 0.2), pad=0.02, panchor=False
        )
        bar.set_ticks([scale.vmin, scale.vmin / 2, 0, scale.vmax / 2, scale.vmax])
        bar.ax.yaxis.set_major_formatter("{x:+.2f}")
        bar.ax.axhline(0, color="black", linewidth=1.5)
        bar.set_label("below and above the threshold\n(1 = the threshold's score)", fontsize="small")

    def _scale(self) -> Any:
        from matplotlib.colors import TwoSlopeNorm

        return TwoSlopeNorm(0, -_REACH, max(_REACH, *(float(_excess(one).max()) for one in self.explanations)))

    def _overlay(self, ax: Axes, one: Explanation, scale: Any, cmap: str | Colormap) -> None:
        ax.imshow(Image.fromarray(one.picture).convert("L"), cmap="gray", vmin=0, vmax=255)
        excess = _excess(one)
        alpha = np.interp(scale(excess), [0, 1], [0, FILL])
        height, width = one.picture.shape[:2]
        place = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.imshow(excess, cmap=cmap, norm=scale, alpha=alpha, extent=place, interpolation="bilinear")
        for polygon in one.outlines((height, width)):
            down, across = (polygon - 0.5).T
            for colour, thick, gid in (("black", 2.2, "rim"), (CONTOUR, 1.1, "region")):
                ax.plot(across, down, color=colour, linewidth=thick, gid=gid, scalex=False, scaley=False)

    def _plot_support(self, ax: Axes, one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        ax.imshow(self.support[one.support_index])
        weight = one.support_weights[one.support_index]
        ax.set_title(f"{self._support_name(one.support_index)}\nlargest weight ({weight:.2f})")

    def _plot_match(self, ax: Axes, one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        if one.matches is not None and one.match_box is not None:
            match = one.matches
            ax.imshow(self.support[match.support_index])
            _draw_box(ax, one.match_box)
            ax.set_title(f"{self._support_name(match.support_index)}\nnearest patch ({match.similarity:.2f})")

    def _support_name(self, index: int) -> str:
        return f"support {escaped(str(index) if self.support_names is None else self.support_names[index])}"


def _excess(one: Explanation) -> np.ndarray:
    """Return how far the map is above its level, in units of the threshold's score."""
    unit = one.decision - one.score
    return one.excess / np.float32(unit if unit > 0 else 1.0)


def _check_masks(masks: Sequence[Any] | None, n: int) -> None:
    if masks is not None and len(masks) != n:
        raise ValueError(f"{len(masks)} masks were given for {n} images. Pass None for an image without one.")


def _mask(given: Any) -> np.ndarray:
    if isinstance(given, (str, os.PathLike)):
        return read_mask(given).astype(float)
    mask = np.asarray(given)
    if mask.ndim != 2:
        raise ValueError(f"A mask has shape {mask.shape}; accepted are (H, W) and paths.")
    return (mask != 0).astype(float)


def _outline(ax: Axes, values: np.ndarray, shape: tuple[int, ...], colour: str, style: str) -> None:
    """Outline the area where values are above 0, including the image border, on a picture of the given shape."""
    padded = np.pad(values, 1, constant_values=-np.abs(values).max())
    y, x = (
        np.clip((np.arange(n + 2) - 0.5) / n * side - 0.5, -0.5, side - 0.5)
        for n, side in zip(values.shape, shape, strict=False)
    )
    if (values > 0).any():
        ax.contour(x, y, padded, [0], colors="black", linewidths=2.2, alpha=0.75)
        ax.contour(x, y, padded, [0], colors=colour, linewidths=1.1, linestyles=style)


def _grid(axes: Any, shapes: Sequence[tuple[int, ...]], n_columns: int) -> np.ndarray:
    """Check the given axes, or create a figure with a row per picture; without ticks."""
    n_rows = len(shapes)
    if axes is None:
        axes = _new_axes(shapes, n_columns)
    grid = np.asarray(axes, dtype=object)
    if grid.shape not in {(n_rows, n_columns), *([(n_columns,)] if n_rows == 1 else [])}:
        raise ValueError(f"axes has shape {grid.shape}; {n_rows} image(s) need ({n_rows}, {n_columns}).")
    for ax in grid.flat:
        ax.set_axis_off()
        ax.set_anchor("N")  # aligns the titles of a row
        ax.title.set_fontsize("small")
    return grid.reshape(n_rows, n_columns)


def _new_axes(shapes: Sequence[tuple[int, ...]], n_columns: int) -> Any:
    """Create a figure in which pictures of any aspect ratio have about the same area."""
    steepness = [(height / width) ** 0.5 for height, width, *_ in shapes]
    heights = [min(max(_SIDE * steep, _LOWEST), _LONGEST) for steep in steepness]
    width = max(_NARROWEST, *(min(_SIDE / steep, _LONGEST) for steep in steepness))
    size = (width * n_columns + 1.2, sum(heights) + _TITLE * len(heights))
    return pyplot().subplots(
        len(heights), n_columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )[1]


def _draw_box(ax: Axes, box: Box) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    # The dark rim makes the box visible on any image.
    effects = [withStroke(linewidth=3, foreground="black")]
    corner = (box.left - 0.5, box.top - 0.5)  # the first pixel's centre is at 0
    ax.add_patch(
        Rectangle(corner, box.width, box.height, fill=False, edgecolor="white", linewidth=1.5, path_effects=effects)
    )
