"""Images, where they are anomalous, and the support images that they were compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..exceptions import ImageError
from ..explanation import Explanation, as_uint8
from .common import BLACK, SKY, check_labels, escaped, named, names_of_support, pyplot, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..detector import DualDistillationDetector

# How opaque a map is at the threshold, which is the middle of the scale, and at the scale's upper end.
_MIDDLE, _DENSEST = 0.35, 0.8
# The colour scale begins this share of the threshold below it, and goes at least as far beyond.
_REACH = 0.25


class AnomalyMapDisplay:
    """Images, where they are anomalous, and the support images that they were compared with.

    A row for each image: the image with a box at its hottest spot; its anomaly map; the support image that counted
    most; and, where "patch" is among the evidence, the support image with the patch that is most like the hottest spot,
    in a box. A box is as large as the square that one patch stands for.

    All maps have one colour scale. It shows how far the map, its border faded as in the score, is above what the
    hottest pixels (by default the highest 1 %) of this image must reach on average for the image to be called anomalous
    (`Explanation.excess`), in units of the threshold's score. The threshold is 0, the middle of the scale, and outlined
    in the map; the mean of the hottest pixels is the image's score less 1. Colour begins a quarter below the threshold,
    so most of a normal image has none.

    Parameters
    ----------
    explanations : sequence of Explanation
        From `DualDistillationDetector.explain`, one for each row.
    support : ndarray of shape (K, S, S, 3), uint8, or None
        The support images. None leaves out their panels.
    names : sequence of str, optional
        Of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Of the support images. By default their numbers.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous, for the titles.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes, shape (n_images, 2, 3 or 4)
    """

    def __init__(
        self,
        explanations: Sequence[Explanation],
        support: np.ndarray | None,
        *,
        names: Sequence[str] | None = None,
        support_names: Sequence[str] | None = None,
        y: Any = None,
    ) -> None:
        self.explanations = explanations
        self.support = support
        self.names = names
        self.support_names = support_names
        self.y = y

    @classmethod
    def from_estimator(
        cls, estimator: DualDistillationDetector, X: Any, *, y: Any = None, axes: Any = None, cmap: str = "plasma"
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
        axes : array of matplotlib Axes, optional
            See `plot`.
        cmap : str, default="plasma"
            Colour map of the anomaly map.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ImageError
            None of the images can be read.
        ValueError
            y is not as long as X or has other labels, or `axes` has another shape.
        """
        pyplot()  # before the work, not after it
        session = estimator.session()
        X, names = named(session, X)
        labels = check_labels(y, len(names))
        found = list(session.explanations(X, session.settings.on_error))
        if not found:
            raise ImageError(f"None of the {len(names)} images could be read: there is nothing to draw.")
        # A detector that came from a file may have left the images behind.
        kept = session.fitted.images
        display = cls(
            [one for _, one in found],
            None if kept is None else as_uint8(kept),
            names=[names[i] for i, _ in found],
            support_names=names_of_support(session),
            y=None if labels is None else labels[[i for i, _ in found]],
        )
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, axes: Any = None, *, cmap: str = "plasma") -> AnomalyMapDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib Axes, optional
            (n_images, 4), (n_images, 3) without "patch" among the evidence, (n_images, 2) without support images; for
            one image also without the first dimension. By default those of a new figure.
        cmap : str, default="plasma"
            Colour map of the anomaly map.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.
        """
        plt = pyplot()
        shown = self.explanations
        labels = check_labels(self.y, len(shown))
        n_columns = 2 if self.support is None else 3 if all(one.matches is None for one in shown) else 4
        self.axes_ = _grid(axes, len(shown), n_columns)
        self.figure_: Figure = self.axes_[0, 0].figure
        scale = self._scale()
        for i, (one, row) in enumerate(zip(shown, self.axes_, strict=True)):
            spot = _patch_around(one)
            row[0].imshow(one.image)
            _box(row[0], spot, one.patch_size)
            name = f"image {i}" if self.names is None else self.names[i]
            label = "" if labels is None else f"\nlabelled {word(labels[i])}"
            row[0].set_title(f"{escaped(name)}{label}")
            self._overlay(row[1], one, scale, cmap)
            _box(row[1], spot, one.patch_size)
            row[1].set_title(f"score {one.relative:.2f}\ncalled {word(one.decision)}")
            if self.support is not None:
                self._show_support(row[2:], one)
        mappable = plt.cm.ScalarMappable(scale, cmap)
        bar = self.figure_.colorbar(mappable, ax=self.axes_, shrink=min(1.0, 0.9 / len(shown) + 0.2), pad=0.02)
        bar.set_ticks([scale.vmin, scale.vmin / 2, 0, scale.vmax / 2, scale.vmax])
        bar.ax.yaxis.set_major_formatter("{x:+.2f}")
        bar.ax.axhline(0, color="white", linewidth=1.5)
        bar.set_label("below and above the threshold\n(1 = the threshold's score)", fontsize="small")
        return self

    def _scale(self) -> Any:
        from matplotlib.colors import TwoSlopeNorm

        return TwoSlopeNorm(0, -_REACH, max(_REACH, *(float(_excess(one).max()) for one in self.explanations)))

    def _overlay(self, ax: Axes, one: Explanation, scale: Any, cmap: str) -> None:
        ax.imshow(Image.fromarray(one.image).convert("L"), cmap="gray", vmin=0, vmax=255)
        excess = _excess(one)
        alpha = np.interp(scale(excess), [0, 0.5, 1], [0, _MIDDLE, _DENSEST])
        ax.imshow(excess, cmap=cmap, norm=scale, alpha=alpha)
        if excess.min() < 0 < excess.max():
            ax.contour(excess, [0], colors="white", linewidths=0.8)

    def _show_support(self, axes: Sequence[Axes], one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        axes[0].imshow(self.support[one.support_index])
        weight = one.support_weights[one.support_index]
        axes[0].set_title(f"{self._support_name(one.support_index)}\ncounted most ({weight:.2f})")
        if one.matches is not None:
            match = one.matches
            axes[1].imshow(self.support[match.support_index])
            _box(axes[1], (match.row, match.col), one.patch_size)
            axes[1].set_title(f"{self._support_name(match.support_index)}\nnearest patch ({match.similarity:.2f})")

    def _support_name(self, index: int) -> str:
        return f"support {escaped(str(index) if self.support_names is None else self.support_names[index])}"


def _excess(one: Explanation) -> np.ndarray:
    """Tell how far the map is above the level of the threshold, in units of the threshold's score."""
    unit = one.decision - one.score
    return one.excess / np.float32(unit if unit > 0 else 1.0)


