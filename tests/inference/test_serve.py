"""The page of `t5x_lite serve`, by its answers and in a browser."""

import contextlib
import http.client
import json
import threading

import jax
import numpy as np
import pytest

from t5x_lite.decoding.generation import SpecialTokens
from t5x_lite.errors import ConfigError
from t5x_lite.inference.serve import Service, make_server
from t5x_lite.inference.text_model import TextModel
from t5x_lite.partitioning import make_mesh
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run's directory as far as the page reads it; its tasks have names that are markup."""
    path = tmp_path_factory.mktemp("run")
    records = [
        {"step": step, "kind": kind, "loss": 5.0 - step / 100}
        for kind in ("train", f"validation/{EVIL}")
        for step in range(0, 101, 10)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    samples = [{"task": "t", "inputs": "shorten: a text", "target": "", "prediction": ""}]
    (path / "results.json").write_text(json.dumps({"samples": samples}))
    return path


@pytest.fixture(scope="module")
def server(directory, tiny_config, random_params):
    """A server of an untrained model on a free port; what it writes are random bytes."""
    config = tiny_config(vocab_size=384, num_encoder_layers=1, num_decoder_layers=1)
    model = TextModel(
        config,
        random_params(config),
        ByteVocabulary(20),
        special=SpecialTokens(),
        mesh=make_mesh({}, jax.devices()[:1]),
        batch_size=1,
    )
    # What a model says may be markup as well.
    model.decode = lambda tokens: EVIL
    with make_server(Service(model, directory), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """A function that sends a request and gives status and content."""

    def send(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, str):
                body = json.dumps(body)
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**kind, **headers})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(content) if is_json else content.decode(), answer

    return send


def test_the_page_loads_nothing_from_elsewhere(ask):
    for path in ("/", "/page.css", "/page.js"):
        status, content, answer = ask("GET", path)
        assert status == 200
        assert "https://" not in content
        assert content.replace("http://www.w3.org/2000/svg", "").count("http://") == 0
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert ask("GET", "/../serve.py")[0] == 404


def test_it_tells_of_the_run(ask):
    about = ask("GET", "/about")[1]
    assert about["prefixes"] == ["shorten: "]
    assert about["layers"] == [1, 1]
    curves = ask("GET", "/curves")[1]
    assert [curve["name"] for curve in curves] == ["train", EVIL]
    assert curves[0]["points"][-1] == [100, 4.0]


def test_texts_come_with_scores_best_first(ask):
    settings = {"max_length": 4, "num_beams": 3, "num_returns": 2}
    status, found, _ = ask("POST", "/generate", {"text": "abc", "settings": settings})
    assert status == 200
    scores = [output["score"] for output in found["outputs"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    assert found["input_tokens"] == 4
    assert not found["truncated"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": "a", "settings": {"max_length": 0}}, "max_length must be 1 or more; got 0"),
        ({"text": "a", "settings": {"max_length": 2000}}, "at most 1024 tokens"),
        (
            {"text": "a", "settings": {"max_length": "4"}},
            "max_length is '4'; expected an integer",
        ),
        ({"text": "a", "settings": {"beams": 4}}, "unknown setting 'beams'"),
        ({"settings": {}}, "the request has no text"),
        ("[]", "the request is not a JSON object"),
        ("{", "the request is not JSON"),
    ],
)
def test_what_cannot_be_generated_is_said(body, said, ask):
    status, found, _ = ask("POST", "/generate", body)
    assert status == 400
    assert said in found["error"]


def test_pages_elsewhere_cannot_use_it(ask):
    """Neither by a name that was bent to this address, nor with a form's type of content."""
    body = {"text": "a"}
    assert ask("POST", "/generate", body, Host="evil.example")[0] == 403
    assert ask("GET", "/about", Host="evil.example:8000")[0] == 403
    assert ask("POST", "/generate", body, **{"Content-Type": "text/plain"})[0] == 400


def test_a_port_that_is_taken_is_said(server, directory):
    with pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1") as error:
        make_server(server.RequestHandlerClass.service, "127.0.0.1", server.server_port)
    assert "PORT" in error.value.names


def test_a_person_types_a_text_and_sees_outputs_and_curves(server, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def at(name):
        return browser.find_element(By.ID, name)

    browser.get(f"http://127.0.0.1:{server.server_port}/")
    wait = WebDriverWait(browser, 120)
    wait.until(lambda _: "parameters" in at("about").text)
    assert not at("num_beams").is_displayed()
    Select(at("method")).select_by_value("beam")
    assert at("num_beams").is_displayed()
    at("prefix").send_keys("shorten: ")
    at("text").send_keys(EVIL)
    at("max_length").clear()
    at("max_length").send_keys("4")
    at("go").click()
    wait.until(lambda _: "tokens read" in at("state").text)
    items = browser.find_elements(By.CSS_SELECTOR, "#outputs li")
    assert len(items) == 4
    assert all(EVIL in item.text and "score -" in item.text for item in items)
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves polyline")) == 2
    assert EVIL in at("legend").text
    at("max_length").clear()
    at("max_length").send_keys("1024")
    at("min_length").clear()
    at("min_length").send_keys("1025")
    at("go").click()
    wait.until(lambda _: "min_length must be from 0 to" in at("state").text)
    noise = [entry for entry in browser.get_log("browser") if "400" not in entry["message"]]
    assert noise == []
    assert np.all([item.size["height"] > 0 for item in items])
