"""Pictures as PNG files; matplotlib is an extra."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

DPI = 110


def save(draw: Callable[[Any], Any], folder: str | Path, name: str) -> str:
    """Draws into FOLDER/NAME.png by draw(pyplot); returns a line about it. Without matplotlib, that line says so."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return f"No picture of {name}: matplotlib is not installed (pip install '.[plot]')."
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(plt)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return f"Picture: {path}"
