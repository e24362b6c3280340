"""`t5x_lite serve`: a local web page to try a model and see the loss curves of its run.

The page works offline: it loads nothing from other servers. It is kept beside gradio because gradio
would be a large dependency for one form.
"""

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
MAX_TOKENS = 1024  # of a generated text
MAX_TEXTS = 64  # generated for a request
MAX_POINTS = 400  # of a curve
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
    """Serve the page until interrupted.

    Args:
        model_dir: Directory of a run, an import or a Hugging Face model.
        host: Address to listen at. With the default, only this machine can connect. With any other,
            everyone who can connect can use the model: there is no login.
        port: Port to listen at; 0 is any free port.
        step: Checkpoint of the run; None is the newest.
        batch_size: Rows of a batch. The page generates from one input at a time.
        mesh: Sizes of the mesh axes by name; None is one device.
        dtype: Type of activations; None is float32 on a CPU, else bfloat16.
        max_input_length: Tokens of an input at most, EOS included; the end of longer ones is cut.
        describe_config: Not used.

    Raises:
        ConfigError: The directory has no model, or the port cannot be used.
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
    """Answers the requests of the page.

    Args:
        model: The model.
        model_dir: The directory of its run, for the curves and prefixes.
    """

    def __init__(self, model: TextModel, model_dir: Path):
        self._model, self._directory = model, model_dir
        self._lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """Return the facts about the model that the page shows in its head."""
        config = self._model.config
        return {
            "name": str(self._directory),
            "parameters": num_parameters(config),
            "layers": [config.num_encoder_layers, config.num_decoder_layers],
            "vocabulary": self._model.vocabulary.size,
            "generates": not config.encoder_only,
            "prefixes": prefixes(self._directory),
            "most_tokens": MAX_TOKENS,
        }

    def curves(self) -> list[dict[str, Any]]:
        """Return the curves of training loss and of the validation loss of each task."""
        curves: dict[str, list[list[float]]] = {}
        for record in read_metrics(self._directory):
            shown = record["kind"] == "train" or record["kind"].startswith("validation/")
            if shown and isinstance(record.get("loss"), float):
                curves.setdefault(record["kind"], []).append([record["step"], record["loss"]])
        return [
            {"name": name.removeprefix("validation/"), "points": _thinned(points)}
            for name, points in curves.items()
        ]

    def generate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Generate texts for one input.

        Args:
            request: "text", and optionally "settings", fields of `Generation`.

        Returns:
            "outputs", a list of "text", "score" and, for a text with sentinels, "filled";
            "input_tokens"; and "truncated", whether the end of the input was cut.

        Raises:
            ConfigError: A setting is unknown or invalid.
        """
        text, settings = request.get("text"), dict(request.get("settings", {}))
        if not isinstance(text, str):
            raise ConfigError("the request has no text")
        known = {field.name: field.type for field in dataclasses.fields(Generation)}
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}")
            is_int = known[name] is int
            if isinstance(value, bool) or not isinstance(value, int if is_int else int | float):
                raise ConfigError(
                    f"{name} is {value!r}; expected {'an integer' if is_int else 'a number'}"
                )
        generation = Generation(**settings)
        if generation.max_length > MAX_TOKENS or generation.copies > MAX_TEXTS:
            raise ConfigError(f"at most {MAX_TOKENS} tokens and {MAX_TEXTS} texts at a time")
        with self._lock:  # requests are served by threads; generate for one at a time
            row = {"inputs": (encoded := self._model.encode(text)).ids}
            ((tokens, scores),) = self._model.generate_ids([row], generation)
            outputs = []
            for ids, score in zip(tokens, scores, strict=True):
                output: dict[str, Any] = {"text": self._model.decode(ids), "score": float(score)}
                if SENTINEL.search(text):
                    output["filled"] = self._model.fill_sentinels(text, ids, float(score)).text
                outputs.append(output)
        return {
            "outputs": outputs,
            "input_tokens": len(encoded.ids),
            "truncated": encoded.truncated,
        }


def make_server(service: Service, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server that listens at an address.

    Args:
        service: Answers the requests.
        host: The address.
        port: The port; 0 is any free port.

    Raises:
        ConfigError: The address or port cannot be used.
    """
    handler = type("Handler", (_Handler,), {"service": service})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {error.strerror}", "HOST", "PORT"
        ) from None


def prefixes(model_dir: Path) -> list[str]:
    """Return task prefixes such as "summarize: " for the page to suggest.

    They are read from the decoded samples in the results of the run. Without samples, they are some
    of T5's.
    """
    path = model_dir / RESULTS
    samples = (read_json_if_exists(path) or {"samples": []})["samples"]
    matches = (re.match(r"[\w ]{1,40}: ", sample["inputs"]) for sample in samples)
    return list(dict.fromkeys(match[0] for match in matches if match)) or list(T5_PREFIXES)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    server_version = "t5x_lite"

    def do_GET(self) -> None:
        if not self._check_host():
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
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    def do_POST(self) -> None:
        if not self._check_host():
            return
        length = self.headers.get("Content-Length", "")
        # Pages of other sites cannot send this content type without a CORS preflight request, which
        # this server does not answer. They therefore cannot use the model through a browser.
        is_json = self.headers.get_content_type() == "application/json"
        if self.path != "/generate" or not is_json or not length.isdecimal():
            self._json(HTTPStatus.BAD_REQUEST, {"error": "expected JSON at /generate"})
            return
        if int(length) > LARGEST_REQUEST:
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "the text is too long"})
            return
        try:
            request = json.loads(self.rfile.read(int(length)))
            if not isinstance(request, dict):
                raise ConfigError("the request is not a JSON object")
            self._json(HTTPStatus.OK, self.service.generate(request))
        except ConfigError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": error.message})
        except (ValueError, TypeError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"the request is not JSON: {error}"})

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests: the page shows what happens."""

    def _check_host(self) -> bool:
        """Refuse a request on the loopback interface that names another host.

        This prevents DNS rebinding: a page of another site whose host name is changed to resolve to
        127.0.0.1 could otherwise read what this server answers.
        """
        name = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        local = self.connection.getsockname()[0] in ("127.0.0.1", "::1")
        if local and name not in ("127.0.0.1", "localhost", "::1"):
            self._json(HTTPStatus.FORBIDDEN, {"error": "expected the host localhost"})
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
    """Return about MAX_POINTS evenly spaced points of a curve, and the last."""
    stride = -(-len(points) // MAX_POINTS)
    return [*points[:-1:stride], points[-1]] if points else []
