"""The OpenAPI document: valid, complete, the same as the one in docs/, and true of the running application."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from openapi_spec_validator import validate

from service.app import create_app
from service.http.describe import openapi
from service.http.describe.examples import EXAMPLES
from service.identity.scopes import is_open
from service.settings import Settings
from tests.service.standins import shell

KEPT = Path(__file__).resolve().parents[3] / "docs/openapi.json"
UPDATE = "bring it up to date with `make openapi`"


@cache
def made() -> dict[str, Any]:
    return openapi.document(create_app(Settings.from_env({})))


def schemas() -> dict[str, Any]:
    found: dict[str, Any] = made()["components"]["schemas"]
    return found


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in made()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_document_is_valid() -> None:
    validate(made())


def test_the_kept_document_is_that_of_the_code() -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    differ = [name for name in made() if made()[name] != kept.get(name)]
    assert not differ, f"docs/openapi.json differs in {differ}: {UPDATE}"


def test_every_field_has_a_description_and_an_example() -> None:
    missing = []
    for name, schema in schemas().items():
        for field, described in schema.get("properties", {}).items():
            text = json.dumps(described)
            is_told = "description" in described or field == "op"  # the schema says what its operator does
            missing += [f"{name}.{field}: description"] if not is_told else []
            missing += [f"{name}.{field}: example"] if "examples" not in text and "$ref" not in text else []
    assert not missing, f"describe the field in service/http/schemas, or give it a value in examples.py: {missing}"


def test_every_body_has_an_example_that_fits() -> None:
    assert not set(EXAMPLES) - set(schemas()), "examples of schemas that do not exist"
    registry = {"components": made()["components"]}
    for name, schema in schemas().items():
        for example in schema.get("examples", []) if schema.get("type") == "object" else []:
            whole = {"$ref": f"#/components/schemas/{name}", **registry}
            errors = [str(error) for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(example)]
            assert not errors, f"the example of {name}: {errors[:3]}"


def test_every_operation_says_who_may_call_it_and_how_it_fails() -> None:
    for method, path, operation in operations():
        assert operation.get("description"), f"{method} {path} does not say what it does"
        statuses = set(operation["responses"])
        wanted = {"429", "500", "503"} | ({"401", "403"} if not is_open(path) else set())
        wanted |= {"400", "413", "422"} if "requestBody" in operation else set()
        assert wanted <= statuses, f"{method} {path}"
        for status, response in operation["responses"].items():
            if status >= "400":
                response = made()["components"]["responses"][response["$ref"].rpartition("/")[2]]
                assert list(response["content"]) == ["application/problem+json"]
        assert (operation.get("security") == []) == is_open(path)


def test_all_methods_of_a_path_are_allowed() -> None:
    assert {"GET", "PUT", "PATCH", "DELETE"} <= {
        method for method, path, _ in operations() if path == "/items/{item_id}"
    }


async def test_allow_names_all_methods_of_the_path() -> None:
    async with shell() as opened:
        answer = await opened.client.post("/items/i1", json={})
        assert answer.status_code == 405
        assert answer.headers["allow"] == "DELETE, GET, PATCH, PUT"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/static/swagger-ui-bundle.js", "/static/docs.js"])
async def test_the_page_of_the_api_needs_no_key_and_no_other_server(path: str) -> None:
    async with shell(api_keys="amr_0123456789abcdef") as opened:
        answer = await opened.client.get(path)
        assert answer.status_code == 200
        assert (await opened.client.get("/model")).status_code == 401
        for wrong in ("/static/nothing.js", "/static/..%2Fdocs.html", "/static/../model"):
            assert (await opened.client.get(wrong)).status_code in (401, 404)
    if path == "/docs":
        assert "http" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_other_origins_may_call_only_where_the_setting_names_them() -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "content-type,x-api-key"
    async with shell() as closed:
        answer = await closed.client.options("/recommend", headers=asked)
        assert "access-control-allow-origin" not in answer.headers
    async with shell(cors_origins="https://shop.example", api_keys="amr_0123456789abcdef") as opened:
        answer = await opened.client.options("/recommend", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
        answer = await opened.client.post("/recommend", json={}, headers={"Origin": "https://shop.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://shop.example")
        answer = await opened.client.options("/recommend", headers={**asked, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in answer.headers
