"""Users of a tenant: the callers of one tenant and those of another mean different users by the same id.

At the HTTP interface a user id gets the tenant of the caller in front, and loses it in answers. Everything behind it
takes the whole for the id, so that users of tenants are apart in every key, queue and cache.
"""

from service.identity.principal import caller
from service.store.keys import TENANT_END, tenant_of


def of_tenant(user_id: str) -> str:
    """The id by which the service knows this user of the caller."""
    tenant = caller.get().tenant
    return f"{tenant}{TENANT_END}{user_id}" if tenant else user_id


def without_tenant(user_id: str) -> str:
    """The id by which the caller knows the user."""
    return user_id.rpartition(TENANT_END)[2]


def is_own(user_id: str) -> bool:
    """Whether the user belongs to the tenant of the caller."""
    return tenant_of(user_id) == caller.get().tenant
