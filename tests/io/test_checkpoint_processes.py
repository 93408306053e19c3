"""Checkpoints across processes: other meshes, and SIGKILL at any moment."""

import random
import time

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.io import checkpoint

_EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spatialrl.io import checkpoint

auto = (AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
state = {
  "params": {
    "w": place(jnp.arange(64.0).reshape(16, 4), "fsdp", "tensor"),
    "b": place(jnp.ones(4, jnp.bfloat16)),
  },
  "keys": place(jax.random.split(jax.random.key(1), 8), "fsdp"),
  "count": jnp.zeros((), jnp.int32),
}
with checkpoint.Checkpointer(sys.argv[1], keep_last=1) as saver:
  saver.save(5, state, {})
  back = saver.restore(5, state)
  one = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[3]), state)
  moved = saver.restore(5, one)
for a, b in zip(jax.tree.leaves((state, one)), jax.tree.leaves((back, moved))):
  assert a.sharding == b.sharding and a.committed == b.committed, (a, b)
  assert (a == b).all()
print("devices", jax.device_count())
"""

_FOREVER = """
import sys
import jax.numpy as jnp, numpy as np
from spatialrl.io import checkpoint

with checkpoint.Checkpointer(sys.argv[1], keep_last=2, keep_best=1) as saver:
  step = saver.latest() or 0
  while True:
    step += 1
    a = jnp.full((300, 300), float(step))
    saver.save(step, {"a": a, "b": [a + i for i in range(9)]}, {"step": step},
               score=-float(step % 5))
    if step > 3:
      print(step, flush=True)
"""


def test_eight_devices_save_and_one_loads(tmp_path, start):
  process = start(_EIGHT, tmp_path, devices=8)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert out == "devices 8\n"
  assert jax.device_count() == 1
  params = checkpoint.load_params(tmp_path)
  w = np.arange(64.0, dtype=np.float32).reshape(16, 4)
  np.testing.assert_array_equal(params["w"], w)
  assert params["b"].dtype == jnp.bfloat16
  like = {
    "params": {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4, jnp.bfloat16)},
    "keys": jax.random.split(jax.random.key(0), 8),
    "count": jnp.ones((), jnp.int32),
  }
  state = checkpoint.restore(tmp_path, 5, like)
  np.testing.assert_array_equal(state["params"]["w"], w)
  assert (state["keys"] == jax.random.split(jax.random.key(1), 8)).all()


def test_a_run_killed_at_any_moment_leaves_a_usable_directory(tmp_path, start):
  moments = random.Random(time.time_ns())
  runs = [
    (tmp_path / str(n), start(_FOREVER, tmp_path / str(n))) for n in (0, 1)
  ]
  for directory, process in runs:
    first = process.stdout.readline()
    assert first, process.stderr.read()
    delay = moments.uniform(0.0, 0.3)
    time.sleep(delay)
    process.kill()
    process.wait()
    said = f"killed {delay} s after step {first}"
    step = checkpoint.latest_step(directory)
    assert step >= 3, said
    state = {"a": np.zeros((300, 300), "f")}
    state["b"] = [state["a"]] * 9
    # Not only the newest: what is whole can be read.
    with checkpoint.Checkpointer(directory, keep_last=2) as saver:
      state = saver.restore(step, state)
      assert (state["a"] == step).all(), said
      assert (state["b"][8] == step + 8).all(), said
      assert saver.metadata(step) == {"step": step}
      saver.save(step + 1, state, {}, block=True)
      assert saver.latest() == step + 1
    names = sorted(path.name for path in directory.iterdir())
    assert names == [f"{n:08d}" for n in (step, step + 1)], said
