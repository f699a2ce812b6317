"""Arrays with named dimensions, for where xarray is not installed: the part of its interface that sweeps need."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def dataset(variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]], coords: Mapping[str, Any], attrs: dict) -> Any:
    """An `xarray.Dataset` if xarray is installed, and a `Dataset` otherwise."""
    try:
        import xarray
    except ImportError:
        coords = {name: np.asarray(values) for name, values in coords.items()}
        arrays = {
            name: DataArray(values, dims, {d: coords[d] for d in dims if d in coords}, name)
            for name, (dims, values) in variables.items()
        }
        return Dataset(arrays, coords, attrs)
    return xarray.Dataset(dict(variables), dict(coords), attrs)


class DataArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A NumPy array whose dimensions have names, and coordinates where the sweep gave them.

    Arithmetic and comparisons work elementwise with numbers, arrays and other `DataArray`s of the same dimensions.
    """

    def __init__(self, values: Any, dims: tuple[str, ...], coords: Mapping[str, np.ndarray], name: str | None = None):
        self.values, self.dims, self.coords, self.name = np.asarray(values), tuple(dims), dict(coords), name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.dims, self.shape, strict=True))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or "out" in kwargs:
            return NotImplemented
        for other in inputs:
            if isinstance(other, DataArray) and other.dims != self.dims:
                raise ValueError(f"dimensions {other.dims} and {self.dims} differ; select or reduce them first")
        values = ufunc(*(i.values if isinstance(i, DataArray) else i for i in inputs), **kwargs)
        return DataArray(values, self.dims, self.coords)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __float__(self) -> float:
        return float(self.values)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        return f"<DataArray {self.name or ''} ({sizes})>\n{self.values!r}"

    def item(self) -> Any:
        return self.values.item()

    def isel(self, **indices: Any) -> "DataArray":
        """Selects by position; an integer drops the dimension."""
        self._known(indices)
        index = tuple(indices.get(name, slice(None)) for name in self.dims)
        kept = [name for name, i in zip(self.dims, index, strict=True) if np.ndim(i) or isinstance(i, slice)]
        coords = {d: c[indices.get(d, slice(None))] for d, c in self.coords.items() if d in kept}
        values = self.values
        for axis in reversed(range(len(index))):
            values = values[(slice(None),) * axis + (index[axis],)]
        return DataArray(values, tuple(kept), coords, self.name)

    def sel(self, **labels: Any) -> "DataArray":
        """Selects by the value of a coordinate, which must be among those of the sweep."""
        self._known(labels)
        places = {}
        for name, label in labels.items():
            found = np.flatnonzero(self.coords[name] == label)
            if not found.size:
                raise KeyError(f"{name} = {label!r} is not among {self.coords[name].tolist()}")
            places[name] = int(found[0])
        return self.isel(**places)

    def _known(self, names: Mapping[str, Any]) -> None:
        if unknown := [name for name in names if name not in self.dims]:
            raise ValueError(f"no dimension {unknown[0]!r}; there are {self.dims}")

    def _reduce(self, function: Any, dim: Any) -> "DataArray":
        names = self.dims if dim is None else (dim,) if isinstance(dim, str) else tuple(dim)
        self._known(dict.fromkeys(names))
        values = function(self.values, axis=tuple(self.dims.index(name) for name in names))
        kept = tuple(name for name in self.dims if name not in names)
        return DataArray(values, kept, {d: c for d, c in self.coords.items() if d in kept}, self.name)

    def mean(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.mean, dim)

    def median(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.median, dim)

    def std(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.std, dim)

    def min(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.min, dim)

    def max(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.max, dim)

    def sum(self, dim: Any = None) -> "DataArray":
        return self._reduce(np.sum, dim)

    def quantile(self, q: float, dim: Any = None) -> "DataArray":
        return self._reduce(lambda values, axis: np.quantile(values, q, axis=axis), dim)


class Dataset(Mapping):
    """Named `DataArray`s over shared coordinates."""

    def __init__(self, arrays: Mapping[str, DataArray], coords: Mapping[str, np.ndarray], attrs: dict):
        self.data_vars, self.coords, self.attrs = dict(arrays), dict(coords), dict(attrs)

    def __getitem__(self, name: str) -> Any:
        return self.coords[name] if name in self.coords else self.data_vars[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data_vars)

    def __len__(self) -> int:
        return len(self.data_vars)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: size for array in self.data_vars.values() for name, size in array.sizes.items()}

    def _each(self, method: str, *args: Any, **kwargs: Any) -> "Dataset":
        arrays = {name: getattr(array, method)(*args, **kwargs) for name, array in self.data_vars.items()}
        left = {name for array in arrays.values() for name in array.dims}
        return Dataset(arrays, {name: c for name, c in self.coords.items() if name in left}, self.attrs)

    def isel(self, **indices: Any) -> "Dataset":
        return self._each("isel", **indices)

    def sel(self, **labels: Any) -> "Dataset":
        return self._each("sel", **labels)

    def mean(self, dim: Any = None) -> "Dataset":
        return self._each("mean", dim)

    def median(self, dim: Any = None) -> "Dataset":
        return self._each("median", dim)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        lines = [f"  {name} ({', '.join(a.dims)}) {a.dtype}" for name, a in self.data_vars.items()]
        return "\n".join([f"<Dataset ({sizes})>", *lines])
