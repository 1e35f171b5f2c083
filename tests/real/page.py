"""The page in a real browser: `make page`. Needs Chromium and its driver (Debian: chromium chromium-driver).

With `SCREENSHOTS=1` the pictures in docs/ are made again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import Chrome as Browser
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.conftest import TITLES, write_bundle
from tests.test_end_to_end import free_port, serving, start

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "model_store/bundles/demo"
KEY = "amr_0123456789abcdef"
NASTY = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,1150"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with a user, and an item whose title is an attack."""
    directory = tmp_path_factory.mktemp("page")
    write_bundle(directory / "bundle")
    with serving(directory / "bundle", f"embedded:{directory / 'store'}") as (_, client):
        now = int(time.time())
        client.put("/items/nasty", json={"title": NASTY}).raise_for_status()
        items = ["nasty", *(f"i{number}" for number in range(8))]
        events = [{"user_id": "ada", "item_id": item, "timestamp": now - 100 + n} for n, item in enumerate(items)]
        client.post("/interactions", json={"interactions": events, "wait": "visible"}).raise_for_status()
        yield client


def address(client: Any) -> str:
    return str(client.base_url)


def until(found: Callable[[], Any], what: str, within_s: float = 15) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return value


def texts(browser: Browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    return list(browser.execute_script(script, selector))


def ask_for(browser: Browser, user: str) -> list[str]:
    field = browser.find_element(By.ID, "user")
    field.clear()
    field.send_keys(user, Keys.ENTER)
    return list(until(lambda: texts(browser, "#items .title"), "no list appeared"))


def complaints(browser: Browser) -> list[str]:
    """Errors of the console: also what the policy refused. A refused request is reported there, too."""
    return [each["message"] for each in browser.get_log("browser") if "401" not in each["message"]]


def test_titles_are_shown_as_text(browser: Browser, shop: Any) -> None:
    browser.get(address(shop))
    until(lambda: texts(browser, "#users button"), "no users were found")
    ask_for(browser, "ada")
    until(lambda: any(NASTY in text for text in texts(browser, "#history li")), "the title is not in the history")
    assert browser.execute_script("return window.hacked") is None
    assert not complaints(browser)


def test_an_event_changes_the_list(browser: Browser, shop: Any) -> None:
    browser.get(address(shop))
    until(lambda: texts(browser, "#users button"), "no users were found")
    before = ask_for(browser, "ada")
    first = browser.find_element(By.CSS_SELECTOR, "#items button[aria-label^=purchase]")
    assert first.get_attribute("aria-label") == f"purchase: {before[0]}"
    first.click()
    after = until(lambda: (now := texts(browser, "#items .title")) != before and now, "the list did not change")
    assert before[0] not in after
    until(lambda: any(before[0] in text for text in texts(browser, "#history li")[:1]), "not in the history")
    assert "accepted" in browser.find_element(By.ID, "posted").text
    assert "places changed" in browser.find_element(By.ID, "answer-facts").text


def test_items_are_found_by_words_and_parameters_reach_the_service(browser: Browser, shop: Any) -> None:
    browser.get(address(shop))
    until(lambda: texts(browser, "#users button"), "no users were found")
    browser.find_element(By.ID, "parameter-k").send_keys("2")
    assert len(ask_for(browser, "ada")) == 2
    browser.find_element(By.ID, "search").send_keys(TITLES[0], Keys.ENTER)
    until(lambda: any(TITLES[0] in text for text in texts(browser, "#found li")), "the item was not found")
    browser.find_element(By.TAG_NAME, "summary").click()
    browser.find_element(By.ID, "parameter-filter").send_keys("{wrong")
    browser.find_element(By.ID, "user").send_keys(Keys.ENTER)
    until(lambda: "not JSON" in browser.find_element(By.ID, "ask-error").text, "a wrong parameter was not reported")
    assert until(lambda: texts(browser, "#figures dd"), "no live figures")


def test_a_keyboard_is_enough(browser: Browser, shop: Any) -> None:
    browser.get(address(shop))
    until(lambda: texts(browser, "#users button"), "no users were found")
    visited = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        here = browser.switch_to.active_element
        visited.append(here.get_attribute("id") or here.accessible_name)
        assert here.accessible_name or here.tag_name == "body", f"no name: {here.get_attribute('outerHTML')}"
    for wanted in ("user", "parameter-k", "search", "type"):
        assert wanted in visited, f"{wanted} cannot be reached by Tab"


def test_with_keys_the_page_asks_for_one_and_shows_nothing_without(browser: Browser, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    with serving_with_key(tmp_path) as where:
        browser.get(where)
        gate = browser.find_element(By.ID, "key")
        until(gate.is_displayed, "the page does not ask for a key")
        assert (
            not browser.find_element(By.ID, "main").is_displayed()
            and "items" not in browser.find_element(By.ID, "bundle").text
        )
        gate.send_keys("wrong", Keys.ENTER)
        until(lambda: "not valid" in browser.find_element(By.ID, "gate-error").text, "a wrong key is not reported")
        gate.send_keys(KEY, Keys.ENTER)
        until(browser.find_element(By.ID, "main").is_displayed, "a valid key does not open the page")
        assert browser.execute_script("return sessionStorage.getItem('automr-key')") == KEY
        assert browser.execute_script("return localStorage.length") == 0
        assert not complaints(browser)


def test_the_page_of_the_api_works_without_a_network(browser: Browser, shop: Any) -> None:
    browser.get("about:blank")  # the page of a service that has ended goes on asking for its figures
    complaints(browser)
    browser.get(f"{address(shop)}/docs")
    until(lambda: "/recommend" in browser.find_element(By.TAG_NAME, "body").text, "the API is not shown")
    assert not complaints(browser)


@contextmanager
def serving_with_key(directory: Path) -> Iterator[str]:
    """The address of a service that asks for KEY."""
    port = free_port()
    where, store = f"http://127.0.0.1:{port}", f"embedded:{directory / 'store'}"
    options = ("--bundle", str(directory / "bundle"), "--store", store, "--port", str(port))
    with start("serve", *options, AUTOMR_API_KEYS=KEY) as process:
        try:
            until(lambda: is_ready(where), "the service does not start", within_s=60)
            yield where
        finally:
            process.kill()


def is_ready(where: str) -> bool:
    try:
        return bool(httpx2.get(f"{where}/readyz").is_success)
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures(browser: Browser, scheme: str, tmp_path: Path) -> None:
    """Light and dark are different, and text is readable in both. Pictures of the demo go to docs/."""
    bundle = DEMO if (DEMO / "manifest.json").exists() else tmp_path / "bundle"
    if bundle != DEMO:
        write_bundle(bundle)
    user = "reader-2" if bundle == DEMO else "ada"
    with serving(bundle, f"embedded:{tmp_path / 'store'}") as (_, client):
        if bundle == DEMO:
            lines = (DEMO / "demo-interactions.jsonl").read_text(encoding="utf-8").splitlines()
            events = [event for event in map(json.loads, lines) if event["user_id"] == user]
            body = {"interactions": events, "wait": "visible"}
            client.post("/interactions", json=body, timeout=60).raise_for_status()
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(address(client))
        until(lambda: browser.find_element(By.ID, "main").is_displayed(), "the page does not open")
        ask_for(browser, user)
        ground, text = browser.execute_script(
            "const of = getComputedStyle(document.body); return [of.backgroundColor, of.color]"
        )
        assert contrast(ground, text) > 7, (ground, text)
        browser.execute_script("scrollTo(0, 0)")
        if os.environ.get("SCREENSHOTS") and bundle == DEMO:
            until(lambda: texts(browser, "#history li"), "the history is not shown")
            picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            small = picture.resize((1080, 1080 * picture.height // picture.width), Image.Resampling.LANCZOS)
            small.quantize(32, dither=Image.Dither.NONE).save(ROOT / f"docs/page-{scheme}.png", optimize=True)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(one: str, other: str) -> float:
    """As WCAG defines it, of two `rgb(r, g, b)`."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
