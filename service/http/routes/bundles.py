"""/bundles: load a bundle beside the one that answers, switch to it, and back."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.bundles.bundles import Bundles
from service.errors import BundleConflict
from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep
from service.http.schemas.bundles import BundleName, BundlesPage, BundleToLoad
from service.resources import Resources
from service.store.bundles import Source

router = APIRouter(tags=["bundles"], route_class=JsonRoute)

Force = Annotated[bool, Query(description="also while its memory is not filled: until then answers lack memory")]
BundleNamePath = Annotated[BundleName, Path(description="`name` in GET /bundles")]


@router.get("/bundles", responses={409: {}})
async def list_bundles(resources: ResourcesDep) -> BundlesPage:
    """The bundles of this process, which of them answers, and how far the memory of each is filled."""
    return BundlesPage.model_validate(await _bundles(resources).listing())


@router.post("/bundles", status_code=202, responses={404: {}, 409: {}})
async def load_bundle(body: BundleToLoad, resources: ResourcesDep) -> BundlesPage:
    """Loads a bundle beside the one that answers, on every replica, and fills its memory; nothing else changes."""
    name, source = body.name or body.directory.strip("/").replace("/", "-"), Source(body.directory, body.precision)
    return BundlesPage.model_validate(await _bundles(resources).load(name, source))


@router.post("/bundles:rollback", responses={409: {}})
async def rollback_bundle(resources: ResourcesDep) -> BundlesPage:
    """Switches back to the bundle that answered before."""
    return BundlesPage.model_validate(await _bundles(resources).rollback())


@router.post("/bundles/{name}:activate", responses={409: {}})
async def activate_bundle(name: BundleNamePath, resources: ResourcesDep, force: Force = False) -> BundlesPage:
    """Switches to a loaded bundle: the next request is answered by it alone. Other replicas follow within seconds."""
    return BundlesPage.model_validate(await _bundles(resources).activate(name, is_forced=force))


@router.delete("/bundles/{name}", responses={409: {}})
async def unload_bundle(name: BundleNamePath, resources: ResourcesDep) -> BundlesPage:
    """Closes a bundle that does not answer, on every replica. Its states stay in the store."""
    return BundlesPage.model_validate(await _bundles(resources).unload(name))


def _bundles(resources: Resources) -> Bundles[Resources]:
    if resources.bundles is None:
        raise BundleConflict("This process serves one bundle only.")
    return resources.bundles
