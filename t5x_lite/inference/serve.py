"""`t5x_lite serve`: a page on this machine to try a model and look at its run."""

import dataclasses
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from t5x_lite.console import logged_wait
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.inference.text_model import TextModel, load
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.io.safe_files import read_json_if_exists
from t5x_lite.models.transformer import num_parameters
from t5x_lite.reporting.results import RESULTS
from t5x_lite.tokenizers.text_codec import SENTINEL

_LOG = logging.getLogger(__name__)
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LARGEST_REQUEST = 1_000_000  # bytes
MOST_TOKENS = 1024
MOST_POINTS = 400  # of a curve
T5_PREFIXES = (
    "summarize: ",
    "translate English to German: ",
    "translate English to French: ",
    "cola sentence: ",
    "stsb sentence1: ",
)


def serve(
    *,
    model_dir: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    step: int | None = None,
    batch_size: int = 1,
    mesh: Mapping[str, int] | None = None,
    dtype: str | None = None,
    max_input_length: int = 512,
    describe_config: Callable[[], str] = str,
) -> None:
    """Serve the page until interrupted. port: 0 takes any that is free.

    Other hosts than 127.0.0.1 show the model to whoever reaches this machine: there is no login.
    """
    with logged_wait(_LOG, f"loading {model_dir}"):
        model = load(
            model_dir,
            step=step,
            batch_size=batch_size,
            mesh=mesh,
            dtype=dtype,
            max_input_length=max_input_length,
        )
    with make_server(Service(model, Path(model_dir)), host, port) as server:
        _LOG.info(f"serving {model_dir} at http://{host}:{server.server_port}/ (Ctrl-C to stop)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            _LOG.warning(f"anyone who can reach {host} can use the model; there is no login")
        server.serve_forever()


class Service:
    """What the page asks for: about the model, the run's curves, and texts."""

    def __init__(self, model: TextModel, model_dir: Path):
        self._model, self._directory = model, model_dir
        self._lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What is shown above the page."""
        config = self._model.config
        return {
            "name": str(self._directory),
            "parameters": num_parameters(config),
            "layers": [config.num_encoder_layers, config.num_decoder_layers],
            "vocabulary": self._model.vocabulary.size,
            "generates": not config.encoder_only,
            "prefixes": prefixes(self._directory),
            "most_tokens": MOST_TOKENS,
        }

    def curves(self) -> list[dict[str, Any]]:
        """Loss by step: of training, and of each validation task."""
        found: dict[str, list[list[float]]] = {}
        for record in read_metrics(self._directory):
            shown = record["kind"] == "train" or record["kind"].startswith("validation/")
            if shown and isinstance(record.get("loss"), float):
                found.setdefault(record["kind"], []).append([record["step"], record["loss"]])
        return [
            {"name": name.removeprefix("validation/"), "points": _thinned(points)}
            for name, points in found.items()
        ]

    def generate(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Texts for one input; raises ConfigError for what cannot be."""
        text, settings = asked.get("text"), dict(asked.get("settings", {}))
        if not isinstance(text, str):
            raise ConfigError("the request has no text")
        known = {field.name: field.type for field in dataclasses.fields(Generation)}
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}")
            whole = known[name] is int
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ConfigError(f"{name} is {value!r}; wanted a{' whole' * whole} number")
        generation = Generation(**settings)
        if generation.max_length > MOST_TOKENS or generation.copies > 64:
            raise ConfigError(f"at most {MOST_TOKENS} tokens and 64 texts at a time")
        with self._lock:
            row = {"inputs": (encoded := self._model.encode(text)).ids}
            ((tokens, scores),) = self._model.written([row], generation)
            outputs = []
            for ids, score in zip(tokens, scores, strict=True):
                output: dict[str, Any] = {"text": self._model.decode(ids), "score": float(score)}
                if SENTINEL.search(text):
                    output["filled"] = self._model.filled(text, ids, float(score)).text
                outputs.append(output)
        return {
            "outputs": outputs,
            "input_tokens": len(encoded.ids),
            "truncated": encoded.truncated,
        }


def make_server(service: Service, host: str, port: int) -> ThreadingHTTPServer:
    """The server, listening; ConfigError where it cannot."""
    handler = type("Handler", (_Handler,), {"service": service})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {error.strerror}", "HOST", "PORT"
        ) from None


def prefixes(model_dir: Path) -> list[str]:
    """What the inputs of the run's tasks begin with, by its decoded samples, or T5's own."""
    path = model_dir / RESULTS
    samples = (read_json_if_exists(path) or {"samples": []})["samples"]
    found: dict[str, None] = {}
    for sample in samples:
        if begins := re.match(r"[\w ]{1,40}: ", sample["inputs"]):
            found[begins[0]] = None
    return list(found) or list(T5_PREFIXES)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    server_version = "t5x_lite"

    def do_GET(self) -> None:
        if not self._asked_here():
            return
        if self.path in PAGE:
            name, kind = PAGE[self.path]
            page = Path(__file__).with_name(name).read_bytes()
            self._answer(HTTPStatus.OK, page, kind)
        elif self.path == "/about":
            self._json(HTTPStatus.OK, self.service.about())
        elif self.path == "/curves":
            self._json(HTTPStatus.OK, self.service.curves())
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is nothing here"})

    def do_POST(self) -> None:
        if not self._asked_here():
            return
        length = self.headers.get("Content-Length", "")
        # A page elsewhere cannot send this type without being asked first, which nobody answers.
        is_json = self.headers.get_content_type() == "application/json"
        if self.path != "/generate" or not is_json or not length.isdecimal():
            self._json(HTTPStatus.BAD_REQUEST, {"error": "wanted JSON at /generate"})
            return
        if int(length) > LARGEST_REQUEST:
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "the text is too long"})
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
            if not isinstance(asked, dict):
                raise ConfigError("the request is no JSON object")
            self._json(HTTPStatus.OK, self.service.generate(asked))
        except ConfigError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": error.message})
        except (ValueError, TypeError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"the request is no JSON: {error}"})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page tells what happens."""

    def _asked_here(self) -> bool:
        """Refuse requests under another name: of a page elsewhere, bent to this address."""
        name = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        local = self.connection.getsockname()[0] in ("127.0.0.1", "::1")
        if local and name not in ("127.0.0.1", "localhost", "::1"):
            self._json(HTTPStatus.FORBIDDEN, {"error": "wanted this machine's own name"})
            return False
        return True

    def _json(self, status: HTTPStatus, content: Any) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _thinned(points: Sequence[list[float]]) -> list[list[float]]:
    """Every so-manyth point, and the last."""
    stride = -(-len(points) // MOST_POINTS)
    return [*points[:-1:stride], points[-1]] if points else []
