"""Products and gates whose derivatives are written out, in the form that XLA's CPU backend is fast in; its options.

Shapes: T tokens, I inputs, O outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp


def compiler_options() -> dict[str, int] | None:
    """Vectors of 512 bits on CPUs, for which XLA takes 256; where processors have fewer it changes nothing."""
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else None


@jax.custom_vjp
def product(x_TxI: jax.Array, matrix_IxO: jax.Array) -> jax.Array:
    """The matrix product, [T, O]."""
    return x_TxI @ matrix_IxO


def _product_forward(x_TxI: jax.Array, matrix_IxO: jax.Array) -> tuple[jax.Array, Any]:
    return product(x_TxI, matrix_IxO), (x_TxI, matrix_IxO)


def _product_backward(kept: Any, slope_TxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_TxI, matrix_IxO = kept
    return slope_TxO @ matrix_IxO.T, outer(x_TxI, slope_TxO)


product.defvjp(_product_forward, _product_backward)


def outer(a_TxI: jax.Array, b_TxO: jax.Array, dtype: Any = None) -> jax.Array:
    """Sum over tokens of outer products, [I, O].

    XLA's CPU backend takes up to twice as long where the result is higher than wide.
    """
    if jax.default_backend() != "cpu" or a_TxI.shape[1] <= b_TxO.shape[1]:
        return jnp.matmul(a_TxI.T, b_TxO, preferred_element_type=dtype)
    turned_OxI = jnp.matmul(b_TxO.T, a_TxI, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(turned_OxI).T  # or else XLA would turn the product, not its result


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up, of which nothing but the two is kept for the backward pass."""
    return jax.nn.silu(gate) * up


def _gated_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, Any]:
    return gated(gate, up), (gate, up)


def _gated_backward(kept: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = kept
    open = jax.nn.sigmoid(gate)
    silu = gate * open
    return slope * up * (open + silu * (1 - open)), slope * silu


gated.defvjp(_gated_forward, _gated_backward)
