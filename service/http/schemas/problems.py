"""The JSON body of an error."""

from pydantic import BaseModel, Field

from service.http.fields import FieldError
from service.http.schemas.interactions import InteractionResult
from service.http.schemas.items import ItemResult


class Problem(BaseModel):
    """An error (RFC 9457). Some errors have further members."""

    type: str = Field(description="urn:automr:problem:NAME, or about:blank")
    title: str = Field(description="the kind of error, the same text each time")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong, and what to do")
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="finds the request in the logs")
    errors: list[FieldError] | None = Field(default=None, description="with 422: the wrong fields")
    results: list[InteractionResult] | list[ItemResult] | None = Field(
        default=None, description="when every element of a batch was rejected: why, one for each"
    )
    scope: str | None = Field(
        default=None, description="with 403: the scope that the key needs and does not have", examples=["ingest"]
    )
