"""SD3.5 and FLUX as the policy: adapters, the empty prompt, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.convert import stream
from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.diffusion import DiffusionPolicy
from spatialrl.models.flux import FluxConfig
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.mmdit import MMDiTConfig
from spatialrl.records import Conditioning
from spatialrl.train import tiny

CODER = AutoencoderConfig(channels=(8, 8), latents=4, groups=4, layers=1)
SD3 = MMDiTConfig(width=8, heads=2, channels=4, patch=2)
FLUX = FluxConfig(width=16, heads=2, channels=4, axes=(4, 2, 2))
TARGETS = {"sd3": r"blocks/image_q", "flux": r"single_blocks/q"}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, T = normal(0, 2, 8, 8, 4), np.float32([0.9, 0.3])


@pytest.fixture(scope="module", params=["sd3", "flux"])
def opened(request, tmp_path_factory):
  """(DiffusionPolicy with adapters, its weights) of a tiny random pipeline."""
  family = request.param
  folder = tiny.write_pipeline(tmp_path_factory.mktemp("p"), family)
  network, weights = stream.load(folder / "transformer")
  coder, codec = stream.load(folder / "vae")
  policy = DiffusionPolicy(
    size=16,
    network=dataclasses.replace(network, remat=False),
    autoencoder=coder,
    distilled_guidance=3.5 if family == "flux" else None,
    lora=LoRAConfig(2, 4.0, (TARGETS[family],)),
  )
  pooled = network.pooled_width
  empty = {"text": normal(1, 1, 6, 16), "pooled": normal(2, 1, pooled)}
  params = {"network": weights, "autoencoder": codec, "empty": empty}
  return policy, params


@pytest.fixture(scope="module")
def cond(opened):
  policy, params = opened
  pooled = policy.network.pooled_width
  return policy.encode(params, normal(3, 2, 6, 16), normal(4, 2, pooled))


def test_fresh_adapters_change_nothing_and_trained_ones_do(opened, cond):
  policy, params = opened
  fresh = jax.jit(policy.init_trainable)(jax.random.key(0), params)
  velocity = jax.jit(policy.velocity)
  base = velocity(params, None, X, T, cond)
  assert base.shape == X.shape
  np.testing.assert_array_equal(velocity(params, fresh, X, T, cond), base)
  trained = jax.tree.map(lambda leaf: leaf + 0.1, fresh)
  assert np.abs(velocity(params, trained, X, T, cond) - base).max() > 1e-3
  whole = dataclasses.replace(policy, lora=None)
  assert whole.start(params) is params["network"]
  with pytest.raises(ValueError, match="rank must be 0"):
    policy.start(params)


def test_bfloat16_stays_in_the_network(opened, cond):
  policy, params = opened
  network = dataclasses.replace(policy.network, dtype="bfloat16")
  half = dataclasses.replace(policy, network=network)
  shapes = jax.eval_shape(policy.init_trainable, jax.random.key(0), params)
  trained = jax.tree.map(lambda leaf: 0.3 * normal(5, *leaf.shape), shapes)
  exact = jax.jit(policy.velocity)(params, trained, X, T, cond)
  out = jax.jit(half.velocity)(params, trained, X, T, cond)
  assert out.dtype == jnp.float32
  assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


def test_the_empty_prompt_is_that_of_the_weights(opened, cond):
  policy, params = opened
  empty = policy.encode_empty(params, cond)
  assert isinstance(empty, Conditioning) and empty.mask.all()
  assert empty.text.shape == cond.text.shape
  for row in (0, 1):
    np.testing.assert_array_equal(empty.text[row], params["empty"]["text"][0])
    np.testing.assert_array_equal(
      empty.pooled[row], params["empty"]["pooled"][0]
    )


def test_images_are_clipped_and_half_as_many_latents(opened):
  policy, params = opened
  images = jax.jit(policy.decode)(params, 50 * X)
  assert images.shape == (2, 16, 16, 3)
  assert images.min() == -1.0 and images.max() == 1.0
  latents = jax.jit(policy.to_latents)(params, images)
  assert latents.shape == (2, *policy.latent_shape) == X.shape


def test_the_guidance_of_flux_is_a_number_of_the_policy(opened, cond):
  policy, params = opened
  if policy.distilled_guidance is None:
    pytest.skip("SD3.5 takes none")
  other = dataclasses.replace(policy, distilled_guidance=1.0)
  velocity = jax.jit(policy.velocity)(params, None, X, T, cond)
  changed = jax.jit(other.velocity)(params, None, X, T, cond)
  assert np.abs(velocity - changed).max() > 1e-4


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"size": 18}, "size is 18; allowed are multiples of 4"),
    ({"distilled_guidance": 3.5}, "distilled_guidance is 3.5; .* None"),
    ({"network": FLUX}, "distilled_guidance is None; .* 3.5"),
    ({"network": dataclasses.replace(SD3, channels=16)}, "takes 16 channels"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(fields, words):
  policy = DiffusionPolicy(size=16, network=SD3, autoencoder=CODER)
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(policy, **fields)


def test_targets_that_match_nothing_are_named(opened):
  policy, params = opened
  policy = dataclasses.replace(policy, lora=LoRAConfig(2, 4.0, ("nothing",)))
  with pytest.raises(ValueError, match="nothing.*no dense layer"):
    jax.eval_shape(policy.init_trainable, jax.random.key(0), params)
