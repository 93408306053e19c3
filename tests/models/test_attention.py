"""One attention, four implementations: same numbers, same gradients."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow.transition import repeatable
from spatialrl.models import attention
from spatialrl.models.attention import attend

_ROOT = pathlib.Path(__file__).parents[2]
OTHERS = ["tiled", "fused", "splash"]
# Queries and keys of a block and a bit, so that both are padded.
B, N, M, H, D = 2, 130, 140, 2, 8


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


Q, K, V = normal(0, B, N, H, D), normal(1, B, M, H, D), normal(2, B, M, H, D)
MASK = np.arange(M)[None] < np.array([[137], [9]])
CASES = {
  "open": {},
  "masked": {"mask": MASK, "scale": 0.7},
  "shared heads": {"key": K[:, :, :1], "value": V[:, :, :1], "mask": MASK},
}
RICH = {"mask": normal(7, B, N, M) > 0, "bias": normal(6, H, N, M)}


def run(implementation, query=Q, key=K, value=V, **settings):
  """(output, gradients) of a loss that weighs every entry differently."""

  def loss(query, key, value):
    out = attend(query, key, value, implementation=implementation, **settings)
    return jnp.sum(out * normal(3, *out.shape)), out

  grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), grads = grad(query, key, value)
  return out, *grads


@functools.cache
def wanted(case):
  return run("xla", **CASES[case])


def assert_same(ours, wanted):
  for a, b in zip(ours, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_the_reference_is_softmax_attention():
  logits = 0.7 * np.einsum("bnhd,bmhd->bhnm", Q, K)
  weights = np.exp(np.where(MASK[:, None, None], logits, -np.inf))
  weights = weights / weights.sum(-1, keepdims=True)
  out = np.einsum("bhnm,bmhd->bnhd", weights, V)
  np.testing.assert_allclose(wanted("masked")[0], out, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OTHERS)
def test_implementations_agree(name, case):
  assert_same(run(name, **CASES[case]), wanted(case))


@pytest.mark.parametrize("name", ["tiled", "fused"])
def test_biases_and_masks_of_queries_agree(name):
  assert_same(run(name, **RICH), run("xla", **RICH))


def test_tiled_logits_are_not_kept():
  def loss(query):
    out = attend(jnp.tanh(query), K, V, implementation="tiled")
    return jnp.sum(out**2)

  program = str(jax.make_jaxpr(jax.grad(repeatable(loss)))(Q))
  assert f"{B},{H},{N},{M}" not in program
  # Two products, the same again in the backward pass and four gradients.
  assert program.count("dot_general[") == 8


@pytest.mark.parametrize("name", ["xla", *OTHERS])
def test_what_the_mask_hides_changes_no_bit(name):
  @jax.jit
  def forward(key, value):
    return attend(Q, key, value, MASK, implementation=name)

  far = 100 * (~MASK[..., None, None]).astype(np.float32)
  np.testing.assert_array_equal(forward(K + far, V + far), forward(K, V))


@pytest.mark.parametrize("name", ["xla", *OTHERS])
def test_a_query_without_keys_stays_finite_in_its_dtype(name):
  q, k, v = (x.astype(jnp.bfloat16) for x in (Q, K, V))
  nothing = np.zeros((B, M), bool)
  out = jax.jit(lambda: attend(q, k, v, nothing, implementation=name))()
  assert out.dtype == jnp.bfloat16 and np.isfinite(out).all()


@pytest.mark.parametrize(
  ("platform", "kernel"), [("cpu", "scan"), ("tpu", "pallas_call")]
)
def test_auto_takes_what_suits_the_platform(platform, kernel, monkeypatch):
  monkeypatch.setattr(attention, "_platform", lambda: platform)
  program = jax.make_jaxpr(lambda q: attend(q, K, V, implementation="auto"))(Q)
  assert kernel in str(program)


def test_splash_refuses_what_it_cannot_do():
  with pytest.raises(ValueError, match="attention is splash, .* no bias"):
    attend(Q, K, V, bias=RICH["bias"], implementation="splash")
  with pytest.raises(ValueError, match=r"no mask of shape \(2, 130, 140\)"):
    attend(Q, K, V, RICH["mask"], implementation="splash")


def test_an_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="attention is 'flash'; .* 'splash'"):
    attend(Q, K, V, implementation="flash")


MESH = """
import jax, numpy as np
from spatialrl.models.attention import attend
from spatialrl.parallel import mesh as meshes

q = np.random.default_rng(0).normal(size=(4, 20, 2, 8)).astype(np.float32)
mask = np.arange(20)[None] < np.array([[20], [3], [7], [11]])
wanted = attend(q, q[::-1], q, mask)
with jax.set_mesh(meshes.make_mesh((2, 1, 2))):
  out = jax.jit(
    lambda q, mask: attend(q, q[::-1], q, mask, implementation="splash")
  )(q, mask)
assert len({str(s.index) for s in out.addressable_shards}) == 4, out.sharding
np.testing.assert_allclose(out, wanted, atol=1e-5)
"""


def test_splash_runs_on_each_device_of_a_mesh():
  flags = "--xla_force_host_platform_device_count=4"
  subprocess.run(
    [sys.executable, "-c", MESH],
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(_ROOT)},
    check=True,
  )
