"""What follows a deletion: GET /deletions, POST /users/{user_id}:recreate, POST /store:compact."""

from fastapi import APIRouter

from service.http.body import JsonRoute
from service.http.dependencies import Cursor, Limit, ResourcesDep, UserIdPath
from service.http.schemas.erasure import Compaction, DeletionsPage, RecreatedUser

router = APIRouter(route_class=JsonRoute)

_WAIT_S = 10.0  # for the store to rewrite its files; a caller asks again


@router.get("/deletions", tags=["users"])
async def list_deletions(resources: ResourcesDep, cursor: Cursor = None, limit: Limit = 50) -> DeletionsPage:
    """The receipts of deleted users, newest first: when and how much. They do not say who."""
    found, next_cursor = await resources.eraser.page(cursor, limit)
    deletions = [
        {
            **receipt.deleted._asdict(),
            "receipt_id": receipt.receipt_id,
            "deleted_at": receipt.deleted.at,
            "is_erased": is_erased,
        }
        for receipt, is_erased in found
    ]
    for each in deletions:
        del each["at"]
    return DeletionsPage.model_validate({"deletions": deletions, "next_cursor": next_cursor})


@router.post("/users/{user_id}:recreate", tags=["users"])
async def recreate_user(user_id: UserIdPath, resources: ResourcesDep) -> RecreatedUser:
    """Lets events of any time be stored for a deleted user, for example because the user came back and agreed to it."""
    return RecreatedUser(user_id=user_id, was_deleted=await resources.eraser.recreate(user_id))


@router.post("/store:compact", tags=["operations"])
async def compact_store(resources: ResourcesDep) -> Compaction:
    """Has the store write its files anew, so that no byte of deleted users is left; waits up to 10 s for the end."""
    return Compaction.model_validate(await resources.eraser.compact(_WAIT_S))
