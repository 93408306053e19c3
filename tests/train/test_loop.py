"""The online loop around a network of one matrix: bits, programs, counts."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.records import Conditioning, Signals
from spatialrl.train import online
from spatialrl.train.configs import load_config

_QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Linear:
  """A policy of one matrix, for what the loop does whatever the network."""

  latent_shape = (2, 2, 192)
  mmdit = types.SimpleNamespace(remat=False)

  def init(self):
    return {"w": 0.1 * normal(1, 192, 192), "words": 0.1 * normal(2, 4, 192)}

  def init_trainable(self, key, base):
    del key
    return jax.tree.map(jnp.array, base)

  def encode(self, base, ids, mask):
    del base
    return Conditioning(
      text=ids[..., None].astype(jnp.float32),
      pooled=jnp.cos(ids[:, :4].astype(jnp.float32)),
      mask=mask,
    )

  def encode_empty(self, base, cond):
    del base
    return jax.tree.map(jnp.zeros_like, cond)

  def velocity(self, base, trainable, x, t, cond):
    weights = base if trainable is None else trainable
    words = (cond.pooled @ weights["words"])[:, None, None]
    return jnp.tanh(x @ weights["w"]) + words * t[:, None, None, None]

  def decode(self, base, latents):
    del base
    return latents.reshape(-1, 16, 16, 3)


class Brightness:
  """A judge that likes bright images."""

  def __call__(self, images, prompts):
    del prompts
    return Signals(scalar=images.mean((1, 2, 3)))

  def compilations(self):
    return 1


def iterate(config, mesh, iterations):
  """(Loop, final state, first window step and metrics of each iteration)."""
  loop = online.Loop(config, mesh, Linear(), {"brightness": Brightness()})
  base = Linear().init()
  state, rows = loop.init(base), []
  prompts = ["a red circle left of a blue square"] * 4
  prompts += ["a green cross above a white circle"] * 4
  for step in range(iterations):
    start = int(online.window_start(config, state.key, step))
    state, values = loop.iterate(base, state, prompts, step)
    rows.append({"start": start} | values)
  return loop, state, rows


@pytest.fixture
def wide():
  """The smallest quickstart with room for the window to move."""
  config = load_config(_QUICKSTART, "tiny")
  config.aggregate = config_dict.ConfigDict(
    {"name": "weighted_sum", "weights": {"brightness": 1.0}}
  )
  config.rollout.window_range = (0, 6)
  return config


def test_two_runs_give_the_same_bits_and_compile_once(wide, mesh):
  loop, state, rows = iterate(wide, mesh, 3)
  _, state2, rows2 = iterate(wide, mesh, 3)
  key, key2 = jax.random.key_data(state.key), jax.random.key_data(state2.key)
  np.testing.assert_array_equal(key, key2)
  jax.tree.map(
    np.testing.assert_array_equal,
    dataclasses.replace(state, key=key),
    dataclasses.replace(state2, key=key2),
  )
  for row, row2 in zip(rows, rows2, strict=True):
    for name in row:
      if not name.endswith(("_seconds", "_per_second")):
        assert row[name] == row2[name], name
  assert len({row["start"] for row in rows}) > 1
  assert set(loop.compilations().values()) == {1}


def test_a_quarter_from_both_ends_is_half_of_the_update(wide, mesh):
  assert wide.select.k == wide.rollout.group // 4
  _, _, (few,) = iterate(wide, mesh, 1)
  wide.select.name = "all"
  _, _, (all_images,) = iterate(wide, mesh, 1)
  assert all_images["images_updated"] == 8
  assert few["images_updated"] == 4
  assert (few["kept_share"], all_images["kept_share"]) == (0.5, 1.0)
