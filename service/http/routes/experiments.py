"""/experiments: which variants answer, and what users did with their lists."""

from typing import Any

from fastapi import APIRouter

from service.feedback import experiments as feedback
from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep
from service.http.schemas.experiments import Experiment, ExperimentsPage, ExperimentToRun
from service.resources import Resources

router = APIRouter(tags=["experiments"], route_class=JsonRoute)


@router.get("/experiments")
async def get_experiments(resources: ResourcesDep) -> ExperimentsPage:
    """The experiment that runs, and the results of all variants."""
    return await _page(resources)


@router.put("/experiments")
async def put_experiments(body: ExperimentToRun, resources: ResourcesDep) -> ExperimentsPage:
    """Starts, changes or ends an experiment; other replicas follow within seconds."""
    await resources.experiments.put(None if body.experiment is None else _experiment(body.experiment))
    return await _page(resources)


async def _page(resources: Resources) -> ExperimentsPage:
    results = await resources.experiments.outcomes.results()
    current = resources.experiments.current
    shown = None if current is None else _shown(current)
    return ExperimentsPage.model_validate(
        {"experiment": shown, "results": results.variants, "unattributed": results.unattributed}
    )


def _experiment(body: Experiment) -> feedback.Experiment:
    shadow = body.shadow
    return feedback.Experiment(
        name=body.name,
        control=body.control,
        variants=tuple(feedback.Variant(**variant.model_dump()) for variant in body.variants),
        shadow=None
        if shadow is None
        else feedback.Shadow(
            feedback.Variant(**(shadow.model_dump() | {"name": "shadow", "share": 0.0})), shadow.share
        ),
    )


def _shown(current: feedback.Experiment) -> dict[str, Any]:
    return {
        "name": current.name,
        "control": current.control,
        "variants": [vars(each) for each in current.variants],
        "shadow": None if current.shadow is None else _how(current.shadow),
    }


def _how(shadow: feedback.Shadow) -> dict[str, Any]:
    variant = shadow.variant
    how = {name: value for name, value in vars(variant).items() if name != "name"}
    return {**how, "share": shadow.share}
