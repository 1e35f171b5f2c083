"""The client for programs with asyncio. `synchronous.py` is made from this file: see `unasync.py`."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast

import httpx

from automr import models
from automr.calls import Call, Kind, Timeouts, as_text, path
from automr.errors import ConnectionFailed, failure, refusal
from automr.retries import REPEATED_STATUSES, Retries, is_repeatable, retry_after_s


class AsyncClient:
    """One method for each operation of the API. Keep one client: it keeps connections open. Safe for many tasks.

    Every call may raise the errors of `automr.errors`. After 429, 503 and a broken connection it is repeated. A second
    write changes nothing twice: the service knows an event by its id, or derives the id from the event.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`address`: where the service answers, with its path if it has one. `transport`: for tests."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=address, headers=headers, transport=transport)
        self._timeouts, self._retries = timeouts or Timeouts(), retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    # ---- recommendations

    async def recommend(self, **body: Unpack[models.RecommendRequest]) -> models.RecommendResponse:
        """k items for a user."""
        return cast(models.RecommendResponse, await self._json(Call("POST", "/recommend", "recommend", body)))

    async def recommend_to_users(self, **body: Unpack[models.UsersRequest]) -> models.UsersResponse:
        """Lists for several users in one request."""
        return cast(models.UsersResponse, await self._json(Call("POST", "/recommend/users", "recommend", body)))

    # ---- interactions

    async def add_interactions(self, **body: Unpack[models.InteractionsRequest]) -> models.InteractionsResponse:
        """Stores events, one result for each. Raises Invalid when all are rejected."""
        kind: Kind = "visible" if body.get("wait") == "visible" else "write"
        return cast(models.InteractionsResponse, await self._json(Call("POST", "/interactions", kind, body)))

    # ---- users

    async def list_users(
        self, *, prefix: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> models.UsersPage:
        """One page of the users of whom events are stored, in no order."""
        params = {"prefix": prefix, "limit": limit, "cursor": cursor}
        return cast(models.UsersPage, await self._json(Call("GET", "/users", params=params)))

    async def get_user(self, user_id: str, *, cursor: str | None = None, limit: int | None = None) -> models.UserPage:
        """Counts, one page of events (newest first) and what is memory today."""
        params = {"cursor": cursor, "limit": limit}
        return cast(models.UserPage, await self._json(Call("GET", path("/users/{}", user_id), params=params)))

    async def export_user(self, user_id: str) -> AsyncIterator[models.UserEvent]:
        """Every event of the user, newest first. Raises NotFound for an unknown user."""
        call = Call("GET", path("/users/{}/export", user_id), "slow")
        answer = await self._send(call, stream=True)
        try:
            async for line in answer.aiter_lines():
                yield cast(models.UserEvent, json.loads(line))
        except httpx.TransportError as error:
            raise ConnectionFailed(f"{call.method} {call.path}: the answer broke off: {error}") from error
        finally:
            await answer.aclose()

    async def get_memory(self, user_id: str) -> models.UserMemory:
        """What the service remembers of the user in words."""
        return cast(models.UserMemory, await self._json(Call("GET", path("/users/{}/memory", user_id))))

    async def forget_user(self, user_id: str) -> models.ForgottenUser:
        """Deletes everything about the user."""
        return cast(models.ForgottenUser, await self._json(Call("DELETE", path("/users/{}", user_id), "write")))

    async def recreate_user(self, user_id: str) -> models.RecreatedUser:
        """Lets events of any time be stored again for a deleted user."""
        return cast(models.RecreatedUser, await self._json(Call("POST", path("/users/{}:recreate", user_id), "write")))

    async def list_deletions(self, *, cursor: str | None = None, limit: int | None = None) -> models.DeletionsPage:
        """Receipts of deletions, newest first, without ids of users."""
        call = Call("GET", "/deletions", "read", params={"cursor": cursor, "limit": limit})
        return cast(models.DeletionsPage, await self._json(call))

    async def forget_event(self, user_id: str, event_id: str) -> models.ForgottenEvent:
        """Deletes one event."""
        call = Call("DELETE", path("/users/{}/interactions/{}", user_id, event_id), "write")
        return cast(models.ForgottenEvent, await self._json(call))

    async def correct_event(
        self, user_id: str, event_id: str, **body: Unpack[models.EventContent]
    ) -> models.CorrectedEvent:
        """Puts an event in the place of the one with this id. Send the whole event."""
        call = Call("PUT", path("/users/{}/interactions/{}", user_id, event_id), "write", body)
        return cast(models.CorrectedEvent, await self._json(call))

    async def merge_user(self, user_id: str, **body: Unpack[models.UserToMerge]) -> models.MergedUser:
        """Gives the user the events of a guest."""
        return cast(models.MergedUser, await self._json(Call("POST", path("/users/{}:merge", user_id), "write", body)))

    # ---- items

    async def list_items(
        self,
        *,
        query: str | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> models.ItemsPage:
        """One page of the catalogue, hidden items too: all, or those with the words of `query` that pass `filter`."""
        params = {"query": query, "filter": as_text(filter), "limit": limit, "cursor": cursor}
        return cast(models.ItemsPage, await self._json(Call("GET", "/items", params=params)))

    async def get_item(self, item_id: str) -> models.Item:
        """One item of the catalogue."""
        return cast(models.Item, await self._json(Call("GET", path("/items/{}", item_id))))

    async def put_item(self, item_id: str, **body: Unpack[models.ItemBody]) -> models.Item:
        """Adds or replaces an item."""
        return cast(models.Item, await self._json(Call("PUT", path("/items/{}", item_id), "write", body)))

    async def patch_item(self, item_id: str, **body: Unpack[models.ItemPatch]) -> models.Item:
        """Changes only the fields that are given."""
        return cast(models.Item, await self._json(Call("PATCH", path("/items/{}", item_id), "write", body)))

    async def delete_item(self, item_id: str) -> models.DeletedItem:
        """Deletes an item. Raises NotFound when it is not there."""
        return cast(models.DeletedItem, await self._json(Call("DELETE", path("/items/{}", item_id), "write")))

    async def put_items(self, **body: Unpack[models.ItemsRequest]) -> models.ItemsResponse:
        """Adds or replaces many items at once."""
        return cast(models.ItemsResponse, await self._json(Call("POST", "/items", "write", body)))

    async def get_neighbors(self, item_id: str, *, k: int | None = None) -> models.Neighbors:
        """The items whose titles are nearest."""
        call = Call("GET", path("/items/{}/neighbors", item_id), params={"k": k})
        return cast(models.Neighbors, await self._json(call))

    async def get_related(
        self, item_id: str, *, k: int | None = None, by: Literal["behaviour", "words"] | None = None
    ) -> models.RelatedItems:
        """The items that go together with this one."""
        call = Call("GET", path("/items/{}/related", item_id), params={"k": k, "by": by})
        return cast(models.RelatedItems, await self._json(call))

    async def list_popular(
        self, *, k: int | None = None, filter: Mapping[str, Any] | None = None
    ) -> models.RankedItems:
        """What most users choose."""
        call = Call("GET", "/popular", params={"k": k, "filter": as_text(filter)})
        return cast(models.RankedItems, await self._json(call))

    async def list_trending(
        self, *, k: int | None = None, filter: Mapping[str, Any] | None = None
    ) -> models.RankedItems:
        """What is chosen more often than before."""
        call = Call("GET", "/trending", params={"k": k, "filter": as_text(filter)})
        return cast(models.RankedItems, await self._json(call))

    async def list_latest(self, *, k: int | None = None, filter: Mapping[str, Any] | None = None) -> models.RankedItems:
        """What is new in the catalogue."""
        call = Call("GET", "/latest", params={"k": k, "filter": as_text(filter)})
        return cast(models.RankedItems, await self._json(call))

    # ---- settings

    async def get_event_types(self) -> models.EventSettings:
        """What types of events mean."""
        return cast(models.EventSettings, await self._json(Call("GET", "/settings/events")))

    async def put_event_types(self, **body: Unpack[models.EventTypes]) -> models.EventSettings:
        """Puts another table of event types into force."""
        return cast(models.EventSettings, await self._json(Call("PUT", "/settings/events", "write", body)))

    # ---- experiments

    async def get_experiments(self) -> models.ExperimentsPage:
        """The experiment that runs, and the results of all variants."""
        return cast(models.ExperimentsPage, await self._json(Call("GET", "/experiments")))

    async def put_experiments(self, **body: Unpack[models.ExperimentToRun]) -> models.ExperimentsPage:
        """Starts, changes or ends an experiment."""
        return cast(models.ExperimentsPage, await self._json(Call("PUT", "/experiments", "write", body)))

    # ---- bundles

    async def list_bundles(self) -> models.BundlesPage:
        """The bundles of one process, and which of them answers."""
        return cast(models.BundlesPage, await self._json(Call("GET", "/bundles")))

    async def load_bundle(self, **body: Unpack[models.BundleToLoad]) -> models.BundlesPage:
        """Loads a bundle beside the one that answers, on every replica."""
        return cast(models.BundlesPage, await self._json(Call("POST", "/bundles", "write", body, is_idempotent=False)))

    async def activate_bundle(self, name: str, *, force: bool | None = None) -> models.BundlesPage:
        """Switches to a loaded bundle."""
        call = Call("POST", path("/bundles/{}:activate", name), "write", params={"force": force})
        return cast(models.BundlesPage, await self._json(call))

    async def rollback_bundle(self) -> models.BundlesPage:
        """Switches back to the bundle that answered before. It is repeated only when it was not sent or was refused."""
        call = Call("POST", "/bundles:rollback", "write", is_idempotent=False)
        return cast(models.BundlesPage, await self._json(call))

    async def unload_bundle(self, name: str) -> models.BundlesPage:
        """Closes a bundle that does not answer."""
        return cast(models.BundlesPage, await self._json(Call("DELETE", path("/bundles/{}", name), "write")))

    # ---- operations

    # ---- keys

    async def list_keys(self) -> models.KeysPage:
        """The keys of the store, without their secrets."""
        return cast(models.KeysPage, await self._json(Call("GET", "/keys", "read")))

    async def create_key(self, **body: Unpack[models.KeyToCreate]) -> models.CreatedKey:
        """A new key, whose secret is in this answer only. It is repeated only when it was not sent or was refused."""
        return cast(models.CreatedKey, await self._json(Call("POST", "/keys", "write", body, is_idempotent=False)))

    async def rotate_key(self, id: str, **body: Unpack[models.KeyToRotate]) -> models.CreatedKey:
        """A new secret; the old one works for a while. It is repeated only when it was not sent or was refused."""
        call = Call("POST", path("/keys/{}:rotate", id), "write", body, is_idempotent=False)
        return cast(models.CreatedKey, await self._json(call))

    async def revoke_key(self, id: str) -> models.RevokedKey:
        """Ends a key."""
        return cast(models.RevokedKey, await self._json(Call("DELETE", path("/keys/{}", id), "write")))

    async def get_model(self) -> models.ModelInfo:
        """The bundle that is served."""
        return cast(models.ModelInfo, await self._json(Call("GET", "/model")))

    async def compact_store(self) -> models.Compaction:
        """Has the files of the store rewritten, so that bytes of what was deleted leave them."""
        return cast(models.Compaction, await self._json(Call("POST", "/store:compact", "write")))

    async def livez(self) -> models.Health:
        """The process is alive."""
        return cast(models.Health, await self._json(Call("GET", "/livez")))

    async def startupz(self) -> models.Health:
        """The bundle is loaded. Raises Unavailable until it is."""
        return cast(models.Health, await self._json(Call("GET", "/startupz")))

    async def readyz(self) -> models.Health:
        """A request would be answered now. Raises Unavailable when not."""
        return cast(models.Health, await self._json(Call("GET", "/readyz")))

    async def metrics(self) -> str:
        """Metrics as Prometheus text."""
        return (await self._send(Call("GET", "/metrics"))).text

    # ---- sending

    async def _json(self, call: Call) -> Any:
        return (await self._send(call)).json()

    async def _send(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """The answer to a call that succeeded, read unless it is streamed."""
        for repetition in range(self._retries.most + 1):
            is_last = repetition == self._retries.most
            request = self._http.build_request(
                call.method, call.path, json=call.body, params=call.query, timeout=self._timeouts.of(call.kind)
            )
            wait_s = 0.0
            try:
                answer = await self._http.send(request, stream=stream)
                if answer.is_success:
                    return answer
                await answer.aread()
                if is_last or answer.status_code not in REPEATED_STATUSES:
                    raise refusal(answer)
                wait_s = retry_after_s(answer)
            except httpx.TransportError as error:
                if is_last or not is_repeatable(error, is_idempotent=call.is_idempotent):
                    raise failure(error, f"{call.method} {call.path}") from error
            await asyncio.sleep(self._retries.wait_s(repetition, wait_s))
        raise AssertionError("the last repetition answers or raises")