def _grid(axes: Any, n_rows: int, n_columns: int) -> np.ndarray:
    """Check the given axes, or make a figure of them; without ticks."""
    if axes is None:
        size = (2.1 * n_columns + 1.2, 2.5 * n_rows + 0.1)
        axes = pyplot().subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="compressed")[1]
    grid = np.asarray(axes, dtype=object)
    if grid.shape not in {(n_rows, n_columns), *([(n_columns,)] if n_rows == 1 else [])}:
        raise ValueError(f"axes has shape {grid.shape}; {n_rows} image(s) need ({n_rows}, {n_columns}).")
    for ax in grid.flat:
        ax.set_axis_off()
        ax.title.set_fontsize("small")
    return grid.reshape(n_rows, n_columns)


def _patch_around(one: Explanation) -> tuple[float, float]:
    """Find the centre of the patch that the hottest spot belongs to."""
    row, col = (((place + 0.5) // one.patch_size + 0.5) * one.patch_size - 0.5 for place in one.hot_spot)
    return row, col


def _box(ax: Axes, centre: tuple[float, float], side: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    row, col = centre
    # A dark rim: the box shows on any image.
    effects = [withStroke(linewidth=3, foreground=BLACK)]
    corner = (col - side / 2, row - side / 2)
    ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=SKY, linewidth=1.5, path_effects=effects))
