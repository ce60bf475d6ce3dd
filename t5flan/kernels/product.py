"""The product of activations and a kernel, with the gradients written for XLA's CPU.

JAX's own gradient of a kernel, dW = x^T g, contracts the rows of both operands. XLA's CPU gives that form to a slower
library, and with 16-bit operands and a float32 result JAX widens the operands of both gradients first, so that they
run at half the rate. Here all three products have two axes, 16-bit operands are multiplied as they are, and x^T lies in
memory as its product reads it. Sums are float32.

M rows (batch and length), I inputs, O outputs.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from t5flan import sharding

_STRIPE = 32  # columns; 16 were measured to be slower, 64 as fast


def product(x: jax.Array, kernel: jax.Array, inputs: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The sum over the last `inputs` axes of x, which are the first of the kernel: [..., *inputs] -> [..., *outputs].

    Args:
        x: activations.
        kernel: [*inputs, *outputs], of any float dtype; its gradient has that dtype.
        inputs: the number of axes that are summed.
        dtype: of the product and its operands.
    """
    x = x.astype(dtype)
    current = sharding.current()
    # The layout of x^T cannot be partitioned: on several devices each would gather the rows of all.
    if sharding.platform() != 'cpu' or (current is not None and current.mesh.size > 1):
        last, first = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
        return jax.lax.dot_general(x, kernel.astype(dtype), ((last, first), ((), ())))
    size = math.prod(kernel.shape[:inputs])
    y_MO = _product(jnp.dtype(dtype), x.reshape(-1, size), kernel.reshape(size, -1))
    return y_MO.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dtype: jnp.dtype, x_MI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    return _dot(x_MI, kernel_IO.astype(dtype), 1, 0).astype(dtype)


def _forward(dtype: jnp.dtype, x_MI: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(dtype, x_MI, kernel_IO), (x_MI, kernel_IO)


def _backward(dtype: jnp.dtype, operands: tuple[jax.Array, jax.Array], dy_MO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_MI, kernel_IO = operands
    dx_MI = _dot(dy_MO, kernel_IO.astype(dtype), 1, 1).astype(dtype)
    return dx_MI, _dot(_transposed(x_MI), dy_MO, 1, 0).astype(kernel_IO.dtype)


_product.defvjp(_forward, _backward)


def _transposed(x_MI: jax.Array) -> jax.Array:
    """x^T, in memory as its product reads it.

    Without the layouts XLA undoes the transposition and contracts the rows of both operands.

    XLA computes x from the arrays before it while it transposes it, column by column. If they are larger than the
    caches, it reads each of their cache lines once per column. So the columns are first gathered in stripes, in the
    order of memory; a stripe stays in the cache while it is transposed.
    """
    columns = math.gcd(x_MI.shape[1], _STRIPE)
    x_SMC = _in_rows(x_MI.reshape(x_MI.shape[0], -1, columns).swapaxes(0, 1))
    return _in_rows(x_SMC.swapaxes(1, 2)).reshape(x_MI.shape[::-1])


def _in_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, summed and returned in float32.

    XLA's CPU converts the operands of a 16-bit product with a 16-bit result to float32 first; a product with a float32
    result it runs directly, in half the time.
    """
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
