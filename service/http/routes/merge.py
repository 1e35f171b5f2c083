"""POST /users/{user_id}:merge: a guest becomes a user."""

from fastapi import APIRouter

from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep, UserIdPath
from service.http.schemas.users import MergedUser, UserToMerge

router = APIRouter(tags=["users"], route_class=JsonRoute)


@router.post("/users/{user_id}:merge", responses={409: {}})
async def merge_user(user_id: UserIdPath, body: UserToMerge, resources: ResourcesDep) -> MergedUser:
    """Moves all events of a guest to this user, as after a login. The guest is gone afterwards. Safe to repeat."""
    merged = await resources.users.merge(user_id, body.from_user_id)
    return MergedUser(user_id=user_id, from_user_id=body.from_user_id, **merged._asdict())
