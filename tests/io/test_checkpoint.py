"""Checkpoints on one device: exact, strict, pruned."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialrl.io import checkpoint, steps
from spatialrl.io.checkpoint import Checkpointer, CheckpointError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  ema: dict | None
  key: jax.Array
  stats: dict


def _state(seed=0, ema=True):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "block/0": {"kernel.w": jax.random.normal(keys[0], (3, 4))},
    "head": [jnp.ones(4, jnp.bfloat16) * seed, jnp.zeros((0, 2))],
  }
  return State(
    step=jnp.asarray(seed, jnp.int32),
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    ema=jax.tree.map(lambda x: x + 1, params) if ema else None,
    key=keys[1],
    stats={
      "keys": keys,
      "mean": np.arange(6.0).reshape(2, 3).T + seed,
      "scale": np.float32(0.1),
      "seen": {7: 1 + seed, 8: 0.5, 9: True},
    },
  )


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert type(x) is type(y)
    if isinstance(x, jax.Array):
      assert x.dtype == y.dtype
      assert x.sharding == y.sharding
      assert x.committed == y.committed
      if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_state_comes_back_bit_for_bit_with_every_kind_of_leaf(tmp_path):
  state = _state(3)
  bound = jax.device_put(state.params, jax.devices()[0])
  state = dataclasses.replace(state, params=bound)
  with Checkpointer(tmp_path / "a" / "b", keep_last=1) as saver:
    saver.save(3, state, {"cursor": 5, "pair": (1, None)})
    assert saver.latest() == 3
    assert saver.metadata(3) == {"cursor": 5, "pair": [1, None]}
    restored = saver.restore(3, state)
  _assert_same(restored, state)
  assert jax.random.normal(restored.key) == jax.random.normal(state.key)


def test_structs_say_what_to_restore(tmp_path):
  state = {"a": jnp.arange(3.0), "key": jax.random.key(1)}
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, state, {})
    like = jax.eval_shape(lambda: state)
    _assert_same(saver.restore(1, like), state)
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state
    )
    _assert_same(saver.restore(1, like), jax.device_put(state, where))


def test_what_is_saved_may_be_donated_and_changed_at_once(tmp_path):
  update = jax.jit(lambda x: x - 1, donate_argnums=0)
  host, seen = np.zeros(1000), {"prompts": [1]}
  with Checkpointer(tmp_path, keep_last=3) as saver:
    for step in range(3):
      x = jnp.full((1000, 1000), float(step))
      saver.save(step, {"x": x, "host": host}, seen)
      jax.block_until_ready(update(x))
      host += 1
      seen["prompts"].append(step)
    for step in range(3):
      back = saver.restore(
        step, {"x": np.zeros((1000, 1000), "f"), "host": host}
      )
      assert (back["x"] == step).all()
      assert (back["host"] == step).all()
      assert len(saver.metadata(step)["prompts"]) == step + 1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda s: dataclasses.replace(s, params={**s.params, "new": jnp.ones(2)}),
      r"another model: params/new is absent in it and float32\[2\] here$",
    ),
    (
      lambda s: dataclasses.replace(s, ema=None),
      r"ema/block/0/kernel.w is float32\[3, 4\] in it and absent here "
      r"\(and 2 more leaves differ\)$",
    ),
    (
      lambda s: dataclasses.replace(s, step=jnp.zeros(2, jnp.int32)),
      r"step is int32\[\] in it and int32\[2\] here$",
    ),
    (
      lambda s: dataclasses.replace(s, step=jnp.zeros((), jnp.float32)),
      r"step is int32\[\] in it and float32\[\] here$",
    ),
    (
      lambda s: dataclasses.replace(s, key=jax.random.key(0, impl="rbg")),
      r"key is key<fry>\[\] in it and key<rbg>\[\] here$",
    ),
  ],
)
def test_another_model_is_refused_by_naming_the_leaf(tmp_path, change, message):
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, _state(), {})
    with pytest.raises(ValueError, match=message):
      saver.restore(1, change(_state()))


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ({"a": {"b": "text"}}, "leaf a/b is 'text' of type str"),
    ({"a": object()}, "leaf a is <object"),
    ({"a": np.array(["x"])}, "leaf a is array.*of type ndarray"),
    ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "a/b and a.b have the same"),
    (np.ones(3), "state is a single ndarray"),
    ({"a": np.zeros((0, 3))}, "no array with data"),
  ],
)
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, state, message):
  with Checkpointer(tmp_path, keep_last=1) as saver:
    with pytest.raises(ValueError, match=message):
      saver.save(1, state, {})
    assert saver.latest() is None


def test_bad_arguments_are_named(tmp_path):
  with pytest.raises(ValueError, match="keep_last is 0"):
    Checkpointer(tmp_path, keep_last=0)
  with pytest.raises(ValueError, match="keep_best is 0"):
    Checkpointer(tmp_path, keep_last=1, keep_best=0)
  with Checkpointer(tmp_path, keep_last=1) as saver:
    with pytest.raises(ValueError, match="step is -1"):
      saver.save(-1, {"a": np.ones(1)}, {})
    with pytest.raises(ValueError, match="score of step 1 is nan"):
      saver.save(1, {"a": np.ones(1)}, {}, score=float("nan"))


def _names(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def test_the_last_and_the_best_are_kept(tmp_path):
  with Checkpointer(tmp_path, keep_last=2, keep_best=2) as saver:
    for step, score in enumerate([0.5, None, 0.9, 0.1, 0.9, 0.2, None]):
      saver.save(step, {"a": np.ones(1)}, {}, score=score, block=True)
    assert _names(tmp_path) == [2, 4, 5, 6]
    # A tie goes to the newer.
    saver.save(7, {"a": np.ones(1)}, {}, score=0.9, block=True)
    assert _names(tmp_path) == [4, 6, 7]


def test_a_step_saved_again_is_replaced_and_never_missing(
  tmp_path, monkeypatch
):
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, {"a": np.zeros(3)}, {"n": 0}, block=True)
    for n in range(1, 4):
      commit = steps.write_commit

      def look(path, value, commit=commit, n=n):
        assert checkpoint.latest_step(tmp_path) == 1
        assert checkpoint.read_metadata(tmp_path, 1) == {"n": n - 1}
        commit(path, value)

      monkeypatch.setattr(steps, "write_commit", look)
      saver.save(1, {"a": np.full(3, n)}, {"n": n}, block=True)
      monkeypatch.setattr(steps, "write_commit", commit)
      assert saver.metadata(1) == {"n": n}
      assert (saver.restore(1, {"a": np.zeros(3, int)})["a"] == n).all()
      assert len(list((tmp_path / "00000001").iterdir())) == 2


def test_reading_needs_no_write_access_and_makes_nothing(tmp_path):
  assert checkpoint.latest_step(tmp_path / "nothing") is None
  with pytest.raises(CheckpointError, match="no whole checkpoint in"):
    checkpoint.load_params(tmp_path / "nothing")
  assert not list(tmp_path.iterdir())


def test_params_load_as_numpy_from_a_workdir_or_its_checkpoints(tmp_path):
  with Checkpointer(tmp_path / "checkpoints", keep_last=2) as saver:
    for step in (1, 2):
      saver.save(step, _state(step), {})
  for path in (tmp_path, str(tmp_path / "checkpoints")):
    params = checkpoint.load_params(path)
    expected = _state(2).params
    expected["head"] = dict(zip("01", expected["head"], strict=True))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
      assert type(a) is np.ndarray
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, np.asarray(b))
  older = checkpoint.load_params(tmp_path, 1, field="ema")
  kernel = _state(1).ema["block/0"]["kernel.w"]
  np.testing.assert_array_equal(older["block/0"]["kernel.w"], kernel)
  with pytest.raises(ValueError, match="holds no 'lora'; it holds ema, key"):
    checkpoint.load_params(tmp_path, field="lora")


def test_only_the_params_are_read(tmp_path, monkeypatch):
  state = {"params": {"a": np.ones(3)}, "opt_state": {"a": np.ones(3)}}
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, state, {})
  load, asked = checkpoint.ocp.load, []

  def spy(path, tree):
    asked.append(tree)
    return load(path, tree)

  monkeypatch.setattr(checkpoint.ocp, "load", spy)
  checkpoint.load_params(tmp_path)
  assert [list(tree) for tree in asked] == [["params"]]


def test_commit_is_strict_json_with_every_leaf(tmp_path):
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, _state(), {"a": 1}, score=np.float32(0.5), block=True)
    with pytest.raises(ValueError):
      saver.save(2, _state(), {"a": float("nan")})
  commit = json.loads((tmp_path / "00000001" / steps.COMMIT).read_text())
  assert (commit["step"], commit["score"]) == (1, 0.5)
  assert len(commit["leaves"]) == len(jax.tree.leaves(_state()))
