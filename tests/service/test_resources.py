"""What is opened is opened as the settings say."""

from pathlib import Path

import pytest

from model_store.lm.precision import Bfloat16Linear, Int8Linear
from service.store.embedded.server import EmbeddedServer
from tests.service.real import ask, history, open_service


@pytest.mark.parametrize("precision", ["bundle", "bfloat16", "int8"])
async def test_every_precision_answers(bundle_path: Path, valkey: EmbeddedServer, precision: str) -> None:
    async with open_service(bundle_path, valkey.url, precision=precision) as service:
        kinds = {type(module) for module in service.bundle.lm.model.modules()}
        assert (Bfloat16Linear in kinds, Int8Linear in kinds) == (precision != "bundle", precision == "int8")
        user_id = f"reader in {precision}"
        await service.submit(history(9, user_id), "visible")
        answer = await ask(service, user_id=user_id, deadline_ms=60_000)
        assert (await service.store.counts(user_id, service.space)).states == 9
    assert answer.fallback is None and answer.items[0].source == "generated"


async def test_a_window_that_was_encoded_is_not_read_again(bundle_path: Path, valkey: EmbeddedServer) -> None:
    for mib, num_hits in ((16, 1), (0, 0)):
        async with open_service(bundle_path, valkey.url, window_cache_mib=mib) as service:
            user_id = f"window of {mib} MiB"
            await service.submit(history(9, user_id), "visible")
            before = service.metric("window_cache_total", result="hit")
            answer = await ask(service, user_id=user_id, deadline_ms=60_000)
            assert service.metric("window_cache_total", result="hit") == before + num_hits
            assert (service.metric("window_cache_bytes") > 0) == (mib > 0)
            assert answer.fallback is None


async def test_states_of_another_precision_are_in_another_space(bundle_path: Path, valkey: EmbeddedServer) -> None:
    spaces = set()
    for precision in ("bundle", "bfloat16", "int8"):
        async with open_service(bundle_path, valkey.url, precision=precision) as service:
            spaces.add(service.space)
            await service.submit(history(9, "precise"), "visible")
            assert (await service.store.counts("precise", service.space)).states == 9
    assert len(spaces) == 3, "states that cannot be compared share a space"
