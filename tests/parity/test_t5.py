"""The T5 encoder against a saved model and transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.convert import t5 as converter
from spatialrl.models import t5
from tests.parity import _folders
from tests.parity._folders import near


@pytest.fixture
def saved(golden):
  """(sizes, params, arrays) of the saved model."""
  return *_folders.load(converter, "t5"), golden("models/t5/io_0.npz")


def test_every_tensor_has_its_place(saved):
  sizes, params, arrays = saved
  wanted = jax.eval_shape(
      t5.T5Encoder(sizes).init, jax.random.key(0), arrays["input_ids"]
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(
      np.shape, wanted["params"]
  )


def test_every_output_of_the_saved_model(saved):
  sizes, params, arrays = saved
  found = converter.outputs(sizes, params, arrays)
  names = set(arrays) - {"input_ids", "attention_mask"}
  assert len(names) == 3 and names <= set(found)
  for name in names:
    near(found[name], arrays[name])
  near(found["hidden_state_0"], params["words"][arrays["input_ids"]])


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_activations_in_bfloat16(saved, stored):
  sizes, params, arrays = saved
  sizes = dataclasses.replace(sizes, dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, stored), params)
  found = converter.outputs(sizes, params, arrays)
  for name in ("hidden_state_1", "last_hidden_state"):
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], found[name].astype("bfloat16"))
    near(found[name], arrays[name], 5e-2)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (12, 20)])
def test_buckets_of_distances(buckets, max_distance):
  torch = pytest.importorskip("torch")
  from transformers.models.t5.modeling_t5 import T5Attention

  places = torch.arange(600)
  wanted = T5Attention._relative_position_bucket(
      places[None] - places[:, None],
      num_buckets=buckets,
      max_distance=max_distance,
  )
  ours = t5.relative_buckets(600, buckets=buckets, max_distance=max_distance)
  np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_states_and_gradients_of_both_versions(kind, rng, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.T5Config(
      vocab_size=50,
      d_model=16,
      d_kv=6,
      d_ff=20,
      num_layers=3,
      num_heads=2,
      feed_forward_proj=kind,
      relative_attention_num_buckets=8,
      relative_attention_max_distance=12,
  )
  model = transformers.T5EncoderModel(config).eval()
  with torch.no_grad():
    for value in model.parameters():
      value.add_(0.1 * torch.randn_like(value))
  model.save_pretrained(tmp_path)
  ids = rng.integers(0, 50, (2, 17))
  mask = np.arange(17)[None] < np.array([[17], [6]])
  weight = rng.normal(size=(2, 17, 16)).astype(np.float32)
  wanted = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
  (wanted * torch.tensor(weight)).sum().backward()

  sizes, params = _folders.load(converter, tmp_path)

  def loss(params):
    last = t5.T5Encoder(sizes).apply({"params": params}, ids, mask).last
    return (last * weight).sum(), last

  gradient, last = jax.jit(jax.grad(loss, has_aux=True))(params)
  near(last, wanted.detach())
  near(gradient["words"], model.shared.weight.grad, 1e-4)
  first = model.encoder.block[0].layer[0].SelfAttention
  bias = first.relative_attention_bias.weight.grad
  near(gradient["position_bias"], bias, 1e-4)


def test_another_feed_forward_is_refused():
  with pytest.raises(ValueError, match="'gated-silu'; allowed are"):
    converter.read_config({"feed_forward_proj": "gated-silu"})


def test_sizes_of_t5_xxl():
  sizes = t5.T5Config(
      width=4096,
      heads=64,
      hidden=10240,
      depth=24,
      activation="gelu_new",
      gated=True,
  )
  ids = jnp.zeros((1, 256), jnp.int32)
  shapes = jax.eval_shape(t5.T5Encoder(sizes).init, jax.random.key(0), ids)
  # As transformers' class has on torch's meta device.
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 4_762_310_656
