"""Phase `eval` of the job `reflect`: every system on held-out prompts."""

import dataclasses
import json
import time

import jax
import numpy as np

from spatialrl.data.prompts import Tokens
from spatialrl.evals import edits
from spatialrl.io.workdir import prepare, write_json
from spatialrl.models import editor as editors
from spatialrl.models.build import load_policy, load_trained
from spatialrl.reflect import chain, editing, scenes
from spatialrl.reflect import checker as checkers
from spatialrl.reflect.actors import Learned, Rules
from spatialrl.train import reflect_report
from spatialrl.train.reflect_pool import load_actor, load_checker
from spatialrl.train.sampling import Sampler

_SEED = 3 << 20  # prompts and noise; seed s of the study is this plus s
_NAMES = ("sg_iou", "entity_iou", "relation_iou", "all_relations")


@dataclasses.dataclass(frozen=True)
class Chained:
  """A system that edits: whose verdicts, instructions and edits it takes.

  `sight` is whose boxes say where things are, to the rules and for regions;
  `drawn` is who makes the first image, as the one-shot systems are called.
  """

  checker: str
  actor: str
  editor: str
  sight: str = "learned"
  drawn: str = "one_shot"


CHAINS = {
    "chain_untrained": Chained("learned", "actor", "editor"),
    "chain_actor": Chained("learned", "actor_grpo", "editor"),
    "chain_editor": Chained("learned", "actor", "editor_grpo"),
    "chain": Chained("learned", "actor_grpo", "editor_grpo"),
    "chain_flow_grpo": Chained(
        "learned", "actor_grpo", "editor_grpo", drawn="flow_grpo"
    ),
    "chain_rules": Chained("learned", "rules", "editor"),
    "chain_rules_boxes": Chained("learned", "rules", "editor", "oracle"),
    "chain_oracle": Chained("oracle", "actor_grpo", "editor_grpo", "oracle"),
    "chain_rules_oracle": Chained("oracle", "rules", "editor", "oracle"),
}


class Study:
  """The trained parts of a workdir, and how each system uses them."""

  def __init__(self, config, root, mesh):
    """Loads everything that `CHAINS` and the controls need."""
    self.config = config
    self.policy, params = load_policy(root / "diffuser/policy.safetensors")
    self.params = jax.device_put(params)
    self._mesh, self._samplers = mesh, {}
    self.base = self.params["mmdit"]
    self.tuned = load_trained(
        str(root / "generator_grpo/trained.safetensors"), self.policy, params
    )
    self.checkers = {
        "learned": load_checker(root), "oracle": checkers.Oracle(),
    }
    self.actors = {"rules": Rules()} | {
        name: Learned(
            *load_actor(root, name), self.checkers["learned"],
            temperature=config.temperature[name],
        )
        for name in ("actor", "actor_grpo")
    }
    self.weights = {}
    for name in ("editor", "editor_grpo"):
      editor, weights = editors.load(root / name / "editor.safetensors")
      self.weights[name] = jax.device_put(weights)
    self.inverse = editing.Inverse(
        editor, steps=config.edit.steps, shift=config.edit.shift
    )
    self._rebuild = jax.jit(
        lambda weights, images: editing.to_uint8(editor.decode(
            weights, editor.to_latents(
                weights, images.astype(np.float32) / 127.5 - 1
            ),
        ))
    )

  def draw(self, trainable, prompts, seed, steps):
    """One image a prompt in `steps` steps, u8[N, S, S, 3]."""
    if steps not in self._samplers:
      config = self.config.sampling.copy_and_resolve_references()
      config.steps = steps
      self._samplers[steps] = Sampler(
          self.policy, Tokens(scenes.TOKENS), self._mesh, config
      )
    return self._samplers[steps](self.params, trainable, prompts, seed)

  def chain(self, system, images, prompts, seed):
    """`chain.run` of a system, list of Round."""
    parts = CHAINS[system]
    weights = self.weights[parts.editor]

    def edit(images, told, boxes, key, rows):
      return self.inverse(weights, None, images, told, boxes, key, rows)

    return chain.run(
        images, prompts, check=self.checkers[parts.checker],
        act=self.actors[parts.actor], edit=edit, rounds=self.config.rounds,
        key=jax.random.key(seed), batch=self.config.batch,
        side=self.inverse.editor.latent_shape[0],
        detect=self.checkers[parts.sight].boxes,
    )

  def rebuilt(self, images):
    """Images encoded and decoded again, the pure reconstruction."""
    weights, out = self.weights["editor"], []
    for rows, real in checkers.batches(
        np.arange(len(images)), self.config.batch
    ):
      out.append(np.asarray(self._rebuild(weights, images[rows]))[:real])
    return np.concatenate(out)


def evaluate(config, folder, mesh):
  """Writes `results.json`, `details.json` and `report.html`.

  Every seed has prompts and noise of its own. A record has the mean over
  prompts of a system after a round. A seed that is done is not repeated, but
  for the first one, whose chains are shown.
  """
  root = folder.parent
  if config.rounds < 0:
    raise ValueError(f"eval.rounds is {config.rounds}; it must be 0 or more.")
  prepare(folder, config)
  study = Study(config, root, mesh)
  records, details, shown = [], [], None
  for seed in config.seeds:
    path = folder / f"seed{seed}.json"
    if not path.exists() or shown is None:
      began = time.perf_counter()
      found, numbers, shown = one_seed(study, seed)
      print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
      write_json(path, {"records": found, "details": numbers})
    done = json.loads(path.read_text())
    records += done["records"]
    details += done["details"]
  write_json(folder / "details.json", details)
  reflect_report.write(folder, config, records, details, *shown)
  write_json(folder / "results.json", records)


