"""Results with a picture of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catapult_ext._shown import Shown
from catapult_ext.figures.style import save_figure


class Drawn(Shown):
    """A result that is shown with its picture; subclasses make it in ``_figure``."""

    _dpi = 150

    def _figure(self, *args: Any, **options: Any) -> Any:
        """The picture, a matplotlib Figure."""
        raise NotImplementedError

    def _picture(self) -> Any:
        return self._figure()

    def plot(self, path: Path | str | None = None, **options: Any) -> Any:
        """The picture as a matplotlib Figure, which a notebook shows.

        Args:
            path: also write it there, as .png, .svg or .pdf.
            **options: options of the picture; the class says which it has.

        Raises:
            RuntimeError: matplotlib is missing (the message names the extra), or ``path`` cannot be
                written.
            ValueError: ``path`` has another suffix.
        """
        figure = self._figure(**options)
        if path is not None:
            save_figure(figure, path, self._dpi)
        return figure


class DrawnToFile(Drawn):
    """The same, whose ``plot(path)`` hands back the path of what it wrote."""

    _dpi = 110

    def plot(self, path: Path | str | None = None, **options: Any) -> Any:
        """The picture: written to ``path``, which is returned, else a matplotlib Figure.

        Arguments and errors are those of :meth:`Drawn.plot`.
        """
        figure = super().plot(path, **options)
        return figure if path is None else Path(path)
