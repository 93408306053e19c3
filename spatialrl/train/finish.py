"""Measuring a policy by the oracle, and what a finished run leaves behind."""

import functools
import json
import pathlib
import time

import jax
import numpy as np

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens
from spatialrl.evals import relations
from spatialrl.io import assets
from spatialrl.io.metrics import read_metrics
from spatialrl.io.workdir import write_json
from spatialrl.models import reward_model
from spatialrl.parallel import distributed
from spatialrl.rewards.judges import claims
from spatialrl.scenes import grammar, layout, render
from spatialrl.train import reports
from spatialrl.train import reward as reward_job
from spatialrl.train.sampling import Sampler

_SEED = 1 << 21  # evaluation prompts and noise; training seeds are smaller


class Evaluation:
  """Held-out prompts, the sampler, and the numbers a policy gets on them."""

  def __init__(self, config, mesh, policy, judges):
    """Draws the prompts.

    Args:
      config: fields `prompts.relations` and `eval` (`prompts`, `images` of
        each, `quick_prompts`, and what `Sampler` needs).
      mesh: the mesh in use.
      policy: Policy.
      judges: dict of judges; `spatial_score`, if there, says what it claims.
    """
    e = config.eval
    check_quick(e)
    self._config, self._policy, self._mesh = e, policy, mesh
    self._judge = judges.get("spatial_score")
    self.prompts = scenes.prompts(
        _SEED, e.prompts, relations=tuple(config.prompts.relations),
        held_out=True,
    )
    self._sampler = Sampler(policy, Tokens(e.max_tokens), mesh, e)
    self._fresh = None

  def quick(self, base, trainable, pause=lambda: None):
    """The oracle's numbers on the first prompts, one image each."""
    prompts = self.prompts[: self._config.quick_prompts]
    images = self._sampler(base, trainable, prompts, _SEED, pause=pause)
    return relations.summary(relations.verdicts(prompts, images))

  def full(self, base, trainable, pause=lambda: None):
    """Everything, on all prompts.

    Returns:
      (dict of floats: `all_relations`, `per_relation`, `object_recall`,
      `sg_iou`, `diversity` and, with a learned judge, `claimed`, the share of
      images it takes for right; images u8[N, S, S, 3]; what `verdicts` says).
    """
    prompts = self.repeated()
    images = self._sampler(base, trainable, prompts, _SEED, pause=pause)
    judged = relations.verdicts(prompts, images)
    numbers = relations.summary(judged)
    spread = relations.layout_diversity(judged, prompts)
    numbers["diversity"] = relations.relative_diversity(spread, self.fresh())
    if self._judge is not None:
      flips = [_flips(prompt) for prompt in prompts]
      claimed = claims(
          self._judge, images, prompts, flips, self._config.batch
      )
      numbers["claimed"] = float(claimed.mean())
    return numbers, images, judged

  def repeated(self):
    """Every prompt as often as images are drawn of it."""
    return [p for p in self.prompts for _ in range(self._config.images)]

  def fresh(self):
    """Layout diversity of renders of the same prompts."""
    if self._fresh is None:
      rng = np.random.default_rng(_SEED)
      kept, graphs, placed = [], [], []
      for prompt in self.repeated():
        graph = grammar.parse(prompt)
        where = layout.place(rng, graph)
        if where is not None:
          kept.append(prompt)
          graphs.append(graph)
          placed.append(where)
      images = render.render_batch(graphs, placed, self._policy.size)
      judged = relations.verdicts(kept, images)
      self._fresh = relations.layout_diversity(judged, kept)
    return self._fresh

  def pair_accuracy(self):
    """The learned judge on held-out pairs, or None without one."""
    if self._judge is None:
      return None
    model = self._judge.model
    rater = reward_job.Rater(
        functools.partial(reward_model.score, model), model.max_tokens,
        self._mesh, self._config.batch,
    )
    return {
        name: reward_job.pair_accuracy(
            rater, self._judge.params, self._config.pairs, model.size,
            perturbed, counts,
        )
        for name, (perturbed, counts) in reward_job.SPLITS.items()
    }


def summarise(
    config, workdir, evaluation, base, state, began, compilations, pause
):
  """Measures base and final policy; writes weights, summary and report.

  Returns:
    The dict written to `summary.json`.
  """
  before, images_before, judged_before = evaluation.full(base, None, pause)
  after, images_after, judged_after = evaluation.full(base, state.ema, pause)
  gap = None
  if "claimed" in before:
    gap = (after["claimed"] - before["claimed"]) - (
        after["all_relations"] - before["all_relations"]
    )
  summary = {
      "base": before,
      "final": after,
      "reward_pair_accuracy": evaluation.pair_accuracy(),
      "hacking_gap": gap,
      "seconds": time.perf_counter() - began,
      "seed": config.seed,
      "config": config.to_dict(),
      "steps": config.steps,
      "compilations": compilations,
  }
  save_trained(workdir, config, state, config.init)
  if jax.process_index() != 0:
    return summary
  write_json(f"{workdir}/summary.json", summary)
  reports.trained(
      pathlib.Path(workdir),
      summary,
      read_metrics(workdir),
      evaluation.repeated(),
      (images_before, judged_before),
      (images_after, judged_after),
  )
  return summary


def check_quick(config):
  """Raises ValueError unless `eval.quick_prompts` is a part of the prompts."""
  if not 1 <= config.quick_prompts <= config.prompts:
    raise ValueError(
        f"eval.quick_prompts is {config.quick_prompts}; allowed are 1 to"
        f" {config.prompts}, the field eval.prompts."
    )


def save_trained(workdir, config, state, init):
  """Writes `trained.safetensors`, the averaged weights.

  Args:
    workdir: directory of the run.
    config: of the run.
    state: TrainState.
    init: str, what they were trained on, a weights file or a folder.
  """
  metadata = {"init": init, "config": json.dumps(config.to_dict())}
  if init.endswith(".safetensors"):
    metadata["base_digest"] = assets.digest(init)
  assets.save(
      f"{workdir}/trained.safetensors",
      distributed.to_host(state.ema),
      metadata,
      dtype=np.float32,
  )


def _flips(prompt):
  """The prompt with each of its relations contradicted, one at a time."""
  graph = grammar.parse(prompt)
  return [grammar.prompt(flipped) for flipped in graph.with_one_flipped()]