def one_seed(study, seed):
  """All systems on the prompts of a seed.

  Returns:
    (list of records, list of details, (prompts, rounds of "chain")).
  """
  config, places = study.config, []
  prompts = scenes.prompts(_SEED + seed, config.prompts, held_out=True)
  steps, more = config.sampling.steps, config.edit.steps
  makers = {"one_shot": study.base, "flow_grpo": study.tuned}
  drawn = {
      name: study.draw(weights, prompts, _SEED + seed, steps)
      for name, weights in makers.items()
  }
  first = {name: edits.per_image(prompts, made) for name, made in drawn.items()}
  details = []

  def note(system, k, values, calls, damage=None):
    means = {name: float(np.mean(values[name])) for name in _NAMES}
    places.append({
        "system": system, "seed": seed, "round": k, **means,
        "network_calls": float(calls), "damage": damage,
    })

  for name, weights in makers.items():
    note(name, 0, first[name], steps)
    if config.rounds:
      calls = steps + config.rounds * more
      images = study.draw(weights, prompts, _SEED + seed, calls)
      note(name, config.rounds, edits.per_image(prompts, images), calls)
  for name, weights in makers.items():
    best = _best_of(study, weights, prompts, drawn[name], first[name], seed)
    for k, values, calls in best:
      note(f"best_of_{name}", k, values, calls)
  for system, parts in CHAINS.items():
    begun = first[parts.drawn]
    done = study.chain(system, drawn[parts.drawn], prompts, _SEED + seed)
    found, numbers = _measured(study, prompts, done, begun)
    for k, (values, damage) in enumerate(found):
      note(system, k, values, steps + more * done[k].edits.mean(), damage)
    details.append({"system": system, "seed": seed, **numbers})
    if system == "chain":
      shown = done
  return places, details, (prompts, shown)


def _best_of(study, weights, prompts, drawn, first, seed):
  """Best of k + 1 draws by the Checker, which stops at one it accepts.

  Draws are those of the Diffuser with `weights`, the first ones `drawn`.

  Yields:
    (k, dict of f64[N], mean network calls).
  """
  config, check = study.config, study.checkers["learned"]
  steps = config.sampling.steps
  said = checkers.in_batches(check, drawn, prompts, config.batch)
  scores, over = checkers.score(said), checkers.accepted(said)
  values, spent = dict(first), np.full(len(prompts), float(steps))
  for k in range(config.rounds + 1):
    if k:
      rows = np.flatnonzero(~over)
      if len(rows):
        asked = [prompts[i] for i in rows]
        images = study.draw(weights, asked, _SEED + seed + 1000 * k, steps)
        said = checkers.in_batches(check, images, asked, config.batch)
        better = checkers.score(said) > scores[rows]
        new = edits.per_image(asked, images)
        values = {name: value.copy() for name, value in values.items()}
        for name in values:
          values[name][rows[better]] = new[name][better]
        scores[rows] = np.maximum(scores[rows], checkers.score(said))
        over[rows] = checkers.accepted(said)
        spent[rows] += steps
    yield k, values, spent.mean()


def _measured(study, prompts, done, first):
  """What a chain did.

  Returns:
    (list of (dict of f64[N] of the images it would return, damage), dict of
    numbers on its edits).
  """
  each, returned = [first], [(first, None)]
  followed, broke, damaged, rebuilt = [], [], [], []
  for k in range(1, len(done)):
    now = done[k]
    before = chain.returned([r.image for r in done[:k]], done[k - 1].best)
    rows = np.flatnonzero([t is not None for t in now.told])
    values = {name: value.copy() for name, value in each[-1].items()}
    damage = None
    if len(rows):
      asked = [prompts[i] for i in rows]
      source, edited = before[rows], now.image[rows]
      for name, value in edits.per_image(asked, edited).items():
        values[name][rows] = value
      region = now.region[rows]
      error = edits.outside_error(edited, source, region)
      plain = edits.outside_error(study.rebuilt(source), source, region)
      damage = float(error.mean() / plain.mean()) if plain.any() else None
      damaged.append(error)
      rebuilt.append(plain)
      followed += [
          edits.followed(now.told[i], a, b) for i, a, b in zip(
              rows, editing.found_boxes(source), editing.found_boxes(edited),
              strict=True,
          )
      ]
      oracle = study.checkers["oracle"]
      was, is_ = oracle(source, asked), oracle(edited, asked)
      broke += ((was > 0) & ~(is_ > 0)).any(1).tolist()
    each.append(values)
    names = each[0].keys()
    returned.append((
        {
            name: chain.returned([part[name] for part in each], now.best)
            for name in names
        },
        damage,
    ))
  last = done[-1]
  accepted = checkers.accepted(done[0].probability)
  right = first["all_relations"] > 0
  numbers = {
      "edits": len(followed),
      "edit_success": float(np.mean(followed)) if followed else None,
      "breaks_a_relation": float(np.mean(broke)) if broke else None,
      "rounds_used": float(last.edits.mean()),
      "stops_on_right_images": (
          float(accepted[right].mean()) if right.any() else None
      ),
      "damage": (
          float(np.concatenate(damaged).mean() / np.concatenate(rebuilt).mean())
          if damaged and np.concatenate(rebuilt).any() else None
      ),
      "checker_score": float(np.mean(chain.returned(
          [checkers.score(r.probability) for r in done], last.best
      ))),
      "oracle_score": float(returned[-1][0]["per_relation"].mean()),
  }
  return returned, numbers
