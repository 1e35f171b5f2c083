"""What the bodies of all answers have in common."""

from pydantic import ConfigDict

from service.http.fields import Schema

NEXT_CURSOR = "the `cursor` of the next page; null on the last one. A page may be short and have a next one"


class ResponseSchema(Schema):
    model_config = ConfigDict(from_attributes=True)
