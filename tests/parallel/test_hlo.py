"""The counter of costs against counts done by hand.

Programs of `programs/` were compiled by libtpu for v5e:2x2 with fsdp 4, less
their metadata: five layers tanh(x w), x bf16[64, 256] and w bf16[256, 256], the
gradient of their sum in w, and that of splash attention over four images of
256 tokens in two heads of 128 channels.
"""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from spatialrl.parallel import hlo

PROGRAMS = pathlib.Path(__file__).parent / "programs"
AXES = {"data": 1, "fsdp": 4, "tensor": 1}
LAYERS, ROWS, WIDTH, DEVICES = 5, 64, 256, 4
PRODUCT = 2 * ROWS // DEVICES * WIDTH**2  # FLOPs of a layer
WEIGHT = 2 * WIDTH**2  # bytes of a layer, in 16 bits


def cost_of(name):
  return hlo.cost((PROGRAMS / f"{name}.hlo").read_text(), AXES)


def test_a_loop_counts_as_often_as_it_runs():
  cost = cost_of("forward")
  assert cost.flops == LAYERS * PRODUCT
  received = LAYERS * WEIGHT * (DEVICES - 1) / DEVICES
  assert cost.collectives == {("all-gather", "fsdp"): received}
  # Estimates of a turn, as they stand in the text.
  assert cost.cycles == LAYERS * (2027 + 1851 + 2121)


def test_traffic_is_what_leaves_or_enters_main_memory():
  """Weights are read a slice a turn; states stay in fast memory."""
  states = 2 * ROWS // DEVICES * WIDTH
  expected = LAYERS * WEIGHT / DEVICES + 2 * states
  assert cost_of("forward").bytes == pytest.approx(expected, rel=0.01)


def test_a_gradient_is_three_products_and_its_sum_over_devices():
  cost = cost_of("gradient")
  assert cost.flops == 3 * LAYERS * PRODUCT
  received = LAYERS * WEIGHT * (DEVICES - 1) / DEVICES
  assert cost.collectives == {
    ("all-gather", "fsdp"): 2 * received,
    ("all-reduce", "fsdp"): 2 * received,
  }


def test_kernels_of_attention_are_counted_apart():
  """Two products forward, four and three backward."""
  tokens, heads, channels = 256, 2, 128
  cost = cost_of("attention")
  product = 2 * heads * channels * tokens**2
  assert cost.flops == cost.kernel_flops == 9 * product
  assert not cost.unknown


@pytest.mark.parametrize("function, flops", [
  (lambda x, w: jnp.einsum("bij,bjk->bik", x, x), 2 * 8 * 16**3),
  (lambda x, w: jax.lax.scan(lambda c, v: (v @ c, None), x[0], x)[0],
   8 * 2 * 16**3),
  (lambda x, w: jax.lax.conv_general_dilated(
    x[:, None], w, (2, 2), [(1, 1), (1, 1)]), None),
  (lambda x, w: jax.lax.fori_loop(
    0, 7, lambda i, c: jax.lax.cond(i > 3, lambda c: c @ c, lambda c: c, c),
    x[0]), 7 * 2 * 16**3),
])
def test_programs_of_this_machine(function, flops):
  x, w = jnp.ones((8, 16, 16)), jnp.ones((4, 1, 3, 3))
  if flops is None:  # 8 x 8 outputs; the top and left windows hang over by one
    flops = 2 * 8 * 4 * (3 * 8 - 1) ** 2
  text = jax.jit(function).lower(x, w).compile().as_text()
  assert hlo.cost(text, {"data": 1}).flops == flops


@pytest.mark.parametrize("groups, axes", [
  ("{{0,1},{2,3},{4,5},{6,7}}", "tensor"),
  ("{{0,2},{1,3},{4,6},{5,7}}", "fsdp"),
  ("[2,4]<=[8]", "fsdp,tensor"),
  ("[4,2]<=[2,4]T(1,0)", "data"),
  ("mesh['a'=2,'b'=4] {'a'}", "data"),
  ("mesh['a'=2,'b'=4] {'b'}", "fsdp,tensor"),
  ("mesh['a'=2,'b'=4] {'b':(1)2}", "fsdp"),
  ("mesh['a'=2,'b'=4] {'b':(2)2}", "tensor"),
  ("{}", "data,fsdp,tensor"),
])
def test_groups_are_named_by_the_axes_they_span(groups, axes):
  count = 2 ** len(axes.split(","))
  text = f"""HloModule one
ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %sum = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}
}}
"""
  cost = hlo.cost(text, {"data": 2, "fsdp": 2, "tensor": 2})
  received = 2 * 64 * (count - 1) / count
  assert cost.collectives == {("all-reduce", axes): received}


def test_a_loop_that_hides_its_turns_is_refused():
  text = (PROGRAMS / "forward.hlo").read_text()
  text = text.replace("s32[]{:T(128)} constant(5)", "s32[]{:T(128)} iota()")
  with pytest.raises(ValueError, match="while.* how often it runs"):
    hlo.cost(text, AXES)
