"""`python -m semidavil demo`, as somebody with a browser sees it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.commands.demo import build_page, launch, legend_of
from semidavil.config import preset
from semidavil.experiments.attention import REST
from semidavil.experiments.predictor import Predictor, Seen
from semidavil.experiments.street import build_method, vlm_of
from semidavil.models.weights import save_weights
from semidavil.names import WEIGHTS

PATIENCE = 120  # seconds, on a machine that does much else


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    config = preset("toy")
    network = build_method(config, vlm_of(config), 19).student
    save_weights(tmp_path / WEIGHTS, network, config, "student")
    return Predictor.load(tmp_path / WEIGHTS, "cpu")


@pytest.fixture
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and its driver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield opened
    opened.quit()


def test_the_legend_has_the_classes_that_are_there_and_their_shares() -> None:
    labels = np.array([[2, 2, 2, 0]], np.uint8)
    seen = Seen(labels, np.array([[0.5, 0.5, 0.8, 0.9]], np.float32), ("",))
    text = legend_of(("road", "<car>", "sky"), np.zeros((256, 3), np.uint8), seen)
    assert "<car>" not in text
    assert text.index("sky") < text.index("road")
    for value in ("75.0&nbsp;%", "0.60", "25.0&nbsp;%", "0.90"):
        assert value in text


def test_what_is_no_run_is_named() -> None:
    done = CliRunner().invoke(app, ["demo", "0123"])
    assert done.exit_code == 1
    assert "nor the id of a finished run" in " ".join(done.output.split())


@pytest.mark.slow
def test_a_picture_is_dropped_and_its_caption_edited(
    predictor: Predictor, browser: Any, tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8))
    blocks = build_page(predictor)
    try:
        _, address, _ = launch(blocks, "127.0.0.1", None)
        browser.get(address)

        def seen(until: Callable[[], Any]) -> Any:
            return WebDriverWait(browser, PATIENCE).until(lambda _: until())

        def texts(where: str) -> list[str]:
            return browser.execute_script(
                "return [...document.querySelectorAll(arguments[0])].map(x => x.textContent)", where
            )

        file = seen(lambda: browser.find_elements(By.CSS_SELECTOR, "#picture input[type=file]"))
        file[0].send_keys(str(picture))
        seen(lambda: texts("#words figcaption"))
        box = browser.find_element(By.CSS_SELECTOR, "#caption textarea")
        own = box.get_attribute("value")
        assert own.startswith("a street scene")  # what the run's captioner says
        assert [one.rpartition(" ")[0] for one in texts("#words figcaption")] == [
            *own.split(),
            REST,
        ]

        box.clear()
        box.send_keys("a red car")
        browser.find_element(By.CSS_SELECTOR, "#segment").click()
        seen(lambda: len(texts("#words figcaption")) == 4)
        words = [one.rpartition(" ") for one in texts("#words figcaption")]
        assert [word for word, _, _ in words] == ["a", "red", "car", REST]
        assert sum(float(mean) for _, _, mean in words) == pytest.approx(1, abs=0.003)

        image = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
        expected = predictor(image, "a red car")
        share = 100 * np.bincount(expected.labels.ravel()).max() / expected.labels.size
        assert texts("#legend td")[2].replace("\xa0", " ") == f"{share:.1f} %"
        loaded = browser.execute_script(
            "return [...document.querySelectorAll('#classes img, #confidence img, #words img')]"
            ".every(x => x.complete && x.naturalWidth > 0)"
        )
        assert loaded
        assert outside(browser) == set()
    finally:
        blocks.close()


def outside(browser: Any) -> set[str]:
    """What the page has asked of anything but its own server."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    return {url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))}
