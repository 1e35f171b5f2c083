"""What endpoints take besides a body: the opened parts of the application, and parameters of path and query.

Also `while_connected`, which ends work for a caller who left.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote

from fastapi import Depends, Path, Query, Request
from pydantic import BeforeValidator

from service.errors import ClientGone, NotReady
from service.http import fields
from service.resources import Resources

T = TypeVar("T")


# A coroutine, because FastAPI runs a plain function in a thread pool, which takes about 1 ms.
async def get_resources(request: Request) -> Resources:
    """The resources of the bundle that answers now, for the whole request. Raises NotReady until a bundle is loaded."""
    resources = getattr(request.app.state, "resources", None)
    if not isinstance(resources, Resources):
        raise NotReady("The bundle is still loading.")
    request.app.state.resources = current = resources.current()  # those of a closed bundle are not kept
    return current


ResourcesDep = Annotated[Resources, Depends(get_resources)]


async def _list_turn(resources: ResourcesDep) -> AsyncIterator[None]:
    """Until the answer is sent: writing a long list takes long, too."""
    async with resources.engine.admission.list_turn():
        yield


ListTurn = Depends(_list_turn)  # of routes that read more than one thing


def _decoded(segment: str) -> str:
    """Routes get the path percent-encoded (see `middleware.AccessLog`), so that `a%2Fb` is the id `a/b`."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("must be percent-encoded UTF-8") from None


_User = Path(description="id of the user, percent-encoded", examples=["reader-2"])
_Item = Path(description="id of the item, percent-encoded", examples=["a-year-of-small-weeds"])
_Event = Path(description="id of the event, percent-encoded", examples=["order-17-1"])
UserIdPath = Annotated[fields.UserId, BeforeValidator(_decoded), _User]
ItemIdPath = Annotated[fields.ItemId, BeforeValidator(_decoded), _Item]
EventIdPath = Annotated[fields.EventId, BeforeValidator(_decoded), _Event]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500, description="how many in one page", examples=[50])]
NumNeighbors = Annotated[int, Query(ge=1, le=100, description="how many", examples=[10])]
SearchWords = Annotated[
    str,
    Query(
        max_length=500,
        description="words, all of which the id or the title contains, in any order and case",
        examples=["bramble"],
    ),
]
FilterText = Annotated[
    str | None,
    Query(max_length=20_000, description="a filter as in POST /recommend, as JSON", examples=['{"kind": "series"}']),
]
By = Annotated[
    Literal["behaviour", "words"], Query(description="what users did, or the words of titles", examples=["behaviour"])
]
Prefix = Annotated[str, Query(max_length=256, description="the beginning of the ids", examples=["reader-"])]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; cancels it and raises ClientGone when the caller closes the connection.

    Call it after the body is read, because it reads what the caller sends.
    """
    waiting = asyncio.current_task()
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        if waiting is not None:
            waiting.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and waiting is not None and not waiting.uncancel():  # nobody else cancelled this task
            raise ClientGone("The caller closed the connection.") from None
        raise
    finally:
        watching.cancel()
