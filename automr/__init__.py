"""A client of the AutoMR API for Python programs. Needs httpx, and nothing of the service.

    from automr.client import Client

    with Client("http://127.0.0.1:8000", key="amr_...") as client:
        client.add_interactions(interactions=[{"user_id": "ada", "item_id": "green-tea", "timestamp": 1760000000}])
        for item in client.recommend(user_id="ada", k=5)["items"]:
            print(item["title"])

`AsyncClient` has the same methods as coroutines. `automr.models` has the types of bodies and answers, `automr.errors`
what can go wrong.
"""
