"""The chain: check, act, edit, until every relation holds or rounds run out.

The loop is RL-RIG's (arXiv:2602.19974, abstract). That each round starts from
the best image seen, which is also what is returned, by the Checker and the
earlier one among equals, is ours: an edit may break what was right. So is that
an instruction which did not better an image is not given to it again.
"""

import dataclasses

import jax
import numpy as np

from spatialrl.reflect import checker as checkers


@dataclasses.dataclass(frozen=True)
class Round:
  """What one round did to B images.

  Attributes:
    image: u8[B, S, S, 3], what its edits made; where nothing was done, the
      image from which they would have started.
    probability: f32[B, R], the Checker's, of that image.
    told: list of B Instruction that led to it; None where nothing was done.
    region: bool[B, h, w] that the edit could change; None in round 0.
    best: i64[B], the round whose image would be returned now.
    edits: i64[B], edits so far.
  """

  image: np.ndarray
  probability: np.ndarray
  told: list
  region: np.ndarray | None
  best: np.ndarray
  edits: np.ndarray


def run(
    images, prompts, *, check, act, edit, rounds, key, batch, side, detect,
):
  """Improves drawn images.

  Rows that are accepted drop out; the others are gathered into batches of one
  shape, so every program is compiled once.

  Args:
    images: u8[B, S, S, 3], drawn by the Diffuser.
    prompts: list of B str.
    check: (images, prompts) -> f32[B, R], a Checker.
    act: (images, prompts, probability, boxes, tried, key) -> list of B
      Instruction; `tried` is a list of B lists of Instruction, those that did
      not better the image.
    edit: (images, told, boxes, key, rows) -> (images, region).
    rounds: int >= 0; 0 checks and returns what was drawn.
    key: PRNG key.
    batch: rows of one call.
    side: latent positions a side.
    detect: (images, prompts) -> list of what `act` and `edit` get as boxes.

  Returns:
    list of rounds + 1 Round.

  Raises:
    ValueError: for a negative number of rounds.
  """
  if rounds < 0:
    raise ValueError(f"rounds is {rounds}; it must be 0 or more.")
  count, prompts = len(prompts), np.asarray(prompts, object)
  probability = checkers.in_batches(check, images, prompts.tolist(), batch)
  scores, edits = [checkers.score(probability)], np.zeros(count, int)
  done = [Round(images, probability, [None] * count, None,
                np.zeros(count, int), edits)]
  for k in range(1, rounds + 1):
    images = returned([r.image for r in done], done[-1].best)
    probability = returned([r.probability for r in done], done[-1].best)
    told, region = [None] * count, np.zeros((count, side, side), bool)
    open_ = np.flatnonzero(~checkers.accepted(probability))
    for start, (rows, real) in enumerate(checkers.batches(open_, batch)):
      act_key, edit_key = (
          jax.random.fold_in(jax.random.fold_in(key, 2 * k + purpose), start)
          for purpose in (0, 1)
      )
      asked = prompts[rows].tolist()
      boxes = detect(images[rows], asked)
      said = act(
          images[rows], asked, probability[rows], boxes,
          [tried(done, i) for i in rows], act_key,
      )
      edited, opened = edit(images[rows], said, boxes, edit_key, rows)
      checked = check(edited, asked)
      kept = rows[:real]
      images[kept], region[kept] = edited[:real], opened[:real]
      probability[kept] = checked[:real]
      for i, instruction in zip(kept, said[:real], strict=True):
        told[i] = instruction
    scores.append(checkers.score(probability))
    edits = edits + np.array([t is not None for t in told])
    best = np.argmax(np.stack(scores), axis=0)
    done.append(Round(images, probability, told, region, best, edits))
  return done


def tried(done, i):
  """Instructions that did not better what row i of a chain would return."""
  since = done[done[-1].best[i] + 1 :]
  return [r.told[i] for r in since if r.told[i] is not None]


def returned(values, best):
  """Picks of [rounds + 1, B, ...] those of round `best` i64[B]: [B, ...]."""
  return np.stack(values)[best, np.arange(len(best))]

