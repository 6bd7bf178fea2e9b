"""Images, where they are anomalous, and the support images that they were compared with."""

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
# The colour scale begins this share of the threshold below it, and goes at least as far beyond.
_REACH = 0.25
# Inches: side of the square that a picture is as large as, and its longest side; a column that titles fit into; rows.
_SIDE, _LONGEST, _NARROWEST, _LOWEST, _TITLE = 2.1, 3.4, 1.9, 0.5, 0.45


class AnomalyMapDisplay(Saved):
    """Images, where they are anomalous, and the support images that they were compared with.

    A row for each image: the image with a box at its hottest spot; its anomaly map; the support image that counted
    most; and, where "patch" is among the evidence, the support image with the patch that is most like the hottest spot,
    in a box. A box is as large as the square that one patch stands for. Images are in their own proportions; support
    images as the detector holds them, small. `panels` chooses among the four.

    All maps have one colour scale. It shows how far the map, its border faded as in the score, is above what the
    hottest pixels (by default the highest 1 %) of this image must reach on average for the image to be called anomalous
    (`Explanation.excess`), in units of the threshold's score. The threshold is 0, the middle of the scale; the mean of
    the hottest pixels is the image's score less 1. Colour begins a quarter below the threshold, so most of a normal
    image has none, and covers at most 40 % of the image. The regions of an anomalous image
    (`Explanation.regions`) are outlined; a ground-truth mask is, in white, dashed.

    Parameters
    ----------
    explanations : sequence of Explanation
        From `DualDistillationDetector.explain`, one for each row.
    support : sequence of ndarray of shape (H, W, 3), uint8, or None
        The K support images as the detector saw them. None leaves out their panels.
    names : sequence of str, optional
        Of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Of the support images. By default their numbers.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous, for the titles.
    masks : sequence of path, array-like of shape (H, W), or None, optional
        Where each image is anomalous, as `ImageFolder.masks` has it: a file or an array, not 0 where anomalous, in the
        image's proportions; None for an image without one.
    panels : sequence of str, optional
        Which panels are shown, from left to right: "image", "map", "support", "match". By default all there are.

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
        """Explain images and draw them.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`; a row of panels each, so a handful. Unreadable ones have no row with on_error="skip".
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous, for the titles.
        masks : sequence of path, array-like of shape (H, W), or None, optional
            Where each image is anomalous: outlined on its map.
        panels : sequence of str, optional
            Which panels are shown: "image", "map", "support", "match". By default all there are.
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
            None of the images can be read, or a mask cannot.
        ValueError
            y or `masks` is not as long as X, y has other labels, `axes` has another shape, or `panels` are not those.
        """
        pyplot()  # before the work, not after it
        session = estimator.session()
        X, names = named(session, X)
        labels = check_labels(y, len(names))
        _check_masks(masks, len(names))
        found = list(session.explanations(X, session.settings.on_error))
        if not found:
            raise ImageError(f"None of the {len(names)} images could be read: there is nothing to draw.")
        # A detector that came from a file may have left the images behind.
        kept = session.fitted.images
        display = cls(
            [one for _, one in found],
            None if kept is None else [as_uint8(image) for image in kept],
            names=[names[i] for i, _ in found],
            support_names=names_of_support(session),
            y=None if labels is None else labels[[i for i, _ in found]],
            masks=None if masks is None else [masks[i] for i, _ in found],
            panels=panels,
        )
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, axes: Any = None, *, cmap: str | Colormap | None = None) -> AnomalyMapDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib Axes, optional
            (n_images, n_panels); for one image also without the first dimension. There are 4 panels by default, 3
            without "patch" among the evidence, 2 without support images. By default those of a new figure.
        cmap : str or matplotlib Colormap, optional
            Colour map of the anomaly map. By default `warm_colours()`.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.
        """
        plt = pyplot()
        shown = self.explanations
        cmap = warm_colours() if cmap is None else cmap
        labels, panels = check_labels(self.y, len(shown)), self._panels()
        _check_masks(self.masks, len(shown))
        self.axes_ = _grid(axes, [one.picture.shape for one in shown], len(panels))
        self.figure_ = self.axes_[0, 0].figure
        scale = self._scale()
        for i, (one, row) in enumerate(zip(shown, self.axes_, strict=True)):
            for panel, ax in zip(panels, row, strict=True):
                if panel == "image":
                    ax.imshow(one.picture)
                    _draw(ax, one.hot_box)
                    name = f"image {i}" if self.names is None else self.names[i]
                    label = "" if labels is None else f"\nlabelled {word(labels[i])}"
                    ax.set_title(f"{escaped(name)}{label}")
                elif panel == "map":
                    self._overlay(ax, one, scale, cmap)
                    if self.masks is not None and self.masks[i] is not None:
                        _outline(ax, _mask(self.masks[i]) - 0.5, one.picture.shape, "white", "dashed")
                    _draw(ax, one.hot_box)
                    ax.set_title(f"score {one.relative:.2f}\ncalled {word(one.decision)}")
                elif panel == "support":
                    self._show_support(ax, one)
                else:
                    self._show_match(ax, one)
        if "map" in panels:
            self._colour_bar(plt.cm.ScalarMappable(scale, cmap))
        return self

    def _panels(self) -> tuple[str, ...]:
        """Check the panels that are asked for against those there are."""
        n_there = 2 if self.support is None else 3 if all(one.matches is None for one in self.explanations) else 4
        there = _PANELS[:n_there]
        if self.panels is None:
            return there
        panels = (self.panels,) if isinstance(self.panels, str) else tuple(self.panels)
        if not panels or not set(panels) <= set(there):
            raise ValueError(
                f"panels={self.panels!r} was given; accepted here are one or more of {', '.join(there)}."
                + (" Those of the support need its images and its patches." if n_there < len(_PANELS) else "")
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

    def _show_support(self, ax: Axes, one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        ax.imshow(self.support[one.support_index])
        weight = one.support_weights[one.support_index]
        ax.set_title(f"{self._support_name(one.support_index)}\ncounted most ({weight:.2f})")

    def _show_match(self, ax: Axes, one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        if one.matches is not None and one.match_box is not None:
            match = one.matches
            ax.imshow(self.support[match.support_index])
            _draw(ax, one.match_box)
            ax.set_title(f"{self._support_name(match.support_index)}\nnearest patch ({match.similarity:.2f})")

    def _support_name(self, index: int) -> str:
        return f"support {escaped(str(index) if self.support_names is None else self.support_names[index])}"


def _excess(one: Explanation) -> np.ndarray:
    """Tell how far the map is above the level of the threshold, in units of the threshold's score."""
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
    """Outline where values are above 0, along the border too, on a picture of that shape."""
    padded = np.pad(values, 1, constant_values=-np.abs(values).max())
    y, x = (
        np.clip((np.arange(n + 2) - 0.5) / n * side - 0.5, -0.5, side - 0.5)
        for n, side in zip(values.shape, shape, strict=False)
    )
    if (values > 0).any():
        ax.contour(x, y, padded, [0], colors="black", linewidths=2.2, alpha=0.75)
        ax.contour(x, y, padded, [0], colors=colour, linewidths=1.1, linestyles=style)


def _grid(axes: Any, shapes: Sequence[tuple[int, ...]], n_columns: int) -> np.ndarray:
    """Check the given axes, or make a figure of them, of a row for each picture; without ticks."""
    n_rows = len(shapes)
    if axes is None:
        axes = _new_axes(shapes, n_columns)
    grid = np.asarray(axes, dtype=object)
    if grid.shape not in {(n_rows, n_columns), *([(n_columns,)] if n_rows == 1 else [])}:
        raise ValueError(f"axes has shape {grid.shape}; {n_rows} image(s) need ({n_rows}, {n_columns}).")
    for ax in grid.flat:
        ax.set_axis_off()
        ax.set_anchor("N")  # so that the titles of a row are in line
        ax.title.set_fontsize("small")
    return grid.reshape(n_rows, n_columns)


def _new_axes(shapes: Sequence[tuple[int, ...]], n_columns: int) -> Any:
    """Make a figure in which pictures of any proportions are about equally large."""
    steepness = [(height / width) ** 0.5 for height, width, *_ in shapes]
    heights = [min(max(_SIDE * steep, _LOWEST), _LONGEST) for steep in steepness]
    width = max(_NARROWEST, *(min(_SIDE / steep, _LONGEST) for steep in steepness))
    size = (width * n_columns + 1.2, sum(heights) + _TITLE * len(heights))
    return pyplot().subplots(
        len(heights), n_columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )[1]


def _draw(ax: Axes, box: Box) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    # A dark rim: the box shows on any image.
    effects = [withStroke(linewidth=3, foreground="black")]
    corner = (box.left - 0.5, box.top - 0.5)  # the first pixel's centre is at 0
    ax.add_patch(
        Rectangle(corner, box.width, box.height, fill=False, edgecolor="white", linewidth=1.5, path_effects=effects)
    )
