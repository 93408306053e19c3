"""What the report of a finished job shows, made from its numbers and images."""

import numpy as np

from spatialrl.io import plots
from spatialrl.io.report import FOLDER, Section, write_report

_SHOWN = 24  # images of the gallery
_FAILURES = 16
_NAMES = {
    "all_relations": "every relation right (oracle)",
    "per_relation": "relations right (oracle)",
    "object_recall": "objects found (oracle)",
    "sg_iou": "scene-graph IoU (oracle)",
    "diversity": "layout diversity, fresh renders = 1",
    "claimed": "every relation right (reward's claim)",
}
_BY_ORACLE = (
    "Held-out prompts, by the oracle",
    {
        "all_relations": "every relation right",
        "object_recall": "objects found",
    },
)
_PANELS = [
    ("Ratio", {"ratio": "mean", "ratio_max": "largest"}),
    ("Share clipped", {"clip_high": "above", "clip_low": "below"}),
    ("Distance to the base", {"anchor": "anchor", "approx_kl": "inner KL"}),
    ("Gradient norm", {"grad_norm": "before clipping"}),
    (
        "Seconds of an iteration",
        {
            "rollout_seconds": "rollout",
            "reward_seconds": "reward",
            "update_seconds": "update",
        },
    ),
]


def trained(workdir, summary, rows, prompts, before, after):
  """The report of an online run.

  Args:
    workdir: directory of the run.
    summary: as `finish.summarise` writes it.
    rows: of `metrics.jsonl`.
    prompts: list of N str.
    before: (images u8[N, S, S, 3], what `verdicts` says), the base policy.
    after: the same prompts and noise, the trained one.
  """
  folder = workdir / FOLDER
  plots.curves(folder / "curves.png", rows, panels(_BY_ORACLE))
  picked = spread(prompts)
  plots.gallery(
      folder / "before_after.png",
      {"base": before[0][picked], "trained": after[0][picked]},
      [prompts[i] for i in picked],
      {"base": _right(before[1], picked), "trained": _right(after[1], picked)},
  )
  failures = _failures(folder, prompts, *after)
  numbers = {
      _NAMES[name]: (summary["base"][name], summary["final"][name])
      for name in _NAMES
      if name in summary["final"]
  }
  numbers["hacking gap"] = (None, summary["hacking_gap"])
  write_report(
      workdir,
      title=f"Online run, {summary['steps']} iterations",
      summary=numbers,
      settings=summary["config"],
      sections=[
          Section(
              "Curves",
              "The policy sees the learned reward only; the oracle reads"
              " pixels and never trains anything.",
              "curves.png",
          ),
          Section(
              "Before and after",
              "The same held-out prompts and the same noise. Frames are the"
              " oracle's verdict.",
              "before_after.png",
          ),
          failures,
      ],
  )


def evaluated(workdir, summary, prompts, images, judged):
  """The report of an `eval` job; arguments as in `trained`."""
  folder = workdir / FOLDER
  picked = spread(prompts)
  plots.gallery(
      folder / "gallery.png",
      {"": images[picked]},
      [prompts[i] for i in picked],
      {"": _right(judged, picked)},
  )
  write_report(
      workdir,
      title="Evaluation",
      summary={
          _NAMES.get(name, name): (None, value)
          for name, value in summary["final"].items()
      },
      settings=summary["config"],
      sections=[
          Section("Images", "Held-out prompts.", "gallery.png"),
          _failures(folder, prompts, images, judged),
      ],
  )


def panels(held_out):
  """Panels of an online run's curves; `held_out` is the one of its measure."""
  reward = ("Reward", {"reward": "mean", "reward_std": "spread"})
  return [reward, held_out, *_PANELS]


def _failures(folder, prompts, images, judged):
  wrong = [i for i, (_, _, v) in enumerate(judged) if not v.all_relations]
  text = f"{len(wrong)} of {len(prompts)} images are wrong."
  picked = wrong[:_FAILURES]
  if not picked:
    return Section("Failures", text)
  plots.gallery(
      folder / "failures.png",
      {"": images[picked]},
      [f"{prompts[i]}\n{_why(*judged[i])}" for i in picked],
      {"": [False] * len(picked)},
  )
  return Section("Failures", text, "failures.png")


def _why(graph, _, verdict):
  """What is wrong with a picture, in words."""
  missing = [
      thing.label
      for thing, there in zip(graph.things, verdict.objects, strict=True)
      if not there
  ]
  if missing:
    return "not found: " + ", ".join(missing)
  labels = [thing.label for thing in graph.things]
  false = [
      f"{labels[r.subject]} not {r.predicate} {labels[r.object]}"
      for r, holds in zip(graph.relations, verdict.relations, strict=True)
      if not holds
  ]
  return ", ".join(false)


def spread(prompts):
  """Indices over all prompts, evenly, at most as many as are shown."""
  count = min(_SHOWN, len(prompts))
  return np.linspace(0, len(prompts) - 1, count).astype(int).tolist()


def _right(judged, picked):
  return [judged[i][2].all_relations for i in picked]
