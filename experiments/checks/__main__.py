"""Checks of methods' parts that need no training, each with its control.

  python -m experiments.checks

Uses the packaged policy, reward and heads, and held-out prompts. Writes
`results.json` and `results.md` in this folder.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes, tokenizers
from spatialrl.evals import relations
from spatialrl.flow import rollout as rollouts
from spatialrl.flow import transition as transitions
from spatialrl.flow.schedules import SCHEDULES
from spatialrl.io.workdir import write_json
from spatialrl.models.build import load_policy
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process
from spatialrl.rewards.aggregate import win_rate
from spatialrl.rewards.judges import make_judges
from spatialrl.rl.advantage import group_z
from spatialrl.scenes import check, grammar, layout, render
from spatialrl.scenes.render import to_uint8
from spatialrl.train.configs import load_config
from spatialrl.train.heads import found

_HERE = pathlib.Path(__file__).parent
_SEED = 1 << 22  # of no training and no evaluation
_PROMPTS, _GROUP, _STEPS = 96, 8, 8
_APART = 0.1  # mean distance, as a share of the image, that counts as another


class World:
  """The packaged policy, some prompts, and rollouts of them."""

  def __init__(self):
    self.config = load_config("configs/methods/pref_grpo.py")
    self.policy, params = load_policy(self.config.init)
    self.params = jax.tree.map(jnp.asarray, params)
    self.prompts = scenes.prompts(
        _SEED, _PROMPTS, relations=(1,), held_out=True
    )
    self.repeated = [p for p in self.prompts for _ in range(_GROUP)]
    self.group = jnp.repeat(jnp.arange(_PROMPTS), _GROUP)

  def rollout(self, transition, words=()):
    """Images u8[N, S, S, 3] from a shared start, and the Trajectory."""
    tokenizer = tokenizers.load()
    ids, mask = tokenizers.encode(
        tokenizer, self.repeated, self.config.prompts.max_tokens
    )
    core = jnp.asarray(tokenizers.word_table(tokenizer, words))[ids]

    @jax.jit
    def run(params, ids, mask, key):
      cond = self.policy.encode(params, ids, mask)

      def velocity(x, t):
        if not words:
          return self.policy.velocity(params, None, x, t, cond)
        return self.policy.velocity(
            params, None, x, t, cond, words=core, blocks=(2,)
        )

      noise = rollouts.initial_noise(
          key, self.group, self.policy.latent_shape, shared=True
      )
      path = rollouts.rollout(
          velocity, noise, SCHEDULES["shifted"](_STEPS, shift=3.0), key,
          self.group, transition=transition, log_prob=None, window_start=0,
          window=_STEPS - 1, last_step="ode", attends=bool(words),
      )
      return self.policy.decode(params, path.final), path

    images, path = run(self.params, ids, mask, jax.random.key(_SEED))
    return to_uint8(jax.device_get(images)), path


def star_attention(world):
  """STAR: does attention to the words lie where the oracle finds the things?

  Mass of a map inside the boxes of the prompt's things, relative to an even
  map, at each step of the rollout; and at the last one the chance that a place
  of a thing has more than a free place.
  """
  rows = []
  for name, words in (
      ("nouns and colours", ("nouns", "colours")),
      ("relation words", ("relations",)),
      ("control: the function word", ("function",)),
  ):
    images, path = world.rollout(transitions.ode, words)
    judged = relations.verdicts(world.repeated, images)
    boxes = relations.box_maps(judged, path.attention.shape[-1])
    rows.append((name, path.attention, boxes))
    if name == "nouns and colours":
      turned = np.asarray(path.attention)[..., ::-1, ::-1]
      rows.append(("control: the map turned by 180 degrees", turned, boxes))
  return [
      {"map": name}
      | {f"step_{k}": v for k, v in enumerate(_mass(maps, boxes))}
      | {"last_auc": found(np.asarray(maps[-1]), boxes)[1]}
      for name, maps, boxes in rows
  ]


def _mass(maps, boxes):
  inside = (boxes > 0.5).astype(float)
  seen = inside.sum((1, 2)) > 0
  share = (np.asarray(maps) * inside).sum((2, 3)) / inside.sum((1, 2)).clip(1)
  return [float(v) for v in share[:, seen].mean(1)]


def hicogen_noise(world):
  """HiCoGen: does early noise make layouts differ more, at equal budget?

  The budget is the sum of g^2 times the step; all images of a prompt share
  their start.
  """
  shapes = {
      "decaying (HiCoGen)": lambda t: 0.5 * (1 + jnp.cos(math.pi * (1 - t))),
      "constant (DanceGRPO)": jnp.ones_like,
      "rising (control)": lambda t: 0.5 * (1 + jnp.cos(math.pi * t)),
  }
  times = SCHEDULES["shifted"](_STEPS, shift=3.0)[:_STEPS]
  step = times[:-1] - times[1:]
  rows = []
  for name, shape in shapes.items():
    unit = np.asarray(shape(jnp.asarray(times[:-1])))
    eta = 0.5 / math.sqrt(np.sum(unit**2 * step))

    def transition(v, x, t, t_next, eta=eta, shape=shape):
      return transitions.sde(v, x, t, t_next, eta * shape(t))

    images, _ = world.rollout(transition)
    rows.append({"noise": name} | _layouts(world, images))
  return rows


def _layouts(world, images):
  """How often two images of a prompt differ in layout, with standard error."""
  judged = relations.verdicts(world.repeated, images)
  shares = []
  for start in range(0, len(images), _GROUP):
    vectors = [
        check.layout_vector(graph, detections)
        for graph, detections, _ in judged[start : start + _GROUP]
    ]
    vectors = np.array([v for v in vectors if v is not None])
    if len(vectors) > 1:
      gap = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1).mean(-1)
      pairs = gap[np.triu_indices(len(vectors), 1)]
      shares.append((pairs > _APART).mean())
  summary = relations.summary(judged)
  return {
      "pairs_that_differ": float(np.mean(shares)),
      "standard_error": float(np.std(shares, ddof=1) / len(shares) ** 0.5),
      "object_recall": summary["object_recall"],
      "all_relations": summary["all_relations"],
  }


def pref_grpo_ties(world):
  """Pref-GRPO: what do groups of equally good images get as advantages?

  Every group is fresh renders of one prompt, all of them right.
  """
  rng = np.random.default_rng(_SEED)
  graphs = [grammar.parse(p) for p in world.repeated]
  placed = [layout.place(rng, graph) for graph in graphs]
  images = render.render_batch(graphs, placed, world.policy.size)
  images = jnp.asarray(images, jnp.float32) / 127.5 - 1
  rows = []
  for name, margin in (
      ("win rate with ties", world.config.rewards.pairwise.tie_margin),
      ("control: win rate, forced choice", 0.0),
      ("control: the score itself", None),
  ):
    config = world.config.copy_and_resolve_references().rewards
    config.pairwise.group = _GROUP
    config.pairwise.tie_margin = margin or 0.0
    judge = make_judges(config, make_mesh((-1, 1, 1)))["pairwise"]
    signals = judge(images, world.repeated)
    reward = signals.scalar
    if margin is not None:
      reward = win_rate({"pairwise": signals}, weights={"pairwise": 1.0})
    advantage, _ = group_z(
        reward, jnp.ones(len(reward), bool), world.group, None, {}
    )
    rows.append({
        "reward": name,
        "mean_absolute_advantage": float(jnp.abs(advantage).mean()),
    })
  return rows


def flaw_map(world):
  """ImageDoctor and SRUM: does the map find what the oracle calls wrong?

  On images of the policy whose things are all there and whose relation is
  wrong, so that both things are, against images that are right.
  """
  config = load_config("configs/methods/image_doctor.py").rewards
  judge = make_judges(config, make_mesh((-1, 1, 1)))["relations"]
  images, path = world.rollout(
      functools.partial(transitions.cps, noise_level=0.4), ("nouns", "colours")
  )
  judged = relations.verdicts(world.repeated, images)
  signals = judge(jnp.asarray(images, jnp.float32) / 127.5 - 1, world.repeated)
  flaws = np.asarray(signals.map)
  truth = relations.box_maps(judged, flaws.shape[-1])
  wrong = np.array([
      v.object_recall == 1.0 and not v.all_relations for _, _, v in judged
  ])
  right = np.array([v.all_relations for _, _, v in judged])
  rng = np.random.default_rng(0)
  rows = []
  for name, maps in (
      ("flaw map", flaws),
      ("control: a random map", rng.normal(size=flaws.shape)),
      ("control: attention to the things", np.asarray(path.attention[-1])),
  ):
    pointing, auc = found(maps[wrong], truth[wrong])
    rows.append({
        "map": name, "pointing": pointing, "auc": auc,
        "mean_on_wrong_images": float(maps[wrong].mean()),
        "mean_on_right_images": float(maps[right].mean()),
        "wrong_images": int(wrong.sum()),
    })
  return rows


CHECKS = (star_attention, hicogen_noise, pref_grpo_ties, flaw_map)


def main():
  prepare_process()
  with jax.set_mesh(make_mesh((-1, 1, 1))):
    world = World()
    results = {entry.__name__: entry(world) for entry in CHECKS}
  write_json(_HERE / "results.json", results)
  parts = [_section(entry, results[entry.__name__]) for entry in CHECKS]
  (_HERE / "results.md").write_text("\n".join(parts), encoding="utf-8")
  print("\n".join(parts))


def _section(entry, rows):
  names = list(rows[0])
  cells = [
      [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
      for row in rows
  ]
  lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
  lines += ["| " + " | ".join(row) + " |" for row in cells]
  title, *rest = entry.__doc__.strip().split("\n")
  body = "\n".join(line.strip() for line in rest).strip()
  return f"## {title}\n\n{body}\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
