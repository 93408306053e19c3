"""Checks of judges, maps and rewards that learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checks.world import SEED, STEPS, Found, few, judge, to_float
from spatialrl.data import scenes
from spatialrl.evals import relations
from spatialrl.flow import transition as transitions
from spatialrl.rewards.refresh import REFRESHES, Refresh
from spatialrl.rl.credit import attention_map
from spatialrl.scenes.render import to_float as to_signed
from spatialrl.train.configs import load_config
from spatialrl.train.heads import found
from spatialrl.train.slots import bind

_CPS = functools.partial(transitions.cps, noise_level=0.4)


def star_attention(world):
  """STAR: does attention to the words lie where the oracle finds the things?

  Mass of a map inside the boxes of the prompt's things, relative to an even
  map, at each step of the rollout; and at the last one the chance that a place
  of a thing has more than a free place. Words and block are the config's.
  """
  asked = load_config("configs/methods/star.py").rollout
  rows = []
  for name, words in (
      ("nouns and colours", tuple(asked.attention_words)),
      ("relation words", ("relations",)),
      ("control: the function word", ("function",)),
  ):
    images, path = world.rollout(
        transitions.ode, words, blocks=tuple(asked.attention_blocks)
    )
    judged = world.judged(images)
    boxes = relations.box_maps(judged, path.attention.shape[-1])
    rows.append((name, path.attention, boxes))
    if words == tuple(asked.attention_words):
      turned = np.asarray(path.attention)[..., ::-1, ::-1]
      rows.append(("control: the map turned by 180 degrees", turned, boxes))
      shuffled = attention_map(
          path, {}, alpha=1.0, cap=np.inf, control="shuffled"
      )
      rows.append(("control: the map shuffled", shuffled, boxes))
  rows = [
      {"map": name}
      | {f"step_{k}": v for k, v in enumerate(_mass(maps, boxes))}
      | {"last_auc": found(np.asarray(maps[-1]), boxes)[1]}
      for name, maps, boxes in rows
  ]
  late = {
      r["map"]: min(r[f"step_{k}"] for k in range(4, STEPS - 1)) for r in rows
  }
  return Found(
      rows, "twice an even map from step 4 on",
      holds=late["nouns and colours"] >= 2,
      control_fails=max(
          mass for name, mass in late.items() if name.startswith("control")
      ) < 2,
  )


def _mass(maps, boxes):
  inside = (boxes > 0.5).astype(float)
  seen = inside.sum((1, 2)) > 0
  share = (np.asarray(maps) * inside).sum((2, 3)) / inside.sum((1, 2)).clip(1)
  return [float(v) for v in share[:, seen].mean(1)]


def flaw_map(world):
  """ImageDoctor, SRUM: does the map find what the oracle calls wrong?

  On images of the policy whose things are all there and whose relation is
  wrong, so that both things are, against images that are right.
  """
  images, path = world.rollout(_CPS, ("nouns", "colours"))
  signals = judge("relations", "image_doctor")(
      to_float(images), world.repeated
  )
  flaws = np.asarray(signals.map)
  truth, wrong, right = _flawed(world, images, flaws.shape[-1])
  rng, rows = np.random.default_rng(0), []
  for name, maps in (
      ("flaw map", flaws),
      ("control: a random map", rng.normal(size=flaws.shape)),
      ("attention to the things", np.asarray(path.attention[-1])),
  ):
    pointing, auc = found(maps[wrong], truth[wrong])
    rows.append({
        "map": name, "pointing": pointing, "auc": auc,
        "mean_on_wrong_images": float(maps[wrong].mean()),
        "mean_on_right_images": float(maps[right].mean()),
        "wrong_images": int(wrong.sum()),
    })
  return Found(
      rows, "pointing and AUC 0.85, on two-thing images",
      holds=min(rows[0]["pointing"], rows[0]["auc"]) >= 0.85,
      control_fails=max(rows[1]["pointing"], rows[1]["auc"]) < 0.85,
  )


def _flawed(world, images, side):
  """(box maps, bool[N] of images with all things misplaced, and all right)."""
  judged = world.judged(images)
  wrong = [v.object_recall == 1 and not v.all_relations for _, _, v in judged]
  right = [v.all_relations for _, _, v in judged]
  return relations.box_maps(judged, side), np.array(wrong), np.array(right)


def patch_quality(world):
  """PatchDPO: does the quality of patches tell wrong from right regions?

  As for the flaw map; and on the trusted image, whether things that the own
  image has wrong get more weight than free places (AUC). The control's quality
  of a place is the cosine to the most similar trusted place, without our map.
  """
  world = few(32)
  images, _ = world.rollout(_CPS)
  renders, _ = scenes.renders(SEED, 0, world.repeated, size=world.policy.size)
  compare = judge("patches", "patch_dpo")
  signals = compare(to_float(images), world.repeated, to_float(renders))
  side = signals.map.shape[-1]
  truth, wrong, _ = _flawed(world, images, side)
  where = relations.box_maps(world.judged(renders), side)
  text = compare.encode(world.repeated)
  own, there = (
      compare.features(to_float(x), *text)[1] for x in (images, renders)
  )
  own, there = (
      x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (own, there)
  )
  alike = jnp.einsum("bpd,bqd->bpq", own, there).max(2)
  rows = [
      {"quality": name, "auc": found(-np.asarray(q)[wrong], t[wrong])[1]}
      for name, q, t in (
          ("own image", signals.map, truth),
          ("trusted image", signals.trusted_map, where),
          ("control: cosine alone", alike.reshape(signals.map.shape), truth),
      )
  ]
  return Found(
      rows, "AUC 0.9 on the own image", holds=rows[0]["auc"] >= 0.9,
      control_fails=rows[2]["auc"] < 0.9,
  )


def adversarial_reward(world):
  """Adv-GRPO: does the discriminator see through a reward that can be hacked?

  A reward for saturated pixels likes images pushed to the ends of their range.
  The discriminator learned renders against images of the policy, and, after a
  second round, against the pushed ones; means on other prompts.
  """
  world = few(32)
  images = to_float(world.rollout(_CPS)[0])
  renders, _ = scenes.renders(SEED, 0, world.repeated, size=world.policy.size)
  renders = to_float(renders)
  pushed = jnp.clip(3.0 * images, -1, 1)
  config = load_config("configs/methods/adv_grpo.py")
  config.refresh.steps = 60
  entry = judge("adversarial", "adv_grpo")
  half = len(images) // 2
  teach = Refresh(
      config, bind(REFRESHES, config.refresh, "refresh"), {"adversarial": entry}
  )
  learned, rows = teach.init(), []
  for name, shown in (
      ("before any round", None), ("images of the policy", images),
      ("pushed images", pushed),
  ):
    accuracy = {}
    if shown is not None:
      learned, values = teach(
          learned, world.repeated[:half], world.group[:half], shown[:half],
          renders[:half], {},
      )
      right = float(values["refresh_adversarial_accuracy"])
      accuracy = {"accuracy_before": right}
    weights = learned["adversarial"]["weights"]
    mean = {
        kind: float(
            entry(x[half:], world.repeated[half:], weights).scalar.mean()
        )
        for kind, x in (
            ("renders", renders), ("images", images), ("pushed", pushed)
        )
    }
    rows.append({"learned": name} | mean | accuracy)
  rows.append({"learned": "control: saturation"} | {
      kind: float(jnp.abs(x[half:]).mean())
      for kind, x in (
          ("renders", renders), ("images", images), ("pushed", pushed)
      )
  })
  first, second, control = rows[1:]
  return Found(
      rows, "renders over images of the policy; after the second round pushed"
      " images last",
      holds=first["renders"] > first["images"]
      and second["pushed"] < min(second["images"], second["renders"]),
      control_fails=control["pushed"] > control["images"],
  )


def refreshed_judges(world):
  """IterComp: does a judge still rank what the policy has learned to draw?

  The newest policy is played by 20 steps of the reward's gradient on the
  latents of its images, older ones by 15, 10, 5 and none; pair accuracy of
  renders over images of the newest one, before and after a round on other
  prompts. The gallery of the round: images of all five policies, each beside a
  render, beside it one of the oldest and the newest alone. A round of the
  config takes 20 optimizer steps; heads that are trained to the end take more,
  here 500.
  """
  config = load_config("configs/methods/iter_comp.py")
  config.refresh.experts = {"relations": "trusted"}
  entry = judge("relations", "iter_comp")
  _, path = world.rollout(_CPS)
  policies = _climbed(world, entry, path.final)
  half = len(world.repeated) // 2
  renders = [
      jnp.asarray(to_signed(
          scenes.renders(SEED, k, world.repeated, size=world.policy.size)[0]
      ))
      for k in range(len(policies))
  ]
  rows = []
  for name, steps, gallery in (
      ("500 steps", 500, policies),
      ("500 steps, two policies", 500, policies[:: len(policies) - 1]),
      ("20 steps", 20, policies),
      ("control: not refreshed", 0, ()),
  ):
    weights = entry.weights
    if steps:
      config.refresh.steps = steps
      teach = Refresh(
          config, bind(REFRESHES, config.refresh, "refresh"),
          {"relations": entry},
      )
      count = len(gallery)
      learned, _ = teach(
          teach.init(), world.repeated[:half] * count,
          jnp.tile(world.group[:half], count),
          jnp.concatenate([x[:half] for x in gallery]),
          jnp.concatenate([x[:half] for x in renders[:count]]), {},
      )
      weights = learned["relations"]["weights"]
    scores = [
        np.asarray(entry(x[half:], world.repeated[half:], weights).scalar)
        for x in (renders[0], policies[-1], policies[0])
    ]
    rows.append({
        "judge": name,
        "pair_accuracy": float((scores[0] > scores[1]).mean()),
        "over_base_images": float((scores[0] > scores[2]).mean()),
    })
  after, *_, before = (row["pair_accuracy"] for row in rows)
  return Found(rows, "at least 0.85", after >= 0.85, before < 0.85)


def _climbed(world, entry, latents):
  """Images f32[N, S, S, 3] of latents, and after 5, 10, 15, 20 steps uphill."""
  text = entry.encode(world.repeated)
  decode = jax.jit(world.policy.decode)

  @jax.jit
  def climb(params, latents):
    slope = jax.grad(
        lambda z: entry.score(world.policy.decode(params, z), *text).sum()
    )

    def step(z, _):
      g = slope(z)
      size = jnp.sqrt(jnp.mean(g**2, (1, 2, 3), keepdims=True))
      return z + 0.1 * g / (size + 1e-9), None

    return jax.lax.scan(step, latents, None, length=5)[0]

  images = [decode(world.params, latents)]
  for _ in range(4):
    latents = climb(world.params, latents)
    images.append(decode(world.params, latents))
  return images


def late_prediction(world):
  """ReFL: is the image predicted at a late step the one that will be drawn?

  Correlation of the learned reward of the prediction at each step with that of
  the final image, within a prompt; the control is the first step.
  """
  world = few(32)
  images, path = world.smooth
  final = _within(world.score(images))
  rows = []
  for k in range(STEPS):
    x, t = path.x[k], path.t[k]
    shown = world.policy.decode(
        world.params, x - t * world.velocity(None, x, t)
    )
    seen = _within(
        np.asarray(judge("spatial_score")(shown, world.repeated).scalar)
    )
    rows.append({
        "step": f"{k}" if k else "control: 0",
        "correlation": float(np.corrcoef(seen, final)[0, 1]),
    })
  late = [row["correlation"] for row in rows[-2:]]
  return Found(
      rows, "0.8 in the last quarter, steps 6 and 7", min(late) >= 0.8,
      rows[0]["correlation"] < 0.8,
  )


def _within(score):
  score = score.reshape(-1, 8)
  return (score - score.mean(1, keepdims=True)).ravel()


CHECKS = (
    star_attention, flaw_map, patch_quality, adversarial_reward,
    refreshed_judges, late_prediction,
)
