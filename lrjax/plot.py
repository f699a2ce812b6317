"""Plots that take axes and return axes: nothing is shown, saved or set globally.

Every function draws on `ax` when one is given. Without it the function makes its own figure, under
`style()`, and returns its axes. For several panels, open the style yourself:

    with lrjax.plot.style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        lrjax.plot.convergence(solution, ax=axes[0])

matplotlib is imported where it is used, so importing this module costs nothing.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lrjax.core.checks import on_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = TypeVar("Draw", bound=Callable[..., Any])

# Okabe and Ito's colours, told apart with any common form of colour blindness. Their yellow and black are
# left out: the first is too pale for a line on white, the second is the colour of the text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _FAINT = "#22272E", "#D8DDE3"

STYLE = {
    "figure.figsize": (5.6, 3.8),
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 11,
    "axes.labelpad": 5,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#8A939E",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.color": "#8A939E",
    "ytick.color": "#8A939E",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.minor.visible": False,
    "ytick.minor.size": 0,
    "text.color": _INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "image.interpolation": "nearest",
}


def style() -> AbstractContextManager[None]:
    """The look of lrjax's figures, in force only inside the `with` block.

    Returns:
        A context manager. Nothing of it remains after the block.

    Examples:
        >>> import matplotlib
        >>> before = matplotlib.rcParams["axes.grid"]
        >>> with style():
        ...     inside = matplotlib.rcParams["axes.grid"]
        >>> inside, matplotlib.rcParams["axes.grid"] == before
        (True, True)
    """
    import matplotlib

    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def _own_axes(draw: Draw) -> Draw:
    """Gives `draw` fresh axes, under `style()`, when it is called without any."""

    @functools.wraps(draw)
    def wrapper(*args: Any, ax: "Axes | None" = None, **kwargs: Any) -> "Axes":
        if ax is not None:
            return draw(*args, ax=ax, **kwargs)
        import matplotlib.pyplot as plt

        with style():
            figure, ax = plt.subplots()
            try:
                return draw(*args, ax=ax, **kwargs)
            except Exception:
                plt.close(figure)  # or a refused call leaves an empty figure in the notebook
                raise

    return wrapper  # type: ignore[return-value]


@_own_axes
def convergence(
    solution: Any, *, quantity: str | None = None, label: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draws one recorded quantity against the step, on a logarithmic axis.

    Args:
        solution: anything with a `trace`: a dict of arrays of shape `(records,)` or
            `(..., lanes, records)`, one of them named `"step"`. Several lanes become their median and a
            band from the 10th to the 90th percentile.
        quantity: the column to draw; by default the first of `relative_error`, `residual` and
            `objective` that was recorded.
        label: names the curve in a legend.
        ax: where to draw; a new figure without it.

    Returns:
        The axes.

    Raises:
        ValueError: if the trace has no such column, no `"step"`, or columns of different shapes.

    Examples:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(trace={"step": np.arange(5), "residual": 0.1 ** np.arange(5)})
        >>> convergence(run).get_ylabel()
        'residual'
    """
    assert ax is not None
    trace = solution.trace
    quantity = _quantity(trace) if quantity is None else quantity
    for name in (quantity, "step"):
        if name not in trace:
            raise ValueError(f"the trace has no column {name!r}; it has {sorted(trace)}")
    values, steps = _real(quantity, trace[quantity]), _real("step", trace["step"])
    if values.shape != steps.shape or values.ndim == 0:
        raise ValueError(
            f"{quantity!r} has shape {values.shape} and 'step' has {steps.shape}; expected the same shape, "
            "with the records last"
        )
    if values.ndim == 1:
        ax.plot(steps, values, label=label)
    else:
        lanes = values.reshape(-1, values.shape[-1])
        # A lane that stopped repeats its last value, so the longest-running lane gives the step of a record.
        at = steps.reshape(lanes.shape).max(axis=0)
        low, median, high = np.quantile(lanes, (0.1, 0.5, 0.9), axis=0)
        (line,) = ax.plot(at, median, label=label)
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel(quantity.replace("_", " "))
    if label is not None:
        ax.legend()
    return ax


