"""Measuring a policy by its reward, and what a run on real backbones leaves.

There is no oracle here: held-out prompts are scored by the judges that train.
"""

import pathlib
import shutil
import time

import jax
import numpy as np

from spatialrl.convert import adapters, lora
from spatialrl.io import plots
from spatialrl.io.metrics import read_metrics
from spatialrl.io.report import FOLDER, Section, write_report
from spatialrl.io.workdir import write_json
from spatialrl.parallel import distributed
from spatialrl.records import Signals
from spatialrl.rewards.aggregate import AGGREGATORS
from spatialrl.train import finish, reports
from spatialrl.train.sampling import Sampler
from spatialrl.train.slots import bind

_SEED = 1 << 21  # of evaluation noise, as in `finish`


class Evaluation:
  """Held-out prompts, the sampler, and the rewards a policy gets on them."""

  def __init__(self, config, mesh, policy, read, judges, prompts):
    """Prepares sampling.

    Args:
      config: fields `eval` (`images` of each prompt, `quick_prompts` for
        `quick`, and what `Sampler` needs) and, where one trains, `aggregate`.
      mesh: the mesh in use.
      policy: DiffusionPolicy.
      read: reader of `data.prompts` for it.
      judges: dict of judges.
      prompts: list of N held-out str.
    """
    self._config, self._judges = config, judges
    self._prompts = prompts
    self._sampler = Sampler(policy, read, mesh, config.eval)

  def quick(self, base, trainable, pause=lambda: None):
    """The mean of each score on the first prompts, one image each.

    Without those of judges that scored none, whose failures are counted.
    """
    prompts = self._prompts[: self._config.eval.quick_prompts]
    numbers, _, _ = self._measure(base, trainable, prompts, pause)
    return {f"held_out_{name}": value for name, value in numbers.items()}

  def full(self, base, trainable, pause=lambda: None):
    """Everything, on all prompts.

    Returns:
      (dict of floats: one mean a judge under its name, `reward`, the mean of
      the weighted sum if it is what trains, for the other aggregates have no
      zero or unit beyond a batch, and `failed_scores`; images u8[M, S, S, 3];
      dict of f32[M] by score, -inf where it failed).

    Raises:
      ValueError: if a judge scored no image.
    """
    prompts = self.repeated()
    numbers, images, scores = self._measure(base, trainable, prompts, pause)
    for name in scores:
      if name not in numbers:
        raise ValueError(f"{name} scored none of {len(prompts)} images.")
    return numbers, images, scores

  def repeated(self):
    """Every prompt as often as images are drawn of it: list of M str."""
    return [p for p in self._prompts for _ in range(self._config.eval.images)]

  def _measure(self, base, trainable, prompts, pause):
    images = self._sampler(base, trainable, prompts, _SEED, pause=pause)
    batch, parts = self._config.eval.batch, []
    for start in range(0, len(prompts), batch):
      pause()
      rows = np.arange(start, start + batch) % len(prompts)
      pixels = images[rows].astype(np.float32) / 127.5 - 1
      chosen = [prompts[i] for i in rows]
      parts.append({
          name: judge(pixels, chosen) for name, judge in self._judges.items()
      })
    aggregate = self._config.get("aggregate")
    if aggregate and aggregate.name == "weighted_sum":
      total = bind(AGGREGATORS, aggregate, "aggregate")
      parts = [{"reward": Signals(scalar=total(p))} | p for p in parts]
    scores = {
        name: np.concatenate([part[name].scalar for part in parts])
        for name in parts[0]
    }
    scores = {name: values[: len(prompts)] for name, values in scores.items()}
    numbers, failed = {}, np.zeros(len(prompts), bool)
    for name, values in scores.items():
      scored = values != -np.inf  # NaN is no failure, and no number
      if scored.any():
        numbers[name] = float(values[scored].mean())
      failed |= ~scored
    numbers["failed_scores"] = float(failed.sum())
    return numbers, images, scores


def summarise(
    config, workdir, evaluation, opened, state, began, compilations, pause
):
  """Measures base and final policy; writes weights, LoRA, summary and report.

  Args:
    config: of the run.
    workdir: its directory.
    evaluation: Evaluation.
    opened: `backbone.Backbone`.
    state: the final TrainState.
    began: `time.perf_counter()` at the start.
    compilations: dict of int.
    pause: called between batches.

  Returns:
    The dict written to `summary.json`.
  """
  workdir = pathlib.Path(workdir)
  before = evaluation.full(opened.params, None, pause)
  after = evaluation.full(opened.params, state.ema, pause)
  summary = {
      "base": before[0],
      "final": after[0],
      "seconds": time.perf_counter() - began,
      "seed": config.seed,
      "config": config.to_dict(),
      "steps": config.steps,
      "compilations": compilations,
  }
  finish.save_trained(workdir, config, state, config.model.folder)
  trained = distributed.to_host(state.ema)
  if jax.process_index() != 0:
    return summary
  if opened.policy.lora is not None:
    whole = opened.transformer
    pairs = adapters.from_tree(opened.policy.lora, trained, whole)
    if (workdir / "lora").exists():  # of this run, before it went on
      shutil.rmtree(workdir / "lora")
    lora.write(workdir / "lora", "diffusers", pairs, whole)
  write_json(workdir / "summary.json", summary)
  _report(workdir, summary, evaluation.repeated(), before, after)
  return summary


def _report(workdir, summary, prompts, before, after):
  """Numbers, curves, and the same prompts and noise before and after."""
  folder = workdir / FOLDER
  (_, first, was), (_, second, now) = before, after
  held_out = {f"held_out_{name}": name for name in now}
  panels = reports.panels(("Held-out prompts, means", held_out))
  plots.curves(folder / "curves.png", read_metrics(workdir), panels)
  picked = reports.spread(prompts)
  plots.gallery(
      folder / "before_after.png",
      {"base": first[picked], "trained": second[picked]},
      [
          "\n".join([
              prompts[i],
              *(f"{n} {was[n][i]:.2f}, then {now[n][i]:.2f}" for n in now),
          ])
          for i in picked
      ],
      {},
  )
  write_report(
      workdir,
      title=f"Online run, {summary['steps']} iterations",
      summary={
          name: (summary["base"][name], value)
          for name, value in summary["final"].items()
      },
      settings=summary["config"],
      sections=[
          Section(
              "Curves",
              "The judges that score held-out prompts are those that train: a"
              " rising curve says that the policy learned the reward, not that"
              " its images are better.",
              "curves.png",
          ),
          Section(
              "Before and after",
              "The same held-out prompts and the same noise.",
              "before_after.png",
          ),
      ],
  )
