"""Random requests with every option, of one user and of several, against a real bundle: how many break what they say.

    PYTHONPATH=. python tests/benchmarks/options.py --bundle model_store/bundles/demo

Serves the bundle in this process with an empty store, sends events of 20 users, then the requests. Prints each
violation, and one last JSON line with the counts.
"""

import argparse
import asyncio
import json
import logging
import random
import tempfile
from pathlib import Path
from typing import Any

import structlog

from model_store.view import BundleView
from service.store.embedded.server import EmbeddedServer
from tests.benchmarks.machine import last_line
from tests.service.options import Shop
from tests.service.real import open_app

NUM_USERS, EVENTS_OF_A_USER = 20, 8
_TIME = 1_700_000_000


def shop_of(view: BundleView, dice: random.Random) -> Shop:
    items = {
        item.item_id: {**item.attributes, "item_id": item.item_id, "title": item.title} for item in view.catalogue.items
    }
    users = {f"user-{number}": set(dice.sample(sorted(items), k=EVENTS_OF_A_USER)) for number in range(NUM_USERS)}
    return Shop(items, users)


async def run(bundle: Path, num_requests: int) -> dict[str, Any]:
    view, dice = BundleView.open_view(bundle), random.Random(7)
    shop, found = shop_of(view, dice), {"requests": 0, "items": 0, "pages": 0, "violations": 0}
    voices = view.manifest.voices
    has_returns = voices is not None and voices.has_returns
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        async with open_app(bundle, server.url) as (_, client):

            async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
                response = await client.post(path, json=body)
                if response.status_code != 200:
                    raise RuntimeError(f"{body}: {response.text}")
                answer: dict[str, Any] = response.json()
                return answer

            def check(request: dict[str, Any], answer: dict[str, Any], taken: frozenset[str] = frozenset()) -> None:
                wrong = shop.violations(request, answer, has_returns=has_returns, taken=taken)
                shop.remember(request.get("user_id"), answer)
                found["requests"] += 1
                found["items"] += len(answer["items"])
                found["violations"] += len(wrong)
                if wrong:
                    print(json.dumps(request), [item["item_id"] for item in answer["items"]], wrong)

            for user, items in shop.seen.items():
                events = [{"user_id": user, "item_id": each, "timestamp": _TIME} for each in sorted(items)]
                (await client.post("/interactions", json={"interactions": events})).raise_for_status()
            for _ in range(num_requests):
                request = shop.some_request(dice)
                check(request, await ask("/recommend", request))
            for number in range(num_requests // 10):
                options = shop.some_options(dice) | {"distinct": number % 3 > 0}
                users = dice.sample(sorted(shop.seen), k=dice.randint(1, 8))
                answers = (await ask("/recommend/users", {"users": users, **options}))["recommendations"]
                lists = [{item["item_id"] for item in answer["items"]} for answer in answers]
                for place, (user, answer) in enumerate(zip(users, answers, strict=True)):
                    others = set().union(*lists[:place], *lists[place + 1 :]) if options["distinct"] else set()
                    check({**options, "user_id": user}, answer, frozenset(others))
            for _ in range(num_requests // 10):
                request = {**shop.some_options(dice), "user_id": dice.choice(sorted(shop.seen)), "paged": True}
                page = await ask("/recommend", request)
                check(request, page)
                ids = [item["item_id"] for item in page["items"]]
                while page["next_cursor"]:
                    page = await ask("/recommend", {"cursor": page["next_cursor"]})
                    found["pages"] += 1
                    ids += [item["item_id"] for item in page["items"]]
                if len(set(ids)) < len(ids) or not set(ids) <= shop.allowed(request, has_returns):
                    found["violations"] += 1
                    print(json.dumps(request), "pages repeat an item or show what may not be shown")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="directory of a bundle")
    parser.add_argument(
        "--requests", type=int, default=150, help="requests of one user; a tenth more of several, and paged"
    )
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = asyncio.run(run(args.bundle, args.requests))
    print(last_line("options", found))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
