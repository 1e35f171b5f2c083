"""deploy/base and deploy/chart: Kubernetes takes them, Helm renders the chart, both start the same service."""

import json
import tomllib
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.settings import Settings, variable
from tests.deploy import charts, manifests
from tests.deploy.manifests import Object

# Every switch of the chart away from its default.
OTHER: dict[str, Any] = {
    "image": {"repository": "registry.example/automr", "tag": "2.0", "pullSecrets": ["pull"]},
    "secret": "shop-keys",
    "store": "rediss+cluster://store.example:6380",
    "bundles": {"claim": "books", "current": "books-2026-05"},
    "threads": 4,
    "settings": {"AUTOMR_MAX_BODIES_BYTES": 67108864, "AUTOMR_LOG_FORMAT": "console", "AUTOMR_ALLOW_ANONYMOUS": True},
    "api": {"autoscaling": {"enabled": False}, "replicas": 3, "minAvailable": "50%"},
    "worker": {"replicas": 2},
    "podAnnotations": {"example.com/team": "shop"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "models", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "service": {"type": "LoadBalancer", "port": 8080},
    "stopping": {"lameDuckSeconds": 10, "drainSeconds": 50},
    "networkPolicy": {
        "clients": [],
        "store": {"ports": [{"protocol": "TCP", "port": 6380}], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "egress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
REFUSED: dict[str, dict[str, Any]] = {
    "colour": {"colour": "red"},
    "AUTOMR_PORT": {"settings": {"AUTOMR_PORT": "80"}},
    "AUTOMR_API_KEYS": {"settings": {"AUTOMR_API_KEYS": "sha256:0"}},
    "/store": {"store": "redis://:password@store/0"},
    "/threads": {"threads": 0},
    "/bundles/current": {"bundles": {"current": "../elsewhere"}},
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    releases: dict[str, dict[str, Any]] = {
        "plain": {"name": "automr"},
        "other": {"name": "shop", "values": OTHER},
        "closed": {"name": "automr", "values": {"networkPolicy": {"enabled": False}}},
        **{name: {"name": "automr", "values": values} for name, values in REFUSED.items()},
    }
    return dict(zip(releases, charts.render(*releases.values()), strict=True))


def settings(objects: list[Object]) -> Settings:
    """What a pod would start with. Raises SettingsError for a name that is no setting."""
    data = manifests.one(objects, "ConfigMap")["data"]
    assert all(isinstance(value, str) for value in data.values()), data
    return Settings.from_env(data)


def test_kubernetes_takes_the_base() -> None:
    assert not manifests.problems(manifests.base())


def test_the_validator_finds_a_misspelt_field() -> None:
    objects = manifests.base()
    pod = manifests.one(objects, "Deployment", "api")["spec"]["template"]["spec"]
    pod["terminationGracePeriod"] = 30
    assert any("terminationGracePeriod" in line for line in manifests.problems(objects))


@pytest.mark.parametrize("release", ["plain", "other", "closed"])
def test_kubernetes_takes_what_helm_renders(rendered: dict[str, dict[str, Any]], release: str) -> None:
    objects = rendered[release]["objects"]
    custom = [each for each in objects if each["kind"] == "ServiceMonitor"]
    assert len(custom) == (release == "other")
    assert not manifests.problems([each for each in objects if each not in custom])


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    assert charts.findings() == []


@pytest.mark.parametrize("named", REFUSED)
def test_helm_refuses_values_that_the_chart_does_not_know(rendered: dict[str, dict[str, Any]], named: str) -> None:
    assert named in rendered[named].get("error", ""), rendered[named]


def test_the_base_and_the_chart_start_the_same(rendered: dict[str, dict[str, Any]]) -> None:
    by_name = [
        {(each["kind"], each["metadata"]["name"]): manifests.bare(each) for each in objects}
        for objects in (manifests.base(), rendered["plain"]["objects"])
    ]
    base, chart = by_name
    assert base.keys() == chart.keys()
    base["Service", "automr"]["spec"]["type"] = "ClusterIP"  # Kubernetes' default, which the chart writes down
    for name, each in base.items():
        assert each == chart[name], name


@pytest.mark.parametrize("release", ["base", "plain", "other"])
def test_settings_are_settings_of_the_service(rendered: dict[str, dict[str, Any]], release: str) -> None:
    objects = manifests.base() if release == "base" else rendered[release]["objects"]
    values = settings(objects)
    assert values.host == "0.0.0.0" and not values.encode_in_process
    for deployment in (manifests.one(objects, "Deployment", name) for name in ("api", "worker")):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > values.drain_s
        [container] = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(values.bundles_dir) in mounts and values.bundle.parent == values.bundles_dir
        ports = [port["containerPort"] for port in container.get("ports", [])]
        assert ports == ([values.port] if container["args"] == ["serve"] else [])


def test_the_values_of_a_release_arrive(rendered: dict[str, dict[str, Any]]) -> None:
    objects = rendered["other"]["objects"]
    values = settings(objects)
    assert (values.max_bodies_bytes, values.threads, values.allow_anonymous) == (67108864, 4, True)
    assert (values.store_url, values.drain_s, values.lame_duck_s) == (OTHER["store"], 50, 10)
    api = manifests.one(objects, "Deployment", "shop-automr-api")["spec"]
    pod = api["template"]["spec"]
    assert api["replicas"] == 3 and not [each for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    assert pod["containers"][0]["image"] == "registry.example/automr:2.0"
    assert {"secretRef": {"name": "shop-keys"}} in pod["containers"][0]["envFrom"]
    assert pod["nodeSelector"] == OTHER["nodeSelector"] and pod["tolerations"] == OTHER["tolerations"]
    store, _dns, *further = manifests.one(objects, "NetworkPolicy")["spec"]["egress"]
    assert store == OTHER["networkPolicy"]["store"] and further == OTHER["networkPolicy"]["egress"]
    assert "shop-keys" in rendered["other"]["notes"] and "books-2026-05" in rendered["other"]["notes"]


def test_every_setting_of_the_service_can_be_set() -> None:
    """By `settings`, by a value of its own, or, where it is a secret, in the secret that all pods read."""
    schema = json.loads((charts.CHART / "values.schema.json").read_text(encoding="utf-8"))
    own = set(schema["properties"]["settings"]["propertyNames"]["not"]["enum"])
    names = {variable(field) for field in Settings.model_fields}
    assert own < names, f"the chart refuses what is no setting: {own - names}"
    given = dict.fromkeys(names - own, "some text")
    [release] = charts.render({"name": "automr", "values": {"settings": given}})
    data = manifests.one(release["objects"], "ConfigMap")["data"]
    assert given.items() <= data.items()
    assert names - data.keys() == {"AUTOMR_API_KEYS"}, "neither a value of the chart nor in the secret"


def test_changed_settings_replace_the_pods() -> None:
    releases = [{"name": "automr", "values": {"threads": threads}} for threads in (2, 4)]
    marks = {
        manifests.one(each["objects"], "Deployment", "api")["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]
        for each in charts.render(*releases)
    }
    assert len(marks) == 2


@pytest.mark.parametrize("source", ["base", "plain", "other"])
def test_selectors_find_the_pods(rendered: dict[str, dict[str, Any]], source: str) -> None:
    objects = manifests.base() if source == "base" else rendered[source]["objects"]
    labels = {
        name: manifests.one(objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("api", "worker")
    }

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for name in labels:
        assert chosen(manifests.one(objects, "Deployment", name)["spec"]["selector"]["matchLabels"]) == {name}
    assert chosen(manifests.one(objects, "Service")["spec"]["selector"]) == {"api"}
    assert chosen(manifests.one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]) == {"api"}
    assert chosen(manifests.one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]) == {"api", "worker"}
    for each in (each for each in objects if each["kind"] == "ServiceMonitor"):
        labels_of_service = manifests.one(objects, "Service")["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels_of_service.items()


@pytest.mark.parametrize("port", [6379, 6380, 7000, 16379])
@pytest.mark.parametrize("source", ["base", "plain"])
def test_the_network_policy_lets_a_store_on_any_port_be_reached(
    rendered: dict[str, dict[str, Any]], source: str, port: int
) -> None:
    policy = manifests.one(manifests.base() if source == "base" else rendered[source]["objects"], "NetworkPolicy")
    allowed = [each for rule in policy["spec"]["egress"] for each in rule["ports"] if each["protocol"] == "TCP"]
    assert any(each["port"] <= port <= each.get("endPort", each["port"]) for each in allowed)


def test_the_chart_and_the_base_take_the_image_of_this_version() -> None:
    root = charts.CHART.parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = yaml.safe_load((charts.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    kustomization = yaml.safe_load((manifests.BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == version
    assert [image["newTag"] for image in kustomization["images"]] == [version]
