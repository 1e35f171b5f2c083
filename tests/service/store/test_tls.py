"""A store with TLS: trusted CA, client certificate, and each cause why it is not reached, told by its name."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service.doctor.checks import examine
from service.errors import SettingsError, StartupError, StoreUnavailable
from service.logs import RepeatedWarnings
from service.store import connection
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from service.store.servers.tls import Certificates
from tests.service.cluster import ClusterOfServers
from tests.service.real import history, open_app, settings_for
from tests.service.tls import Authority, TlsFront


@pytest.fixture(autouse=True)
def log_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees its line, although another test had the same one a moment ago."""
    monkeypatch.setattr(connection, "repeated", RepeatedWarnings(connection.log))


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "other")


@pytest.fixture
def front(valkey: EmbeddedServer, raw: Redis, ours: Authority) -> Iterator[TlsFront]:
    with TlsFront(socket_of(valkey), ours.issue("store", "127.0.0.1")) as front:
        yield front


def socket_of(server: EmbeddedServer) -> str:
    return unquote(server.url.removeprefix("unix://"))


async def why_not(url: str, certificates: Certificates) -> tuple[str, list[str]]:
    """What the error says, and the reasons in the log."""
    store = await MemoryStore.connect(url, certificates=certificates)
    with capture_logs() as lines, pytest.raises(StoreUnavailable) as caught:
        await store.ping()
    await store.close()
    return str(caught.value), [line["reason"] for line in lines if line["event"] == "the store does not serve"]


async def test_the_service_works_over_tls_and_says_when_it_does_not_trust_the_store(
    bundle_path: Path, front: TlsFront, ours: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.connection.PROBED_FOR_S", 0)
    url = f"rediss://127.0.0.1:{front.port}"
    async with open_app(bundle_path, url, store_ca=ours.file) as (_, http):
        assert (await http.post("/interactions", json={"interactions": history(3), "wait": "visible"})).is_success
        assert (await http.get("/readyz")).is_success
        front.show(other.issue("store", "127.0.0.1"))
        with capture_logs() as lines:
            answer = await http.get("/readyz")
        assert answer.status_code == 503 and "a CA that is not trusted" in answer.json()["detail"]
        assert "unknown CA" in [line.get("reason") for line in lines]
        checks = await examine(settings_for(bundle_path / "none", url, port=0, store_ca=ours.file))
        (found,) = [check for check in checks if check.name == "store"]  # no model: it is slow
        assert not found.is_ok and "AUTOMR_STORE_CA" in found.finding
        front.show(ours.issue("store", "127.0.0.1"))
        assert (await http.get("/readyz")).is_success, "a new certificate of the trusted CA is taken without a restart"


async def test_each_certificate_that_does_not_fit_is_told_apart(front: TlsFront, ours: Authority) -> None:
    url, trusted = f"rediss://127.0.0.1:{front.port}", Certificates(ours.file)
    words, reasons = await why_not(url, Certificates())
    assert "not trusted" in words and reasons == ["unknown CA"], "authorities of the system are trusted, no others"
    front.show(ours.issue("store", "another.example"))
    words, reasons = await why_not(url, trusted)
    assert "another name" in words and reasons == ["wrong name"]
    front.show(ours.issue("store", "127.0.0.1", days=-1))
    words, reasons = await why_not(url, trusted)
    assert "not valid at this time" in words and reasons == ["expired"]


@pytest.mark.parametrize("is_foreign", [False, True])
async def test_a_store_may_ask_for_a_certificate(
    valkey: EmbeddedServer, raw: Redis, ours: Authority, other: Authority, is_foreign: bool
) -> None:
    mine = ours.issue("automr")
    with TlsFront(socket_of(valkey), ours.issue("store", "127.0.0.1"), clients_of=ours.file) as front:
        url = f"rediss://127.0.0.1:{front.port}"
        store = await MemoryStore.connect(url, certificates=Certificates(ours.file, mine))
        assert await store.append([Event("e", "u", "i", 1)]) == ["accepted"]
        await store.close()
        certificates = Certificates(ours.file, other.issue("automr") if is_foreign else None)
        for _ in range(10):  # a connection that is closed at once sometimes loses the alert that gives the reason
            words, reasons = await why_not(url, certificates)
            if reasons == ["client certificate"]:
                break
        assert "AUTOMR_STORE_CERT" in words and reasons == ["client certificate"]


async def test_a_cluster_is_reached_over_tls(tmp_path: Path, ours: Authority, other: Authority) -> None:
    with ClusterOfServers(tmp_path / "cluster", primaries=1, replicas_of_each=0) as servers:
        (node,) = servers.nodes
        with TlsFront(node.port, ours.issue("store", "127.0.0.1")) as front:
            node.client.config_set("cluster-announce-port", front.port)
            url = f"rediss+cluster://127.0.0.1:{front.port}"
            store = await MemoryStore.connect(url, certificates=Certificates(ours.file))
            assert await store.append([Event("e", "u", "i", 1)]) == ["accepted"]
            await store.close()
            words, reasons = await why_not(url, Certificates(other.file))
            assert "not trusted" in words and reasons == ["unknown CA"]


async def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path, ours: Authority) -> None:
    (tmp_path / "broken.pem").write_text("not a certificate")
    for certificates in (
        Certificates(tmp_path / "none.pem"),
        Certificates(tmp_path / "broken.pem"),
        Certificates(None, ours.file),  # it has no key
    ):
        with pytest.raises(StartupError, match=r"cannot be read .*\.pem"):
            await MemoryStore.connect("rediss://127.0.0.1:1", certificates=certificates)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"store_ca": Path("ca.pem")}, "AUTOMR_STORE_CA is for a store with TLS"),
        ({"store": "rediss://x", "store_cert_key": Path("key.pem")}, "AUTOMR_STORE_CERT_KEY needs AUTOMR_STORE_CERT"),
    ],
)
def test_certificates_that_would_not_be_used_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_for(Path("bundle"), str(settings.pop("store", "redis://x")), **settings)
