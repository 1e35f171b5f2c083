"""The page at `/`, over HTTP: a field for every parameter, nothing from elsewhere, nothing of the shop without a key.

What a browser does with it: tests/real/page.py.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import service.http.page
from service.app import create_app
from service.settings import Settings
from tests.service.standins import shell

PAGE = Path(service.http.page.__path__[0])
POLICY = ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'")


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.found if name in attributes]


async def page(**settings: str) -> str:
    async with shell(**settings) as opened:
        answer = await opened.client.get("/")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert all(part in policy for part in POLICY) and "unsafe" not in policy
        return answer.text


async def test_every_parameter_of_the_request_has_a_field_with_a_label_and_help() -> None:
    elements = Elements(await page())
    schema = create_app(Settings.from_env({})).openapi()["components"]["schemas"]["RecommendRequest"]
    parameters = set(schema["properties"]) - {"user_id"}
    assert set(elements.values("data-parameter")) == parameters
    labelled = set(elements.values("for"))
    fields = [attributes for tag, attributes in elements.found if tag in ("input", "select", "textarea")]
    assert all(field["id"] in labelled for field in fields), "a field has no label"
    ids = elements.values("id")
    assert len(ids) == len(set(ids)) and set(elements.values("aria-describedby")) <= set(ids)


async def test_the_page_has_no_inline_code_and_needs_no_other_server() -> None:
    text = await page()
    elements = Elements(text)
    for tag, attributes in elements.found:
        assert tag != "style" and not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "script" or "src" in attributes
    sources = [*elements.values("src"), *elements.values("href")]
    assert all(not re.match(r"(\w+:)?//", source) for source in sources), sources
    for file in PAGE.glob("*.*"):
        outside = re.findall(r"https?://[^\s\"')]+", file.read_text(encoding="utf-8"))
        assert set(outside) <= {"http://www.w3.org/2000/svg"}, file.name  # a name, not an address
    async with shell() as opened:
        for source in sources:
            if source.startswith("static/"):
                assert (await opened.client.get(f"/{source}")).status_code == 200, source


async def test_without_a_key_the_page_shows_nothing_of_the_shop() -> None:
    async with shell(api_keys="amr_0123456789abcdef") as opened:
        shut = (await opened.client.get("/")).text
        manifest = opened.app.state.resources.view.manifest
        assert manifest.name not in Elements(shut).values("id") and manifest.space not in shut
    assert shut == await page(), "the page is the same for everyone: what it shows comes from routes that ask for a key"


def test_text_reaches_the_document_as_text_only() -> None:
    for script in ("app.js", "format.js", "docs.js"):
        text = (PAGE / script).read_text(encoding="utf-8")
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert dangerous not in text, f"{script} uses {dangerous}"


def test_the_script_calls_routes_that_exist() -> None:
    text = (PAGE / "app.js").read_text(encoding="utf-8")
    called = {
        (method, re.split(r"[?$]", path)[0].rstrip("/"))
        for method, path in re.findall(r'call\("(\w+)", [`"]([^`"]+)', text)
    }
    paths = create_app(Settings.from_env({})).openapi()["paths"]
    known = {(method.upper(), path.lstrip("/").split("/{")[0]) for path, methods in paths.items() for method in methods}
    guarded = set(re.findall(r'has\("/([^"]+)"\)', text))
    assert len(called) > 5
    assert {(method, path) for method, path in called if path not in guarded} <= known


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js"])
async def test_pages_are_checked_for_changes_and_never_sniffed(path: str) -> None:
    async with shell() as opened:
        answer = await opened.client.get(path)
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-content-type-options"] == "nosniff"
