"""The page in headless Chromium, against a server of untrained tiny models: what it shows is what the REST API answers."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import served
import tensorflow as tf

import tfseq

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
MISSING += [] if importlib.util.find_spec("selenium") else ["selenium"]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: apt install chromium chromium-driver, pip install 'tfseq[dev]'"
)

# Folder -> model, hyper-parameters, and the signatures that its panel needs. The names say nothing: the page must not ask them.
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a": ("tagger", {}, ["serving_default"]),
    "b": ("lm", {"unit": "characters"}, ["generate"]),
    "c": ("dmm", {"observation_dim": 88}, ["sample", "forecast"]),
    "d": ("hmm", {"emission": "normal", "observation_dim": 1}, ["viterbi", "smooth", "sample"]),
    "e": ("dmm", {"head": "normal", "observation_dim": 2}, ["forecast"]),
    "f": ("rbm", {"num_visible": 64}, ["reconstruct", "gibbs"]),
}
PANELS = {
    "a": ["Tag"], "b": ["Continue"], "c": ["Compose"], "d": ["States"], "e": ["Forecast"], "f": ["Draw"],
    "h": ["Continue", "Draw"],
}  # fmt: skip
SAMPLES = 30


class Other(tf.Module):
    """Signatures of other models, in their smallest forms."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "prompt")])
    def generate(self, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        """Two words for every prompt."""
        return {"text": tf.fill(tf.shape(prompt), "two words"), "length": tf.fill(tf.shape(prompt), 2)}

    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "v")])
    def classify(self, v: tf.Tensor) -> dict[str, tf.Tensor]:
        """How much ink is in each quarter."""
        probs = tf.nn.softmax(tf.reduce_sum(tf.reshape(v, [-1, 4, 4]), 2))
        return {"label": tf.argmax(probs, 1), "probs": probs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    base = tmp_path_factory.mktemp("models")
    for folder, (name, hyperparameters, signatures) in MODELS.items():
        model = tfseq.MODELS[name].tiny(**hyperparameters)
        served.write_endpoints(base / folder / "1", model, model.endpoints(SAMPLES, 4), signatures)
    other = Other()
    tf.saved_model.save(other, str(base / "h" / "1"), {"generate": other.generate, "classify": other.classify})
    (base / "g" / "1").mkdir(parents=True)
    (base / "g" / "1" / "saved_model.pb").write_bytes(b"no model")
    return base


class Page:
    """A browser, and the server that it looks at."""

    def __init__(self, driver: Any, url: str):
        self.driver, self.url = driver, url
        self.js: Callable[..., Any] = driver.execute_script

    def open(self, model: str, panel: str = "") -> None:
        self.driver.get("about:blank")  # else only the part after # changes, and what was typed stays
        self.driver.get(f"{self.url}/#{model}/{panel}")
        self.wait(
            "return document.querySelector('#panel > :not(noscript)') && document.getElementById('panel').ariaBusy === 'false'"
        )

    def wait(self, condition: str, seconds: float = 60.0) -> Any:
        """What JavaScript gives, once that is true."""
        until = time.monotonic() + seconds
        while not (found := self.js(condition)):
            assert time.monotonic() < until, f"{condition}: not so after {seconds} s; problem: {self.text('.problem')}"
            time.sleep(0.02)
        return found

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", f"#panel {selector}")

    def text(self, selector: str) -> str:
        return " ".join(element.text for element in self.all(selector))

    def values(self, selector: str, *attributes: str) -> list[list[str]]:
        """Attributes of elements."""
        each = "(e) => arguments[1].map((a) => e.getAttribute(a))"
        script = f"return [...document.querySelectorAll('#panel ' + arguments[0])].map({each})"
        return list(self.js(script, selector, attributes))

    def table(self, number: int = 0) -> list[list[str]]:
        """The cells of a table's body."""
        cells = "document.querySelectorAll('#panel table')[arguments[0]].tBodies[0].rows].map((r) => [...r.cells]"
        return list(self.js(f"return [...{cells}.map((c) => c.textContent))", number))

    def fill(self, **fields: Any) -> None:
        """Types into fields by the first word of their labels."""
        for label in self.all("label"):
            if (key := label.text.split()[0].lower()) in fields:
                control = self.driver.find_element("id", label.get_attribute("for"))
                control.clear()
                control.send_keys(str(fields.pop(key)))
        assert not fields

    def button(self, label: str) -> Any:
        (found,) = [button for button in self.all("button") if button.text == label]
        return found

    def press(self, label: str) -> None:
        """Presses a button and waits for what it does."""
        self.button(label).click()
        self.wait("return document.querySelector('#panel section').ariaBusy === 'false'")

    def predict(self, model: str, signature: str, **inputs: Any) -> Any:
        code, answer = served.call(self.url, f"/v1/models/{model}:predict", {"signature_name": signature, "inputs": inputs})
        assert code == 200, answer
        return answer["outputs"]

    def last_request(self) -> Any:
        """What the page says that it sent."""
        command = self.js("return document.querySelector('#request pre').textContent")
        found = re.fullmatch(rf"curl {self.url}/v1/models/\w+:predict \\\n  -d '(.*)'", command)
        assert found, command
        return json.loads(found[1])

    def module(self, name: str, expression: str) -> Any:
        """An expression of a module m of the page."""
        return self.driver.execute_async_script(f"import('/{name}').then((m) => arguments[0]({expression}))")

    @contextlib.contextmanager
    def looking(self, width: int, dark: bool) -> Iterator[None]:
        """On a screen of this width, in light or dark mode."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for option in ("--headless=new", "--disable-dev-shm-usage", "--mute-audio", "--window-size=1000,800", offline):
        options.add_argument(option)
    if os.geteuid() == 0:  # Chromium's sandbox does not work for root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with served.running(folder) as server:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield Page(driver, server.url)
        finally:
            driver.quit()


def test_signatures_decide_which_panels_a_model_gets(page: Page) -> None:
    for model, titles in PANELS.items():
        page.open(model)
        shown = page.js("return [...document.querySelectorAll('#tabs button')].map((e) => [e.textContent, e.ariaSelected])")
        assert shown == [[title, str(i == 0).lower()] for i, title in enumerate([*titles, "Any signature"])]
        assert page.js("return document.getElementById('model').value") == model


def test_tags_and_probabilities(page: Page) -> None:
    lines = ["on off <b>on</b>", "off caf\u00e9"]
    answer = page.predict("a", "serving_default", text=lines)
    page.open("a")
    page.fill(text="\n".join(lines))
    page.press("Tag")
    wanted = [
        [token, tag, score]
        for row in zip(answer["tokens"], answer["tags"], answer["score"], answer["length"], strict=True)
        for token, tag, score in list(zip(*row[:3], strict=True))[: row[3]]
    ]
    assert len(wanted) == sum(answer["length"]) > 4
    shown = page.js(
        "return [...document.querySelectorAll('.token')].map((e) => [...e.children].map((c) => c.textContent)"
        ".concat(Number(e.style.getPropertyValue('--p')), getComputedStyle(e).backgroundColor))"
    )
    assert [row[:3] for row in shown] == wanted
    colours = {(tag, colour) for _, tag, _, colour in shown}
    assert len({colour for _, colour in colours}) >= len({tag for tag, _ in colours})  # a tag has its own hue
    assert all("/ " in colour for _, colour in colours), colours  # and the probability is how strong it is
    assert page.table() == [[token, tag, f"{score:.3f}"] for token, tag, score in wanted]
    assert len(page.all(".tokens")) == 2


def test_a_text_is_continued(page: Page) -> None:
    page.open("b")
    page.fill(text="ab", tokens=7, temperature=1.5, seed=3)
    settings = {"max_tokens": [7], "temperature": [1.5], "top_k": [0], "top_p": [1.0], "seed": [[3, 0]]}
    page.press("Continue")
    first = page.predict("b", "generate", prompt=["ab"], **settings)["text"][0]
    assert first and page.text("mark") == first and page.text(".text") == "ab" + first
    page.press("Go on from there")
    second = page.predict("b", "generate", prompt=["ab" + first], **settings)["text"][0]
    assert page.text(".text") == "ab" + first + second

    page.open("h")  # tokens that are words, and no settings
    page.fill(text="one")
    page.press("Continue")
    assert page.text(".text") == "one two words" and not page.all("input")


def notes(roll: np.ndarray) -> set[tuple[int, int, int]]:
    """(pitch, first step, number of steps) of the runs of ones in each column."""
    edges = np.diff(np.pad(roll, ((1, 1), (0, 0))).astype(int), axis=0)
    return {
        (21 + k, on, off - on)
        for k in range(88)
        for on, off in zip(np.flatnonzero(edges[:, k] == 1), np.flatnonzero(edges[:, k] == -1), strict=True)
    }


def test_a_chorale_is_composed_continued_and_played(page: Page) -> None:
    page.open("c")
    page.fill(steps=6, seed=5, tempo=600)
    page.press("Compose")
    roll = np.array(page.predict("c", "sample", num_steps=[6], seed=[[5, 0]])["x"])[0]
    attributes = ("data-pitch", "data-start", "data-length")
    shown = {tuple(map(int, note)) for note in page.values(".note", *attributes)}
    assert shown == notes(roll) and len(shown) > 20
    page.press("Go on")
    more = page.predict("c", "forecast", x=[roll.tolist()], lengths=[6], num_steps=[6], seed=[[5, 0]])["x"][0][0]
    whole = notes(np.concatenate([roll, more]))
    assert {tuple(map(int, note)) for note in page.values(".note", *attributes)} == whole
    assert {int(start) for (start,) in page.values(".note.added", "data-start")} == {s for _, s, _ in whole if s >= 6}
    page.press("Play")
    assert page.button("Stop")
    at = "document.querySelector('.cursor[visibility=visible]')?.getAttribute('x1')"
    start = page.wait(f"return {at}")
    assert float(page.wait(f"return {at} > {start} && {at}")) > float(start)
    page.press("Stop")
    assert page.button("Play") and page.values(".cursor", "visibility") == [["hidden"]]
    page.press("Play")
    page.wait("return [...document.querySelectorAll('#panel button')].some((e) => e.textContent === 'Play')")  # it ends by itself


def test_states_of_a_series_are_decoded(page: Page) -> None:
    x = [0.1, -1.2, 3.0, 2.5, 0.0, 0.3, -0.7]
    page.open("d")
    page.fill(series=", ".join(map(str, x)))
    page.press("Decode")
    inputs = {"x": [[[v] for v in x]], "lengths": [len(x)]}
    path = page.predict("d", "viterbi", **inputs)
    probs = np.array(page.predict("d", "smooth", **inputs))[0]
    states = path["states"][0]
    assert [[row[2], row[3]] for row in page.table()] == [[str(k), f"{p[k]:.3f}"] for k, p in zip(states, probs, strict=True)]
    page.wait("return document.querySelectorAll('#panel .prob').length")
    runs = [(k, len(list(run))) for k, run in itertools.groupby(states)]
    widths = np.array(page.values("rect.state", "width"), float)[:, 0]
    np.testing.assert_allclose(widths / widths.sum(), np.array([n for _, n in runs]) / len(x), rtol=1e-6)
    assert page.values("rect.state", "style") == [[f"--k: {k};"] for k, _ in runs]
    assert len(runs) > 1 and len(page.all(".prob")) == probs.shape[1]
    assert page.values(".line", "d")[0][0].count("L") == len(x) - 1
    page.fill(steps=9, seed=2)
    page.press("Draw an example")
    drawn = page.predict("d", "sample", num_steps=[9], seed=[[2, 0]])["x"][0]
    typed = page.js("return document.querySelector('#panel textarea').value")
    np.testing.assert_allclose([float(v) for v in typed.split(",")], np.ravel(drawn), rtol=1e-3)
    assert len(page.table()) == 9


def test_a_series_is_forecast_with_bands(page: Page) -> None:
    x = [[0.5, -1.0], [0.25, 1.5], [0.75, 0.0]]
    page.open("e")
    page.fill(series="\n".join(f"{a} {b}" for a, b in x), steps=5, seed=4)
    page.press("Forecast")
    copies = 4  # of 30 samples each, for the 100 that the page wants
    inputs = {"x": [x] * copies, "lengths": [3] * copies, "num_steps": [5] * copies, "seed": [[4, k] for k in range(copies)]}
    samples = np.concatenate(page.predict("e", "forecast", **inputs)["x"])
    for d in range(2):
        wanted = np.quantile(samples[:, :, d], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0).T
        shown = np.array(page.table(d), float)
        np.testing.assert_array_equal(shown[:, 0], np.arange(4, 9))
        np.testing.assert_allclose(shown[:, 1:], wanted, rtol=1e-3, atol=1e-4)  # four digits are shown
    page.wait("return document.querySelectorAll('#panel .chart svg').length === 2")
    for kind in ("inner", "outer"):
        assert [d.count("L") for (d,) in page.values(f".band.{kind}", "d")] == [2 * (5 + 1) - 1] * 2
    edge = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", page.values(".band.outer", "d")[d][0])]
    quantiles = [x[-1][d], *wanted[:, -1], *wanted[::-1, 0], x[-1][d]]  # along the upper edge, and back along the lower one
    (slope, height), (residual, *_) = np.polyfit(quantiles, edge, 1, full=True)[:2]
    assert slope < 0 < height and residual < 0.1  # y grows downwards, and pixels have a digit


def test_a_digit_is_drawn_reconstructed_and_dreamt_on(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.open("f")
    drawing, answer = page.all(".grid")
    page.js("arguments[0].focus()", drawing)
    ActionChains(page.driver).send_keys(" ", Keys.ARROW_DOWN, " ", Keys.ARROW_LEFT, " ", Keys.ARROW_LEFT, " ", " ").perform()
    wanted = np.zeros([8, 8])
    wanted[[4, 5, 5], [4, 4, 3]] = 1.0
    read = "return [...arguments[0].querySelectorAll('.pixel')].map((e) => Number(e.getAttribute('fill-opacity')))"
    np.testing.assert_array_equal(page.js(read, drawing), wanted.ravel())
    page.press("Reconstruct")
    found = page.predict("f", "reconstruct", v=[wanted.ravel().tolist()])
    np.testing.assert_allclose(page.js(read, answer), found[0], atol=5e-4)  # three digits are drawn

    page.press("Clear")
    assert not any(page.js(read, drawing))
    box = drawing.size["width"] / 8
    move = ActionChains(page.driver).move_to_element_with_offset(drawing, int(-2.5 * box), int(-0.5 * box)).click_and_hold()
    move.move_by_offset(int(5 * box), 0).release().perform()
    drawn = np.reshape(page.js(read, drawing), [8, 8])
    assert (drawn[3, 1:7] > 0.5).all() and drawn[[0, 1, 5, 6, 7]].max() == 0.0

    page.button("Dream").click()
    sweeps = page.wait("return Number(document.querySelectorAll('#panel .grid')[1].dataset.sweeps) >= 10 && true")
    assert sweeps and page.button("Wake")
    page.press("Wake")
    last = page.last_request()  # the means of the last sample of the chain
    assert last["signature_name"] == "reconstruct" and set(last["inputs"]["v"][0]) == {0, 1}
    np.testing.assert_allclose(page.js(read, answer), page.predict("f", "reconstruct", **last["inputs"])[0], atol=5e-4)
    np.testing.assert_array_equal(np.reshape(page.js(read, drawing), [8, 8]), drawn)
    assert page.button("Dream")


def test_a_drawing_is_classified(page: Page) -> None:
    page.open("h", "draw")
    page.button("Example").click()
    page.press("Classify")
    (drawing,) = page.all(".grid")
    v = page.js("return [...arguments[0].querySelectorAll('.pixel')].map((e) => Number(e.getAttribute('fill-opacity')))", drawing)
    found = page.predict("h", "classify", v=[v])
    shown = page.js("return [...document.querySelectorAll('.bars li')].map((e) => Number(e.style.getPropertyValue('--p')))")
    np.testing.assert_allclose(shown, found["probs"][0], atol=1e-3)  # three digits of the drawing can be read
    assert page.text(".said") == f"Label {found['label'][0]}." and page.text(".bars .best span") == str(found["label"][0])


def test_any_signature_takes_and_gives_json(page: Page) -> None:
    page.open("f", "signature")
    page.js("const s = document.querySelector('#panel select'); s.value = 'gibbs'; s.dispatchEvent(new Event('change'))")
    given = json.loads(page.js("return document.querySelector('#panel textarea').value"))
    assert {name: np.shape(value) for name, value in given.items()} == {"v": (1, 64), "num_sweeps": (1,), "seed": (1, 2)}
    page.press("Predict")
    assert json.loads(page.js("return document.querySelector('#panel pre').textContent")) == page.predict("f", "gibbs", **given)
    assert page.last_request() == {"signature_name": "gibbs", "inputs": given}


def test_errors_are_said_in_words(page: Page, tmp_path: Path) -> None:
    page.open("f", "signature")
    for typed, said in (
        ('{"v": [[1.0, 2.0]]}', r"Input 'v' must have the shape \[\?, 64\]"),
        ("{", "no JSON"),
        ("{}", "Missing named input"),
    ):
        page.fill(inputs=typed)
        page.press("Predict")
        assert re.search(said, page.text(".problem[role=alert]")), page.text(".problem")
    page.open("e")
    for typed, said in (("", "draw an example"), ("1 2\n3", "Line 2 has 1 numbers"), ("1 x", "“x” is no number")):
        page.fill(series=typed)
        page.press("Forecast")
        assert said in page.text(".problem"), page.text(".problem")
    page.fill(series="1 2", steps=1000)
    page.press("Forecast")
    assert page.text(".problem") == "Steps ahead must be a whole number from 1 to 500."
    page.open("g")
    assert "saved_model.pb" in page.text(".problem") and "(not served)" in page.js(
        "return document.getElementById('model').textContent"
    )
    page.open("nowhere")
    assert page.text(".problem") == "There is no model nowhere here."
    with served.running(tmp_path) as empty:
        page.driver.get(empty.url)
        page.wait("return document.getElementById('panel').textContent.includes('no model in the folder yet')")
    page.button("Look again").click()
    page.wait(
        "return document.querySelector('.problem')?.textContent === 'The server does not answer. Is tfseq serve still running?'"
    )


def test_scripts_by_themselves(page: Page) -> None:
    page.open("a")
    assert page.module("api.js", r"""m.parse('{"a": [NaN, -Infinity, 1.5], "b": "NaN \\" Infinity"}')""") == {
        "a": [None, None, 1.5],
        "b": 'NaN " Infinity',
    }
    values = np.random.default_rng(0).normal(size=11).round(3)
    got = page.module("forecast.js", f"m.quantiles({values.tolist()}, [0, 0.05, 0.33, 0.5, 1])")
    np.testing.assert_allclose(got, np.quantile(values, [0, 0.05, 0.33, 0.5, 1]), rtol=1e-9)
    assert page.module("plot.js", "[m.ticks(0, 1, 2), m.ticks(-0.3, 43, 4), m.ticks(5, 5.004, 2)]") == [
        [0, 0.5, 1],
        [0, 20, 40],
        [5, 5.002, 5.004],
    ]
    assert page.module("series.js", r"[m.parse('0 1;2\n\n 3', 0), m.parse('1e-3, -2\n.5', 1), m.parse('1\t2\n3,4\n', 2)]") == [
        [0, 1, 2, 3],
        [[0.001], [-2], [0.5]],
        [[1, 2], [3, 4]],
    ]


def test_everything_works_by_keyboard(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.open("d")
    seen = []
    for _ in range(7):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        seen.append(page.js("const e = document.activeElement; return [e.id || e.textContent, getComputedStyle(e).outlineWidth]"))
    assert [name for name, _ in seen[:2]] == ["model", "tab-states"] and [name for name, _ in seen[5:]] == [
        "Decode",
        "Draw an example",
    ]
    assert {outline for _, outline in seen} == {"2px"}
    page.js("document.getElementById('tab-states').focus()")
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    page.wait("return document.activeElement.id === 'tab-signature' && document.querySelector('#panel select')")
    assert page.js("return location.hash") == "#d/signature"
    page.driver.back()
    page.wait("return document.querySelector('#tabs [aria-selected=true]').id === 'tab-states'")
    page.fill(series="1 2 1")
    page.driver.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait("return document.querySelectorAll('#panel table').length")


SUREST = """
document.querySelectorAll('.token').forEach((e, k) => {
  e.classList.add('hue');
  e.style.setProperty('--k', k);
  e.style.setProperty('--p', 1);
});
"""
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (colours) => {
  colours.forEach((colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); });
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : [];
const texts = 'h1, h1 span, label, small, button, .token span, .intro, .said, .problem, summary, td, th';
return [...document.querySelectorAll(texts)].filter((e) => e.textContent && e.offsetParent).map((e) => {
  const [a, b] = [light([...behind(e), getComputedStyle(e).color]), light(behind(e))].sort((a, b) => b - a);
  return [e.textContent, (a + 0.05) / (b + 0.05)];
});
"""


def test_phones_and_dark_mode(page: Page) -> None:
    grounds = set()
    for dark in (False, True):
        with page.looking(360, dark):
            for model, work in {"a": "Tag", "c": "Compose", "d": "Draw an example", "f": "Reconstruct"}.items():
                page.open(model)
                if model == "a":
                    page.fill(text=" ".join("abcdefgh"))
                page.press(work)
                width = page.js("return document.documentElement.scrollWidth")
                assert width <= 360, f"{model} is {width} pixels wide"
                page.js(SUREST)
                contrasts = page.js(CONTRAST)
                assert len(contrasts) > 5 and min(ratio for _, ratio in contrasts) >= 4.5, contrasts  # WCAG 2.2, 1.4.3
            grounds.add(page.js("return getComputedStyle(document.documentElement).backgroundColor"))
    assert len(grounds) == 2


def test_nothing_else_is_asked_for_and_nothing_is_forbidden(page: Page) -> None:
    page.open("c")
    page.press("Compose")
    loaded = page.js("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(loaded) > 10 and all(name.startswith(page.url) for name in loaded)
    source = (Path(tfseq.__file__).parent / "serve" / "page" / "index.html").read_text()
    assert "default-src 'self'" in source and not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src)|https?:", source)
    logged = [line["message"] for line in page.driver.get_log("browser")]
    assert not [line for line in logged if "Content Security Policy" in line or "Uncaught" in line], logged
