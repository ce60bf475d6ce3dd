"""The training step of a run, lowered from shapes alone and compiled for a target; decoding.py has generation."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from t5flan import sharding as sharding_lib
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.sharding import Sharding
from t5flan.training.distillation.teacher import abstract_teacher
from t5flan.training.step import Trainer, abstract_batch
from t5flan.training.throughput import model_flops

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, or why there is none.

    Attributes:
        sharding: the mesh that it was compiled for.
        parameters: shape, dtype and sharding of each.
        optimizer: the same of the optimizer's state; None if there is none.
        inputs: the same of all other arguments: the batch, or the prompts, or keys and values.
        model_flops: of a step of the model, on all devices; a teacher does not count.
        compiled: the program; None if it needs more memory than the devices have.
        seconds: of tracing and compiling.
        kernel_flops: FLOPs of the kernels in the program on each device, which its text does not tell.
        needed_bytes: with `compiled` None, the memory that the compiler wanted on each device, if it said.
        limit_bytes: the same of the memory that it had.
        allocations: the largest buffers of a program that does not fit, as the compiler names them.
        teacher: shape, dtype and sharding of each parameter of the teacher; None without one.
    """

    sharding: Sharding
    parameters: Any
    optimizer: Any
    inputs: Any
    model_flops: float
    compiled: Any
    seconds: float
    kernel_flops: float = 0.0
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    allocations: tuple[str, ...] = ()
    teacher: Any = None


def trace_step(settings: Mapping[str, Any], sharding: Sharding) -> tuple[Any, Trainer, dict[str, jax.ShapeDtypeStruct]]:
    """The training step, traced for the devices of `sharding`; `.lower().compile()` compiles it.

    Args:
        settings: arguments of `training.trainer.train`.
        sharding: the mesh.

    Returns:
        The traced step, the trainer that it belongs to, and its batch.

    Raises:
        UserError: the mesh does not divide the model or the batch, or the teacher does not fit the model.
    """
    with sharding_lib.use(sharding):
        model, optimizer, loss, run = (settings[name] for name in ('model', 'optimizer', 'loss', 'run'))
        trainer = Trainer(model, optimizer, loss, run, sharding)
        if loss.teacher is not None:
            trainer.teacher = (abstract_teacher(loss, model, sharding),)
        batch = abstract_batch(settings['data'], sharding)
        return trainer.train_step.trace(trainer.abstract_state, batch, *trainer.teacher), trainer, batch


def compile_step(settings: Mapping[str, Any], devices: Any) -> Program:
    """Compiles the training step of a run for devices that need not be there.

    Args:
        settings: arguments of `training.trainer.train`, with 'mesh'.
        devices: what it is compiled for.

    Raises:
        UserError: the mesh does not divide the devices, the model or the batch.
    """
    started = time.monotonic()
    mesh: MeshConfig = settings['mesh']
    sharding = sharding_lib.create_sharding(mesh, devices)
    traced, trainer, batch = trace_step(settings, sharding)
    state, shapes = trainer.abstract_state, {name: x.shape for name, x in batch.items()}
    flops, teacher = model_flops(settings['model'], shapes), trainer.teacher or None
    program = Program(sharding, state.model, state.opt_state, batch, flops, None, 0.0, teacher=teacher)
    return compile_traced(traced, program, started)


def compile_traced(traced: Any, program: Program, started: float) -> Program:
    """The program with what compiling it gave.

    Args:
        traced: a traced function; `.lower().compile()` compiles it.
        program: what is known before.
        started: `time.monotonic()` when tracing began.
    """
    flops = kernel_flops(traced.jaxpr.jaxpr)
    found: dict[str, Any] = {}
    try:
        with sharding_lib.use(program.sharding):
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        if 'memory space vmem' in str(error):
            problem = 'a kernel needs more memory of a core than there is'
            raise UserError(f'{problem}. Set ModelConfig.attention="chunked", and report these settings.') from error
        compiled, (needed, limit) = None, memory_in_message(str(error))
        found = {'needed_bytes': needed, 'limit_bytes': limit, 'allocations': largest_allocations(str(error))}
    seconds = time.monotonic() - started
    return dataclasses.replace(program, compiled=compiled, seconds=seconds, kernel_flops=flops, **found)


def kernel_flops(jaxpr: Any, times: float = 1.0, inside: bool = False) -> float:
    """FLOPs of the matrix products inside the Pallas kernels of a traced step, on each device.

    Tiles that a kernel skips because nothing in them is seen count too. A kernel whose results are not used does not:
    JAX leaves the forward kernel of saved attention in the backward pass, and XLA removes it.

    Args:
        jaxpr: the traced step, or a part of it.
        times: how often the part runs.
        inside: whether the part belongs to a kernel.
    """
    total = 0.0
    used = {id(x) for x in (*jaxpr.outvars, *(x for equation in jaxpr.eqns for x in equation.invars))}
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        if name == 'pallas_call' and not any(id(x) in used for x in equation.outvars):
            continue
        if inside and name == 'dot_general':
            (contracted, _), _ = settings['dimension_numbers']
            left = equation.invars[0].aval.shape
            total += 2.0 * times * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        factor = float(settings['length']) if name == 'scan' else 1.0
        if name == 'pallas_call':
            factor = float(math.prod(size for size in settings['grid_mapping'].grid if isinstance(size, int)))
        parts = [kernel_flops(part, times * factor, inside or name == 'pallas_call') for part in _parts(settings)]
        total += max(parts, default=0.0) if name == 'cond' else sum(parts)
    return total


def _parts(settings: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    values = [one for value in settings.values() for one in (value if isinstance(value, tuple | list) else (value,))]
    return [getattr(value, 'jaxpr', value) for value in values if hasattr(getattr(value, 'jaxpr', value), 'eqns')]


def memory_in_message(message: str) -> tuple[int | None, int | None]:
    """Bytes that a program needs and may use, from the TPU compiler's message that it does not fit.

    >>> memory_in_message('Ran out of memory in memory space hbm. Used 22.23G of 15.75G hbm. Exceeded ...')
    (23869280747, 16911433728)
    """
    found = re.search(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message)
    if not found:
        return None, None
    number = lambda value, unit: int(float(value) * _UNITS[unit])
    return number(found[1], found[2]), number(found[3], found[4])


def largest_allocations(message: str, most: int = 5) -> tuple[str, ...]:
    """The largest buffers in the compiler's message: 'SIZE: SHAPE, of what'."""
    listed = re.split(r'\n\s*\d+\. ', message.partition('Largest program allocations')[2])[1:]
    found = []
    for entry in listed[:most]:
        size, shape, name = (
            re.search(pattern, entry) for pattern in (r'Size: (\S+)', r'Shape: (\S+)', r'op_name="([^"]*)"')
        )
        if size and shape:
            found.append(f'{size[1]}: {shape[1]}{", of " + name[1] if name else ""}')
    return tuple(found)
