"""The JSON bodies of the routes of experiments."""

from typing import Annotated, Literal

from pydantic import Field

from service.http.fields import Schema
from service.http.schemas.base import ResponseSchema
from service.http.schemas.bundles import BundleName

VariantName = Annotated[
    str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["no-memory"])
]
Share = Annotated[float, Field(ge=0, le=1, examples=[0.5])]


Voice = Literal["language_model", "popularity", "near", "follow", "linear", "alike", "return"]


class HowToAnswer(Schema):
    bundle: BundleName | None = Field(
        default=None,
        description="name of a loaded bundle, which may be of another precision; null: the one that answers",
    )
    memory: bool = Field(default=True, description="false: only the newest K events count, no memory", examples=[False])
    arm: Literal["model", "popular"] = Field(
        default="model", description="popular: popular items, without the model", examples=["model"]
    )
    voices: dict[Voice, Annotated[float, Field(ge=0, le=100)]] = Field(
        default={},
        description="what the weight of a voice is multiplied by, for a bundle with voices: 0 silences it",
        examples=[{"popularity": 0, "alike": 2}],
    )
    exploration: Annotated[float, Field(ge=0, le=0.5)] | None = Field(
        default=None,
        description="the share of places for little-known items, whatever the request says; null: as it says",
        examples=[0.1],
    )


class ExperimentVariant(HowToAnswer):
    name: VariantName = Field(description="stands in answers and results")
    share: Share = Field(description="of the users; the shares of all variants sum to 1")


class ExperimentShadow(HowToAnswer):
    share: Share = Field(description="of the answers that are computed a second time, compared and not shown")


class Experiment(Schema):
    name: VariantName = Field(description="also the salt of the hash: another name divides the users anew")
    control: VariantName = Field(description="name of the variant that the others are compared with")
    variants: list[ExperimentVariant] = Field(min_length=1, max_length=10, description="their order counts, too")
    shadow: ExperimentShadow | None = Field(default=None, description="null: no shadow traffic")


class ExperimentToRun(Schema):
    experiment: Experiment | None = Field(description="null: none runs; every user gets the bundle that answers")


class OutcomeRate(ResponseSchema):
    value: float = Field(description="share of the lists", examples=[0.12])
    low: float = Field(description="lower end of the 95 % interval", examples=[0.1])
    high: float = Field(description="upper end of the 95 % interval", examples=[0.15])


class VariantResult(ResponseSchema):
    variant: str = Field(description="`default`, or experiment and variant", examples=["spring/no-memory"])
    lists: int = Field(description="answers", examples=[1000])
    impressions: int = Field(description="events of type impression that name an answer", examples=[900])
    clicks: int = Field(description="events of other types than the rest that name an answer", examples=[130])
    conversions: int = Field(description="events of type purchase, order, booking or subscribe", examples=[20])
    rejections: int = Field(description="events of type dislike, skip, return or refund", examples=[3])
    explored: int = Field(description="items that exploration put into these answers", examples=[95])
    explored_clicks: int = Field(description="clicks on these items", examples=[4])
    explored_conversions: int = Field(description="conversions of these items", examples=[1])
    clicked_lists: int = Field(description="answers with at least one click", examples=[120])
    converted_lists: int = Field(description="answers with at least one conversion", examples=[18])
    click_rate: OutcomeRate | None = Field(description="clicked of all lists; null without lists")
    conversion_rate: OutcomeRate | None = Field(description="converted of all lists; null without lists")


class ExperimentsPage(ResponseSchema):
    experiment: Experiment | None = Field(description="the one that runs")
    results: list[VariantResult] = Field(description="of all variants since their lists are kept, of all replicas")
    unattributed: int = Field(
        description="events that name a recommendation that is unknown, too old, or did not show their item",
        examples=[3],
    )
