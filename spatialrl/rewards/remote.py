"""Judge `remote`: asks a server for scores, JSON over HTTP.

The protocol is in docs/external_rewards.md, a server for it in
experiments/judge_server.
"""

import base64
import contextlib
import http.client
import io
import json
import socket
import urllib.parse
import uuid

import numpy as np
from PIL import Image

from spatialrl.rewards.external import External, check_fields
from spatialrl.rewards.pool import Pool, WorkerError, checked, deadline

PROTOCOL = 1
_CONNECTIONS = {
  "http": http.client.HTTPConnection,
  "https": http.client.HTTPSConnection,
}
_LONGEST_ANSWER = 1 << 20  # bytes


class Remote(External):
  """A pool of threads, each waiting for one answer of the server."""

  def __init__(self, config, mesh):
    """Asks the server whether it is there.

    Args:
      config: fields `url` of the server, `timeout_seconds` of one request,
        `retries`, `in_flight` requests at a time, and `batch` images in each.
      mesh: the mesh in use.

    Raises:
      ValueError: a field cannot work, or no judge answers at the url.
    """
    check_fields(
      "remote", config,
      {"timeout_seconds": 0.1, "retries": 0, "in_flight": 1, "batch": 1},
    )
    url = config.get("url", "")
    client = Client(url, timeout_seconds=config.timeout_seconds)
    try:
      client.health()
    except WorkerError as error:
      raise ValueError(
        f"rewards.remote.url is {url!r}, where no judge answers: {error}."
      ) from error
    pool = Pool(
      [client] * config.in_flight, batch=config.batch, retries=config.retries
    )
    super().__init__("remote", pool, mesh)


class Client:
  """A worker of a pool that keeps nothing between requests."""

  def __init__(self, url, *, timeout_seconds):
    """Keeps the url, http or https, and the bound of a request."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _CONNECTIONS or not parts.hostname:
      raise ValueError(
        f"rewards.remote.url is {url!r}; it must be like http://host:8000."
      )
    self._connection = _CONNECTIONS[parts.scheme]
    self._place, self._path = parts.netloc, parts.path.rstrip("/")
    self._timeout = timeout_seconds

  def score(self, images, prompts):
    """Scores u8[n, S, S, 3] under n prompts: f32[n], -inf for null.

    Raises:
      WorkerError: no answer in time, or none that can be understood.
    """
    return checked(
      self._about("/score", images, prompts).get("scores"), len(prompts)
    )

  def write(self, images, prompts):
    """Texts about u8[n, S, S, 3], one for each of n prompts: list of str.

    Raises:
      WorkerError: no answer in time, or none that can be understood.
    """
    texts = self._about("/write", images, prompts).get("texts")
    if not (
      isinstance(texts, list)
      and len(texts) == len(prompts)
      and all(isinstance(text, str) and text.strip() for text in texts)
    ):
      raise WorkerError(
        f"texts is {str(texts)[:80]!r}; a list of {len(prompts)} texts that are"
        " not empty is needed"
      )
    return texts

  def health(self):
    """Raises WorkerError unless a server of this protocol is there."""
    self._request("GET", "/health")

  def close(self):
    """There is nothing to close."""

  def _about(self, path, images, prompts):
    """The answer to a question about images, whose id is checked."""
    name = uuid.uuid4().hex
    answer = self._request("POST", path, {
      "protocol": PROTOCOL,
      "id": name,
      "prompts": list(prompts),
      "images": [encode_png(image) for image in images],
    })
    if answer.get("id") != name:
      raise WorkerError(f"the answer has id {answer.get('id')!r}, not {name!r}")
    return answer

  def _request(self, method, path, content=None):
    """The JSON object that the server answers."""
    body = None if content is None else json.dumps(content)
    headers = {"Content-Type": "application/json", "Connection": "close"}
    try:
      with contextlib.closing(
        self._connection(self._place, timeout=self._timeout)
      ) as connection:
        connection.connect()
        # A socket's timeout bounds each read, so a server that sends a byte
        # now and then would hold the run; the deadline bounds them all.
        connection.sock.settimeout(None)
        with deadline(self._timeout, _hang_up(connection.sock)):
          connection.request(method, self._path + path, body, headers)
          response = connection.getresponse()
          status, text = response.status, response.read(_LONGEST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
      raise WorkerError(f"{type(error).__name__}: {error}") from error
    if status != 200:
      raise WorkerError(f"HTTP {status}: {text[:200].decode(errors='replace')}")
    return _parse(text)


def encode_png(image):
  """u8[S, S, 3] as the base64 of a PNG file."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG", compress_level=1)
  return base64.b64encode(file.getvalue()).decode("ascii")


def decode_png(text):
  """The inverse of `encode_png`.

  Raises:
    ValueError: it is no base64 of an image.
  """
  try:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    return np.asarray(image.convert("RGB"))
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"an image cannot be read: {error}") from error


def _parse(text):
  try:
    answer = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise WorkerError(f"the answer is no JSON: {error}") from error
  if not isinstance(answer, dict) or answer.get("protocol") != PROTOCOL:
    raise WorkerError(f"the answer is not of protocol {PROTOCOL}")
  return answer


def _hang_up(sock):
  def cut():
    with contextlib.suppress(OSError):  # it may be closed already
      sock.shutdown(socket.SHUT_RDWR)

  return cut