@_own_axes
def phase_diagram(
    success: Any,
    x: Any,
    y: Any,
    *,
    xlabel: str,
    ylabel: str,
    theory: tuple[Any, Any] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a success rate over a grid of two parameters.

    Args:
        success: `(len(y), len(x))` rates in [0, 1]; `success[i, j]` belongs to `y[i]` and `x[j]`.
        x: increasing values of the horizontal parameter.
        y: increasing values of the vertical parameter.
        xlabel: what x is.
        ylabel: what y is.
        theory: `(x, y)` arrays of a predicted boundary, drawn as a dashed line and cut at the grid.
        ax: where to draw; a new figure without it.

    Returns:
        The axes; a colour bar is added to their figure.

    Raises:
        ValueError: if the shapes disagree, a rate lies outside [0, 1], or a parameter does not increase.
    """
    assert ax is not None
    success, x, y = _real("success", success), _real("x", x), _real("y", y)
    if x.ndim != 1 or y.ndim != 1 or success.shape != (y.size, x.size):
        raise ValueError(
            f"success has shape {success.shape}, expected (len(y), len(x)) = ({y.size}, {x.size}) with x and "
            f"y one-dimensional (they have shapes {x.shape} and {y.shape})"
        )
    if not np.all((success >= 0) & (success <= 1)):
        raise ValueError(f"success rates must lie in [0, 1], got values from {success.min()} to {success.max()}")
    columns, rows = _edges(x, "x"), _edges(y, "y")
    mesh = ax.pcolormesh(columns, rows, success, cmap="Blues", vmin=0, vmax=1)
    ax.grid(False)
    if theory is not None:
        ax.plot(*theory, color=COLOURS[1], linestyle="--", linewidth=2, label="theory")
        ax.legend(frameon=True, facecolor="white", framealpha=0.9, edgecolor="none")
    ax.set_xlim(columns[0], columns[-1])
    ax.set_ylim(rows[0], rows[-1])
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    from matplotlib.ticker import MaxNLocator

    # Counts, such as a rank, get no ticks between them.
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        if np.all(values == np.round(values)):
            axis.set_major_locator(MaxNLocator(integer=True))
    bar = ax.figure.colorbar(mesh, ax=ax, label="success rate", ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


@_own_axes
def image(
    array: Any,
    *,
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a matrix as a grey picture; entries that are NaN are left pale orange.

    Args:
        array: `(n1, n2)`.
        title: written above it.
        limits: the values drawn black and white; by default the extremes of the finite entries. Give
            `(0, 1)` to compare pictures.
        ax: where to draw; a new figure without it.

    Returns:
        The axes, without ticks.

    Raises:
        ValueError: if `array` is not a matrix or has no finite entry.
    """
    assert ax is not None
    array = _real("array", array)
    if array.ndim != 2:
        raise ValueError(f"expected a matrix, got shape {array.shape}")
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        raise ValueError(f"the matrix of shape {array.shape} has no finite entry")
    import matplotlib

    black, white = (finite.min(), finite.max()) if limits is None else limits
    grey = matplotlib.colormaps["gray"].with_extremes(bad="#F3CDB0")
    ax.imshow(array, cmap=grey, vmin=black, vmax=white)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    if title is not None:
        ax.set_title(title)
    return ax


@_own_axes
def spectrum(values: Any, *, label: str | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draws singular values, in the order given, on a logarithmic axis.

    Args:
        values: `(k,)`, none negative. A zero has no place on the axis: its line falls out at the bottom.
        label: names the curve in a legend.
        ax: where to draw; a new figure without it.

    Returns:
        The axes.

    Raises:
        ValueError: if `values` is not a vector, is empty, or holds a negative or non-finite number.
    """
    assert ax is not None
    values = _real("values", values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a non-empty vector of singular values, got shape {values.shape}")
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise ValueError(f"singular values must be finite and not negative, got {values}")
    from matplotlib.ticker import MaxNLocator

    ax.plot(np.arange(1, values.size + 1), values, marker="o", label=label)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("index")
    ax.set_ylabel("singular value")
    if label is not None:
        ax.legend()
    return ax


@_own_axes
def bars(values: Mapping[str, float], *, xlabel: str, ax: "Axes | None" = None) -> "Axes":
    """Compares a few numbers, such as held-out errors: one horizontal bar each, from zero.

    Args:
        values: name to number, drawn from top to bottom; none negative. The smallest is set off.
        xlabel: what the numbers are.
        ax: where to draw; a new figure without it.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or a number is negative or not finite.
    """
    assert ax is not None
    if not values:
        raise ValueError("bars needs at least one number, got none")
    numbers = np.array([float(value) for value in values.values()])
    if not np.all(np.isfinite(numbers) & (numbers >= 0)):
        raise ValueError(f"bars must be finite and not negative, got {dict(values)}")
    colours = [COLOURS[0] if number == numbers.min() else "#A9BACB" for number in numbers]
    drawn = ax.barh(list(values), numbers, height=0.62, color=colours)
    ax.bar_label(drawn, fmt="%.3f", padding=5)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * max(numbers.max(), np.finfo(float).tiny))  # room for the numbers
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(xlabel)
    return ax


def _real(name: str, values: Any) -> np.ndarray:
    """What is drawn, in NumPy's doubles: a complex number would lose its imaginary part, and text be parsed."""
    array = on_host(name, values)
    if np.iscomplexobj(array):
        raise ValueError(f"{name} must be real; got dtype {array.dtype}")
    return array.astype(float)


def _quantity(trace: Mapping[str, Any]) -> str:
    names = ("relative_error", "residual", "objective")
    for name in names:
        if name in trace:
            return name
    raise ValueError(f"the trace has none of {names}; say which quantity to draw: it has {sorted(trace)}")


def _edges(centres: np.ndarray, name: str) -> np.ndarray:
    """Borders of the cells around increasing centres: halfway between, the ends mirrored outwards."""
    if not np.all(np.isfinite(centres)) or np.any(np.diff(centres) <= 0):
        raise ValueError(f"{name} must be finite and increasing, got {centres}")
    if centres.size == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
