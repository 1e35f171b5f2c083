"""/keys: API keys that live in the store, made and taken back while the service runs."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.errors import KeyConflict, NotReady
from service.http.body import JsonRoute
from service.http.schemas.keys import CreatedKey, Key, KeyId, KeysPage, KeyToCreate, KeyToRotate, RevokedKey
from service.identity.authenticator import Authenticator
from service.identity.keyring import Keyring, NewKey, shown

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JsonRoute)

KeyIdPath = Annotated[KeyId, Path(description="`id` in GET /keys")]


@router.get("")
async def list_keys(request: Request) -> KeysPage:
    """The keys of the store. The keys themselves cannot be shown: only their hashes are kept."""
    return KeysPage(keys=[Key.model_validate(shown(*each)) for each in await _keyring(request).listed()])


@router.post("", status_code=201, responses={409: {}})
async def create_key(body: KeyToCreate, request: Request) -> CreatedKey:
    """Makes a key, which works here at once, and on other replicas within 3 seconds. The answer is the only time that
    it is shown.
    """
    authenticator: Authenticator = request.app.state.authenticator
    if not authenticator.asks_for_keys:
        raise KeyConflict("This server asks for no key, so a key would protect nothing: set AUTOMR_REQUIRE_KEYS=true.")
    key, record = await _keyring(request).create(NewKey(**body.model_dump()))
    return CreatedKey.model_validate({"key": key, **shown(record)})


@router.post("/{id}:rotate", status_code=201, responses={409: {}})
async def rotate_key(id: KeyIdPath, body: KeyToRotate, request: Request) -> CreatedKey:
    """Makes a new key in the place of this one, with the same id and scopes. The old one goes on for a while."""
    key, record = await _keyring(request).rotate(id, overlap_s=body.overlap_s)
    return CreatedKey.model_validate({"key": key, **shown(record)})


@router.delete("/{id}", responses={409: {}})
async def revoke_key(id: KeyIdPath, request: Request) -> RevokedKey:
    """Ends a key: here at once, on other replicas within 3 seconds."""
    await _keyring(request).revoke(id)
    return RevokedKey(id=id, revoked=True)


def _keyring(request: Request) -> Keyring:
    authenticator: Authenticator = request.app.state.authenticator
    if authenticator.keyring is None:
        raise NotReady("The store is not open yet.")
    return authenticator.keyring
