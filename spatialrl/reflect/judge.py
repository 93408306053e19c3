"""A vision-language model behind HTTP as Checker and Actor, at inference.

With it the chain runs around any generator and editor, FLUX say. The protocol
is that of docs/external_rewards.md: `/score` is asked for the probability of
one relation a row, `/write` for an instruction.
"""

import numpy as np

from spatialrl.reflect import checker
from spatialrl.rewards.pool import WorkerError
from spatialrl.rewards.remote import Client


class Judge:
  """Asks a server; nothing is retried, an answer it cannot use is an error."""

  def __init__(self, url, *, timeout_seconds, separator, read):
    """Asks whether the server is there.

    Args:
      url: like http://host:8000.
      timeout_seconds: of one request.
      separator: between the relations of a prompt, such as "; ".
      read: str -> instruction, which raises ValueError for what is none:
        `instructions.parse`, or `str` where the editor takes any text.

    Raises:
      ValueError: no server of this protocol answers there.
    """
    self._client = Client(url, timeout_seconds=timeout_seconds)
    self._url, self._separator, self._read = url, separator, read
    self._ask(self._client.health)

  def check(self, images, prompts):
    """Probability that each relation holds.

    Args:
      images: u8[B, S, S, 3].
      prompts: list of B str.

    Returns:
      f32[B, R] with R the most relations of a prompt; NaN beyond those of one.

    Raises:
      ValueError: the server failed, or an answer is no probability.
    """
    asked = [prompt.split(self._separator) for prompt in prompts]
    rows = [(i, k) for i, row in enumerate(asked) for k in range(len(row))]
    scores = self._ask(
        self._client.score, [images[i] for i, _ in rows],
        [asked[i][k] for i, k in rows],
    )
    out = np.full((len(asked), max(map(len, asked))), np.nan, np.float32)
    for (i, k), value in zip(rows, scores, strict=True):
      if not 0 <= value <= 1:
        raise ValueError(
            f"judge {self._url!r} answers {value} on {asked[i][k]!r}; a"
            " probability from 0 to 1 is needed."
        )
      out[i, k] = value
    return out

  def act(self, images, prompts, probability, boxes, tried, key):
    """One instruction an image; called like the actors of `actors`.

    Raises:
      ValueError: the server failed, or an answer is no instruction.
    """
    del boxes, key
    questions = []
    for prompt, row, done in zip(prompts, probability, tried, strict=True):
      failed = [
          clause
          for clause, value in zip(
              prompt.split(self._separator), row, strict=False
          )
          if value <= checker.HOLDS
      ]
      questions.append(
          f"The image should show: {prompt}\n"
          f"Not true of it: {self._separator.join(failed)}\n"
          + "".join(f"Tried in vain: {said}\n" for said in done)
          + "Write one instruction to an image editor that repairs this."
      )
    told = []
    for text in self._ask(self._client.write, images, questions):
      try:
        told.append(self._read(text))
      except ValueError as error:
        raise ValueError(
            f"judge {self._url!r} wrote no instruction: {error}"
        ) from error
    return told

  def _ask(self, request, *args):
    try:
      return request(*args)
    except WorkerError as error:
      raise ValueError(
          f"judge {self._url!r} does not keep to the protocol: {error}."
      ) from error
