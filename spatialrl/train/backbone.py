"""A pipeline folder of diffusers as a policy, and its prompts as text states.
"""

import dataclasses
import functools
import pathlib

import jax

from spatialrl.convert import folder, stream
from spatialrl.data import encode
from spatialrl.data.prompts import States
from spatialrl.io.progress import progress
from spatialrl.models import clip, t5
from spatialrl.models.diffusion import DiffusionPolicy
from spatialrl.models.lora import LoRAConfig
from spatialrl.parallel import distributed, partition

# Kind of the transformer -> kinds of its text encoders, in their order.
_ENCODERS = {"sd3": ("clip", "clip", "t5"), "flux": ("clip", "t5")}
_APPLY = {"clip": clip.conditioning, "t5": t5.conditioning}


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What a run has of a pipeline folder.

  Attributes:
    policy: DiffusionPolicy.
    params: its base weights, on the devices.
    read: `data.prompts.States` of all prompts that were asked for.
    transformer: `convert.folder.Whole` of the network, for the way back.
  """

  policy: DiffusionPolicy
  params: dict
  read: States
  transformer: folder.Whole


def load(config, mesh, prompts):
  """Reads a pipeline and encodes the prompts that its cache lacks.

  Text encoders are gone from memory before the network is read.

  Args:
    config: fields `model` (`folder`, `size`, `dtype`, `attention`,
      `distilled_guidance`), `text` (see `encode_prompts`), `lora`, `remat`.
    mesh: the mesh in use.
    prompts: list of str; the empty one is added.

  Returns:
    Backbone.

  Raises:
    ValueError: see `convert.folder.open_model`; all folders are looked through
      before anything is computed.
  """
  model, root = config.model, pathlib.Path(config.model.folder).expanduser()
  transformer = folder.open_model(root / "transformer")
  kind = kind_of(transformer)
  coder = folder.open_model(root / "vae", "vae")
  policy = make_policy(config, transformer.sizes, coder.sizes)
  with distributed.in_turn():
    encode_prompts(root, kind, config.text, ["", *prompts])
  read = States(config.text.cache)
  text, pooled = read([""])

  def load_whole(whole):
    placement = functools.partial(partition.sharding, mesh, policy.family)
    return stream.load_whole(whole, dtype=model.dtype, placement=placement)

  params = {
      "network": load_whole(transformer),
      "autoencoder": load_whole(coder),
  }
  empty = {"empty": {"text": text, "pooled": pooled}}
  params |= partition.place(mesh, policy.family, empty)
  return Backbone(policy, params, read, transformer)


def make_policy(config, network, autoencoder):
  """The policy of a config and of the sizes that its folder has.

  Args:
    config: fields `model`, `lora` and `remat`, as for `load`.
    network: FluxConfig or MMDiTConfig.
    autoencoder: AutoencoderConfig.
  """
  model, lora = config.model, None
  if config.lora.rank:
    targets = tuple(config.lora.targets)
    lora = LoRAConfig(config.lora.rank, config.lora.alpha, targets)
  return DiffusionPolicy(
      size=model.size,
      network=dataclasses.replace(
          network,
          dtype=model.dtype,
          attention=model.attention,
          remat=config.remat,
      ),
      autoencoder=dataclasses.replace(autoencoder, dtype=model.dtype),
      distilled_guidance=model.distilled_guidance,
      lora=lora,
  )


def kind_of(transformer):
  """"sd3" or "flux"; ValueError for another `convert.folder.Whole`."""
  model = transformer.model
  if model.kind not in _ENCODERS:
    raise ValueError(
        f"{model.path} holds {model.class_name}; allowed are transformers of"
        f" {sorted(_ENCODERS)}."
    )
  return model.kind


def encode_prompts(root, kind, config, prompts):
  """Brings the cache of text states up to date; see `encode.encode_prompts`.

  Args:
    root: path of the pipeline folder, with text encoders and tokenizers.
    kind: "sd3" or "flux".
    config: fields `cache` (a folder), `t5_tokens`, `dtype` (of encoders and
      cache), `batch`, `too_long`.
    prompts: list of str.

  Returns:
    How many of them the cache lacked.
  """
  encoders, folders = [], []
  for name, suffix in zip(_ENCODERS[kind], ("", "_2", "_3"), strict=False):
    tokenizer = root / f"tokenizer{suffix}"
    whole = folder.open_model(root / f"text_encoder{suffix}", name)
    folders += [tokenizer, whole.model.path]
    encoders.append(
        encode.Encoder(
            encode.load_tokenizer(tokenizer, name),
            encode.CLIP_TOKENS if name == "clip" else config.t5_tokens,
            _Lazy(_APPLY[name], whole, config.dtype),
        )
    )
  new, cut = encode.encode_prompts(
      config.cache,
      prompts,
      encoders,
      join=kind,
      model=encode.model_key(folders),
      dtype=config.dtype,
      batch=config.batch,
      too_long=config.too_long,
      track=lambda starts: progress(starts, "encode prompts"),
  )
  encode.report_cuts(cut)
  return new


class _Lazy:
  """A text encoder whose weights are read when the first prompt needs them."""

  def __init__(self, function, whole, dtype):
    self._function, self._whole, self._dtype = function, whole, dtype

  def __call__(self, ids):
    return self._apply(ids)

  @functools.cached_property
  def _apply(self):
    sizes = dataclasses.replace(self._whole.sizes, dtype=self._dtype)
    params = stream.load_whole(self._whole, dtype=self._dtype)
    run = jax.jit(functools.partial(self._function, sizes))
    return functools.partial(run, params)
