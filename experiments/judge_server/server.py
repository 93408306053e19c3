"""Serves a scorer over HTTP by the protocol of docs/external_rewards.md."""

import contextlib
import http.server
import json
import math
import threading

import numpy as np

from spatialrl.rewards.pool import checked
from spatialrl.rewards.remote import PROTOCOL, decode_png

_LARGEST_REQUEST = 256 << 20  # bytes


def make_server(scorer, *, host="127.0.0.1", port=8000):
  """A server that is not running yet; call its `serve_forever`.

  Args:
    scorer: function (u8[n, S, S, 3], list of n str) -> n numbers, None or NaN
      for what it cannot score; called by one thread at a time. A ValueError
      is the client's fault.
    host: address to listen on. Whoever reaches it may use it.
    port: 0 for any free one, then found in `server_address`.

  Returns:
    http.server.ThreadingHTTPServer.
  """
  lock = threading.Lock()

  class Handler(_Handler):
    def score(self, images, prompts):
      with lock:
        return scorer(images, prompts)

  server = http.server.ThreadingHTTPServer((host, port), Handler)
  server.daemon_threads = True
  return server


def read_request(text):
  """Reads the body of POST /score.

  Returns:
    (id, u8[n, S, S, 3], list of n str).

  Raises:
    ValueError: says what is wrong with it.
  """
  request = json.loads(text)
  if not isinstance(request, dict) or request.get("protocol") != PROTOCOL:
    raise ValueError(f"the request is not of protocol {PROTOCOL}")
  prompts, images = request.get("prompts"), request.get("images")
  for field, value in (("prompts", prompts), ("images", images)):
    listed = isinstance(value, list)
    if not listed or not all(isinstance(text, str) for text in value):
      raise ValueError(f"{field} is not a list of strings")
  if not images or len(images) != len(prompts):
    raise ValueError(
      f"there are {len(images)} images and {len(prompts)} prompts; send at"
      " least one image, and a prompt for each"
    )
  pixels = [decode_png(image) for image in images]
  if len({image.shape for image in pixels}) > 1:
    raise ValueError("the images are not of one size")
  return request.get("id"), np.stack(pixels), prompts


class _Handler(http.server.BaseHTTPRequestHandler):
  timeout = 60  # seconds a silent client may hold a thread

  def do_GET(self):
    if self.path != "/health":
      return self._answer(404, {"error": "allowed are /health and /score"})
    return self._answer(200, {"protocol": PROTOCOL, "status": "ok"})

  def do_POST(self):
    size = self.headers.get("Content-Length", "")
    size = int(size) if size.isdecimal() else 0
    if self.path != "/score":
      self._drop(size)
      return self._answer(404, {"error": "allowed are /health and /score"})
    if not 0 < size <= _LARGEST_REQUEST:
      self._drop(size)
      said = f"Content-Length is {size}; allowed are 1 to {_LARGEST_REQUEST}"
      return self._answer(413 if size else 400, {"error": f"{said} bytes"})
    try:
      name, images, prompts = read_request(self.rfile.read(size))
      scores = checked(self.score(images, prompts), len(prompts)).tolist()
    except ValueError as error:
      return self._answer(400, {"error": str(error)})
    except Exception as error:  # the scorer's: the next request may do better
      self.log_error("scoring failed: %r", error)
      return self._answer(500, {"error": f"{type(error).__name__}: {error}"})
    scores = [score if math.isfinite(score) else None for score in scores]
    answer = {"protocol": PROTOCOL, "id": name, "scores": scores}
    return self._answer(200, answer)

  def _drop(self, size):
    """Reads a body that is refused; who still sends cannot hear why."""
    left = min(size, 2 * _LARGEST_REQUEST)
    with contextlib.suppress(ConnectionError):
      while left and (part := self.rfile.read(min(left, 1 << 20))):
        left -= len(part)

  def _answer(self, status, content):
    text = json.dumps(content).encode()
    with contextlib.suppress(ConnectionError):  # nobody waits any more
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text)

  def log_message(self, format, *arguments):
    """Says nothing of requests that went well."""

  def log_error(self, format, *arguments):
    http.server.BaseHTTPRequestHandler.log_message(self, format, *arguments)
