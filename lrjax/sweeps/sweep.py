"""Grids of trials: one compile per static point, batches that fit the cache, every device, and a checkpoint."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from tqdm import tqdm

from lrjax.core.checks import check_choice, check_count, check_flag, check_key, host_array
from lrjax.sweeps import plan as grids
from lrjax.sweeps.checkpoint import Checkpoint, read_parts, read_plan

_AXIS = "trial"
# A batch whose working set exceeds the cache of a core streams every trial through memory at each step.
_CACHE_BYTES = 2**20
# With something shared, products with it are products of matrices, and long ones are worth the next cache.
_SHARED_CACHE_BYTES = 2**22
# Batches below this gain less from longer vectors than they lose by running every branch.
_LEAST_BATCH = 4
_MOST_BATCH = 4096
# On an accelerator: the share of its memory that a batch may take.
_MEMORY_SHARE = 0.25
# Calls that the trials of a static point are cut into: what a kill can cost, and how often the bar moves.
_CALLS = 128


def sweep(
    trial: Callable[..., Mapping[str, Any]],
    key: jax.Array,
    *,
    grid: Mapping[str, Sequence[Any]],
    num_trials: int,
    static: Sequence[str] = (),
    shared: Any = None,
    paired: bool = False,
    batch_size: int | str = "auto",
    devices: Sequence[Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """Runs `trial(key, **point)` at every point of a grid, `num_trials` times each, and returns labelled arrays.

    Traced axes share one compile; each combination of the static ones is compiled separately. Trials run in batches
    under `vmap`, batch after batch, on all devices at once. On a CPU a batch is what fits the cache of a core
    (one trial, without `vmap`, if that is less than four); on an accelerator what fits a quarter of its memory. So
    memory does not grow with the number of trials, and a trial may draw a large problem from its key.

    Every trial has its own key, made from `key`, its grid point and its number; it does not depend on batches,
    devices or processes. A trial that ends without a finite answer is recorded as it is, and counted in
    `attrs["num_nonfinite"]`.

    With `checkpoint` finished trials are kept on the disk, every second at first. A sweep that was killed goes on from
    there when it is called again, and gives the same bits as one that was not. A checkpoint of another sweep
    (grid, trials, key, trial function, precision, versions, kind of device) is refused.

    Args:
        trial: pure function from a key and one keyword argument for each axis to a dictionary of scalars or arrays,
            of the same shapes at all points. Traced axes come as scalars of JAX, static ones as they are.
        key: one random key.
        grid: values of each axis by name: one-dimensional arrays or sequences of numbers for the traced axes, of any
            hashable Python values for the static ones.
        num_trials: trials at each point.
        static: axes that shapes or Python branches depend on.
        shared: a pytree of arrays that all trials share, a measurement ensemble say; given to
            `trial` as the keyword `shared`. Not copied per trial, so products with it become products of matrices.
        paired: give trial number t the same key at all points: differences between points are then less noisy.
        batch_size: trials that one device runs together, or `"auto"`.
        devices: default all devices of this process. CPU "devices" must be asked for before JAX starts:
            `jax.config.update("jax_num_cpu_devices", count)`.
        checkpoint: directory, new or left by the same sweep.
        progress: a bar on standard error if the sweep takes longer than two seconds.

    Returns:
        An `xarray.Dataset`, in which `table["error"].sel(rank=3).mean("trial")` is a number. Each output has one
        dimension for each axis, in the order of `grid`, then `trial`, then its own. `attrs` has the settings, versions
        and key (`"plan"`), `"num_compiles"`, `"compile_seconds"`, `"num_nonfinite"` by output, `"batch_sizes"` and
        `"seconds"`, all included.

    Raises:
        ValueError: a bad argument, a trial that returns something else, a traced axis that the trial needs the value
            of or whose values its dtype cannot hold, a call within jit, vmap or grad, or a checkpoint of another sweep.
        OSError: the checkpoint cannot be written; what was finished is safe.

    Cost: that of the trials, one compile and two or three traces for each static point.

    When not to use it: a handful of large solves; call `lr.solve` for each. Trials of very different length in one
    batch take as long as the longest.

    With several processes (`jax.distributed.initialize`) all call this with the same arguments; each runs its share,
    all return everything. The checkpoint must then be a directory that all see.

    Examples:
        >>> import jax, lrjax as lr
        >>> def trial(key, corruption):
        ...     problem, truth = lr.synthetic.matrix_sensing(
        ...         key, shape=(6, 6), rank=1, num_measurements=90, symmetric=True, corruption=corruption)
        ...     solver = lr.SubgradientMethod(max_rank=1, symmetric=True)
        ...     solution = lr.solve(problem, solver, key, num_steps=300, record_every=300)
        ...     return {"error": lr.metrics.relative_error(solution.factors, truth)}
        >>> table = lr.sweep(trial, jax.random.key(0), grid={"corruption": [0.1, 0.3]}, num_trials=5, progress=False)
        >>> table["error"].dims
        ('corruption', 'trial')
        >>> bool((table["error"].sel(corruption=0.1) < 1e-2).mean("trial") > 0.5)
        True
    """
    begun = time.monotonic()
    check_key(key)
    # Under jit even a constant is traced.
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((key, grid, num_trials, shared, jnp.zeros(())))):
        raise ValueError("sweep cannot be traced: it runs on the host. Call it outside of jit, vmap and grad")
    plan = grids.Plan(grids.axes(grid, static), tuple(static), check_count("num_trials", num_trials))
    if plan.num_lanes >= 2**31:
        raise ValueError(f"grid and num_trials make {plan.num_lanes} trials for one compile; expected less than 2^31")
    if isinstance(batch_size, str):
        check_choice("batch_size", batch_size, ("auto",))
    else:
        batch_size = check_count("batch_size", batch_size)
    paired, progress = check_flag("paired", paired), check_flag("progress", progress)
    kept = (jax.Array, bool, int, float, complex)
    shared = jax.tree.map(lambda x: x if isinstance(x, kept) else host_array("shared", x), shared)
    devices = list(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices is empty; expected at least one device, or None for all")
    mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
    settings = grids.settings(plan, key, shared, paired, batch_size, devices[0])
    first_process = jax.process_index() == 0
    store = None
    if checkpoint is not None:
        if not first_process:
            _wait("plan")
        store = Checkpoint(checkpoint, settings, writes_plan=first_process)
        if first_process:
            _wait("plan")

    points = plan.static_points()
    total = len(points) * plan.num_lanes
    tables, batches, compiles = [], [], []
    with tqdm(total=total, desc="sweep", unit="trial", delay=2, disable=not (progress and first_process)) as bar:
        for combo, point in enumerate(points):
            job = _Job(trial, key, plan, point, combo, shared, paired, mesh)
            table, took, batch = job.run(batch_size, store, bar, tables[0] if tables else None)
            tables.append(_gathered(table, job.chunk))
            compiles += [] if took is None else [took]
            batches.append(batch)
            bar.set_postfix(compiles=len(compiles), refresh=False)
    attrs = {"num_compiles": len(compiles), "compile_seconds": sum(compiles), "batch_sizes": batches,
             "seconds": time.monotonic() - begun}  # fmt: skip
    return grids.assembled(plan, tables, settings, attrs)


def load_sweep(checkpoint: str | Path) -> Any:
    """The result of a finished sweep, from its checkpoint: what `sweep` returned, without running anything.

    Args:
        checkpoint: the directory given to `sweep`.

    Raises:
        ValueError: no checkpoint, one that is damaged, or a sweep that is not finished.

    Examples:
        >>> import jax, lrjax as lr, tempfile
        >>> trial = lambda key, scale: {"value": scale * jax.random.normal(key)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = lr.sweep(trial, jax.random.key(0), grid={"scale": [1.0, 2.0]}, num_trials=3, checkpoint=folder)
        ...     again = lr.load_sweep(folder)
        >>> bool((again["value"].values == made["value"].values).all())
        True
    """
    settings = read_plan(checkpoint)
    plan = grids.plan_of(settings)
    tables, done, points = [], 0, plan.static_points()
    for combo in range(len(points)):
        parts = [part for part in read_parts(checkpoint, combo) if part[1]]
        sizes = {meta["sizes"]["chunk"] for meta, _ in parts}
        found = {number: arrays for _, chunks in parts for number, arrays in chunks.items()}
        first = {name: value[0] for name, value in next(iter(found.values())).items()} if found else {}
        count = sum(len(next(iter(arrays.values()))) for arrays in found.values())
        # What is missing need not fit into memory.
        table = grids.Table(plan.num_lanes if count >= plan.num_lanes else 0, first)
        done += count
        if count >= plan.num_lanes:
            try:
                if len(sizes) > 1 or count > plan.num_lanes:
                    raise ValueError("their chunks overlap")
                for number, arrays in found.items():
                    table.put(number * min(sizes), arrays)
            except ValueError as error:
                raise ValueError(
                    f"checkpoint {str(checkpoint)!r} has damaged parts ({error}); remove its part-{combo:05d}-*.npz "
                    "and call lr.sweep again with the same arguments"
                ) from error
        tables.append(table.arrays)
    total = len(tables) * plan.num_lanes
    if done < total:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} holds {done} of {total} trials; call lr.sweep again with the same "
            "arguments to run the others"
        )
    return grids.assembled(plan, tables, settings, {})


class _Job:
    """The trials of one static point: traced, compiled and run."""

    def __init__(
        self,
        trial: Callable[..., Mapping[str, Any]],
        key: jax.Array,
        plan: grids.Plan,
        point: dict[str, Any],
        combo: int,
        shared: Any,
        paired: bool,
        mesh: jax.sharding.Mesh,
    ):
        self.plan, self.point, self.combo, self.mesh, self.chunk = plan, point, combo, mesh, 0
        values = {name: jnp.asarray(plan.values[name]) for name in plan.traced}
        offset = jnp.uint32(combo * (plan.num_lanes // plan.num_trials))
        self.inputs = (offset, key, values, shared)

        def lane(index: jax.Array, offset: jax.Array, key: jax.Array, values: dict, shared: Any, **known: Any) -> dict:
            place, number = index // plan.num_trials, index % plan.num_trials
            if not paired:
                key = jax.random.fold_in(key, offset + place.astype(jnp.uint32))
            at = jnp.unravel_index(place, plan.sizes) if plan.sizes else ()
            traced = {name: values[name][i] for name, i in zip(plan.traced, at, strict=True)}
            given = point | traced | known | ({} if shared is None else {"shared": shared})
            found = trial(jax.random.fold_in(key, number), **given)
            if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
                raise ValueError(f"trial returned {type(found).__name__}; expected a dictionary of scalars or arrays")
            arrays = {name: _numeric(name, value, plan) for name, value in found.items()}
            own = {f"{name}_dim_{i}" for name, array in arrays.items() for i in range(array.ndim)}
            if clash := sorted(own & {*arrays, *plan.values}):
                raise ValueError(f"{clash[0]!r} is the name of a dimension of an output; expected another name")
            return arrays

        self.lane = lane

    def run(
        self, batch_size: int | str, store: Checkpoint | None, bar: Any, like: Mapping[str, np.ndarray] | None
    ) -> tuple[grids.Table, float | None, int]:
        """The table, the seconds of tracing and compiling (`None` if nothing was left to run) and the batch size."""
        begun, one = time.monotonic(), jax.ShapeDtypeStruct((), jnp.int32)
        try:
            closed, outputs = jax.make_jaxpr(self.lane, return_shape=True)(one, *self.inputs)
        except Exception as error:
            if _wants_a_value(error) and (names := self._to_be_static()):
                raise ValueError(
                    f"trial needs the value of {' and '.join(map(repr, names))} while it is traced; name it in static, "
                    f"sweep(..., static={tuple(names)!r}): one compile for each value. {str(error).splitlines()[0]}"
                ) from error
            raise
        if any(isinstance(const, Tracer) for const in closed.consts):
            raise ValueError("trial closes over a traced value; call sweep outside of jit, vmap and grad")
        if like is not None:
            before = {name: values.shape[1:] for name, values in like.items()}
            if before != (now := {name: one.shape for name, one in outputs.items()}):
                raise ValueError(
                    f"trial returned outputs of different shapes at different static points: {before} at first, and "
                    f"{now} at {_named(self.point)}"
                )
        table, sizes, chunks, fingerprint = grids.Table(self.plan.num_lanes, outputs), None, {}, ""
        if store:
            fingerprint = _fingerprint(closed)
            sizes, chunks = store.read(self.combo, fingerprint)
        if sizes:
            self.chunk = sizes["chunk"]
            for number, arrays in chunks.items():
                bar.update(table.put(number * self.chunk, arrays))
        count = len(self.mesh.devices)
        if sizes is None:
            batch = self._batch(closed) if batch_size == "auto" else int(batch_size)
            batch = min(batch, -(-self.plan.num_lanes // count))
            rounds = -(-self.plan.num_lanes // (count * batch))
            sizes = {"batch": batch, "chunk": count * batch * max(1, -(-rounds // _CALLS))}
            self.chunk = sizes["chunk"]
        numbers = range(-(-self.plan.num_lanes // self.chunk))
        todo = [c for c in numbers if c % jax.process_count() == jax.process_index() and c not in chunks]
        if not todo:
            return table, None, sizes["batch"]
        width = -(-self.chunk // (count * sizes["batch"])) * sizes["batch"] * count
        bar.set_description(f"sweep {_named(self.point)}: compiling" if self.point else "sweep: compiling")
        program = self._compile(width, sizes["batch"])
        took = time.monotonic() - begun
        bar.set_description(f"sweep {_named(self.point)}" if self.point else "sweep")
        waiting, ahead = [], int(self.mesh.devices.flat[0].platform != "cpu")

        def settle(number: int, found: dict) -> None:
            start = number * self.chunk
            arrays = {name: np.asarray(values)[: self.plan.num_lanes - start] for name, values in found.items()}
            arrays = {name: values[: self.chunk] for name, values in arrays.items()}
            bar.update(table.put(start, arrays))
            if store:
                store.add(self.combo, fingerprint, sizes, number, arrays)

        try:
            for number in todo:
                lanes = np.minimum(number * self.chunk + np.arange(width), self.plan.num_lanes - 1).astype(np.int32)
                waiting.append((number, program(jnp.asarray(lanes), *self.inputs)))
                # On an accelerator the next call is on its way while results are taken. On a CPU two calls at a time
                # can hold all of XLA's threads, and wait for ever for one that their LAPACK calls need.
                if len(waiting) > ahead:
                    settle(*waiting.pop(0))
            for number, found in waiting:
                settle(number, found)
        finally:
            if store:
                store.flush()
        return table, took, sizes["batch"]

    def _to_be_static(self) -> list[str]:
        """Traced axes that the trial can be traced with when their values are known: one alone, else all, else none."""
        values = {name: np.asarray(self.plan.values[name])[0].item() for name in self.plan.traced}
        for known in [*({name: value} for name, value in values.items()), values]:
            trace = jax.make_jaxpr(lambda *given, known=known: self.lane(*given, **known))
            try:
                trace(jax.ShapeDtypeStruct((), jnp.int32), *self.inputs)
            except Exception:  # whatever is still wrong
                continue
            return list(known)
        return []

    def _batch(self, closed: Any) -> int:
        """Trials that fit, from the difference that a second one makes to the largest step of the trial."""
        two = jax.make_jaxpr(jax.vmap(self.lane, in_axes=(0, None, None, None, None)))(
            jax.ShapeDtypeStruct((2,), jnp.int32), *self.inputs
        )
        bytes_each = max(1, _largest(two.jaxpr) - _largest(closed.jaxpr))
        device = self.mesh.devices.flat[0]
        if device.platform == "cpu":
            batch = (_CACHE_BYTES if self.inputs[3] is None else _SHARED_CACHE_BYTES) // bytes_each
            return 1 if batch < _LEAST_BATCH else min(int(batch), _MOST_BATCH)
        limit = (device.memory_stats() or {}).get("bytes_limit", 2**33)
        return max(1, min(int(_MEMORY_SHARE * limit / bytes_each), 2**16))

    def _compile(self, width: int, batch: int) -> Any:
        lane = self.lane

        def part(indices: jax.Array, *inputs: Any) -> dict:
            one = lambda index: lane(index, *inputs)
            if batch == 1:
                return jax.lax.map(one, indices)
            found = jax.lax.map(jax.vmap(one), indices.reshape(-1, batch))
            return {name: values.reshape(len(indices), *values.shape[2:]) for name, values in found.items()}

        spec = jax.sharding.PartitionSpec
        whole = jax.shard_map(
            part, mesh=self.mesh, in_specs=(spec(_AXIS), *(4 * [spec()])), out_specs=spec(_AXIS), check_vma=False
        )
        return jax.jit(whole).lower(jax.ShapeDtypeStruct((width,), jnp.int32), *self.inputs).compile()


def _numeric(name: str, value: Any, plan: grids.Plan) -> jax.Array:
    if name in plan.values or name == "trial":
        raise ValueError(f"trial returned {name!r}, which is an axis; expected another name")
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trial returned {name!r} of type {type(value).__name__}; expected numbers") from error
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != jnp.bool_:
        raise ValueError(f"trial returned {name!r} of dtype {array.dtype}; expected numbers")
    if np.dtype(array.dtype).kind == "V":  # bfloat16 and the like, which NumPy's files do not know
        return array.astype(jnp.int32 if jnp.issubdtype(array.dtype, jnp.integer) else jnp.float32)
    return array


def _wants_a_value(error: Exception) -> bool:
    """Whether traced code asked for a number that is not known yet, as JAX says it or as our checks do."""
    kinds = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.TracerArrayConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    )
    words = ("concrete", "Tracer")
    return isinstance(error, kinds) or (
        isinstance(error, (TypeError, ValueError, IndexError)) and any(word in str(error) for word in words)
    )


def _named(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items())


def _jaxprs(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr, with its constants if it has them, and all those inside its equations."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _jaxprs(inner)


def _largest(jaxpr: Any) -> int:
    """Bytes that the largest operation of a program reads and writes."""
    size = lambda v: v.aval.size * v.aval.dtype.itemsize if hasattr(v.aval, "size") else 0
    return max((sum(size(v) for v in [*e.invars, *e.outvars]) for j in _jaxprs(jaxpr) for e in j.eqns), default=0)


def _fingerprint(closed: Any) -> str:
    """Tells trial functions apart: their operations, and the arrays they close over."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(closed)).encode())
    for jaxpr in _jaxprs(closed):
        for const in getattr(jaxpr, "consts", ()):
            typed = jnp.issubdtype(const.dtype, jax.dtypes.prng_key)
            digest.update(np.asarray(jax.random.key_data(const) if typed else const).tobytes())
    return digest.hexdigest()


def _wait(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"lrjax sweep {name}")


def _gathered(table: grids.Table, chunk: int) -> dict[str, np.ndarray]:
    """The outputs of all processes: chunk number c was run by process c modulo their number."""
    if jax.process_count() == 1:
        return table.arrays
    from jax.experimental import multihost_utils

    everyone = multihost_utils.process_allgather(table.arrays)
    lanes = np.arange(len(next(iter(table.arrays.values()))))
    owner = (lanes // chunk) % jax.process_count()
    return {name: np.asarray(values)[owner, lanes] for name, values in everyone.items()}
