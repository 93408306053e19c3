"""The report of the job `reflect`: chains, picture by picture, and numbers."""

import numpy as np

from spatialrl.io import plots
from spatialrl.io.report import FOLDER, Section, write_report
from spatialrl.reflect import checker as checkers
from spatialrl.scenes import grammar

_SHOWN = 18  # chains of the gallery
_COLUMNS = ("sg_iou", "all_relations", "network_calls", "damage")


def write(workdir, config, records, details, prompts, done):
  """Writes `report.html`.

  Args:
    workdir: directory of the phase.
    config: of the phase.
    records: as `reflect_eval.evaluate` writes them.
    details: the same.
    prompts: list of N str of the seed whose chains are shown.
    done: list of `chain.Round`, those of the whole chain.
  """
  edited = np.flatnonzero(done[-1].edits)
  picked = edited[: _SHOWN].tolist()
  gallery = Section("Chains", "Every image was accepted as it was drawn.")
  if picked:
    plots.gallery(
        workdir / FOLDER / "chains.png",
        {f"round {k}": r.image[picked] for k, r in enumerate(done)},
        [caption(prompts[i], done, i) for i in picked],
        {
            f"round {k}": checkers.accepted(r.probability)[picked].tolist()
            for k, r in enumerate(done)
        },
    )
    gallery = Section(
        "Chains",
        "Held-out prompts whose first image the Checker did not accept. A green"
        " frame: it takes every relation for true.",
        "chains.png",
    )
  last = max(record["round"] for record in records)
  final = [r for r in records if r["round"] == last]
  write_report(
      workdir,
      title=f"RL-RIG, {last} rounds",
      summary={},
      settings=config.to_dict(),
      sections=[
          Section("Systems", "After the last round, by the oracle.", table=[
              ("system", "seed", *_COLUMNS),
              *[
                  (r["system"], str(r["seed"]), *(r[n] for n in _COLUMNS))
                  for r in final
              ],
          ]),
          gallery,
          Section("Edits", table=[
              tuple(details[0]), *[tuple(d.values()) for d in details]
          ]),
      ],
  )


def caption(prompt, done, i):
  """The prompt, and a line a round: what failed and what was told."""
  graph, lines = grammar.parse(prompt), [prompt]
  labels = [thing.label for thing in graph.things]
  for k in range(1, len(done)):
    if done[k].told[i] is None:
      continue
    source = done[done[k - 1].best[i]]
    failed = [
        f"{labels[r.subject]} {r.predicate} {labels[r.object]}"
        for r, value in zip(
            graph.relations, source.probability[i], strict=False
        )
        if value <= checkers.HOLDS
    ]
    lines.append(f"{k}. not {', not '.join(failed)}: {done[k].told[i]}")
  return "\n".join(lines)
