"""The pages for people and their files. All of it is public: what a page shows it asks for with the visitor's key.

Nothing is loaded from other servers. The files of Swagger UI come with the package fastapi-offline.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from service.http.access.routes import ScopedRoute
from service.http.describe.parameters import parameters_of

router = APIRouter(include_in_schema=False, route_class=ScopedRoute)

_HERE = Path(__file__).resolve().parents[1] / "page"
_SWAGGER = Path(str(files("fastapi_offline"))) / "static"
_STATIC = {path.name: path for path in (*_HERE.glob("*.js"), *_HERE.glob("*.css"), *_HERE.glob("*.svg"))}
_STATIC |= {name: _SWAGGER / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time whether the file is still the same
}
# Swagger UI sets `style` attributes.
_DOCS_HEADERS = _HEADERS | {
    "Content-Security-Policy": _POLICY.replace("style-src 'self'", "style-src 'unsafe-inline' 'self'")
}


_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, auto_reload=False
)


@router.get("/")
async def page(request: Request) -> Response:
    """Users, their memory and their recommendations, with a field for every parameter of POST /recommend."""
    document = request.app.openapi()
    schemas = document["components"]["schemas"]
    text = _TEMPLATES.get_template("index.html").render(
        paths=list(document["paths"]),
        parameters=parameters_of(schemas["RecommendRequest"]),
        attributed="recommendation_id" in schemas["Interaction"]["properties"],
    )
    return HTMLResponse(text, headers=_HEADERS)


@router.get("/docs")
async def docs() -> Response:
    """The API, to read and to try."""
    return FileResponse(_HERE / "docs.html", headers=_DOCS_HEADERS)


@router.get("/static/{name}")
async def static(name: str) -> Response:
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(_STATIC[name], headers=_HEADERS)
