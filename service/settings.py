"""Settings of the service: environment variables AUTOMR_* and command-line flags, validated once, then frozen.

`Settings.from_env` is pure: `__main__` passes the process environment, tests pass a dict. What the bundle fixes (split
layer, K, M) is no setting.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.errors import SettingsError
from service.identity import rates
from service.identity.algorithms import ALGORITHMS, SECRET
from service.identity.keys import read_entry

PREFIX = "AUTOMR_"
_PUBLIC_KEY = re.compile(r"ed25519:[A-Za-z0-9_-]{43}")  # see `model_store.signature`
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
STORE_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix", "embedded")


_PopularPlaces = Annotated[int, Field(ge=1, le=100)]
_Places = Annotated[int, Field(ge=0, le=100)]


def _comma_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """Each field is the variable AUTOMR_<NAME>. The descriptions are the help texts."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    bundle: Path = Field(default=Path("model_store/bundles/current"), description="directory of the bundle to serve")
    bundles_dir: Path | None = Field(
        default=None, description="directory of the bundles that may be loaded while serving; none: none may"
    )
    bundle_keys: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(), description="comma-separated public keys; other bundles than those they signed are refused"
    )
    store: SecretStr = Field(
        default=SecretStr("embedded:var/store"),
        description="redis://, rediss://, redis+cluster:// or unix:// URL, or embedded:DIR: a private server",
    )
    store_ca: Path | None = Field(
        default=None, description="file of the CAs that are trusted for a store with TLS; none: those of the system"
    )
    store_cert: Path | None = Field(
        default=None, description="file of the certificate that is shown to a store with TLS; none: none is"
    )
    store_cert_key: Path | None = Field(
        default=None, description="file of the key of this certificate; none: it is in the file of the certificate"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on, 0 = any free one")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="comma-separated API keys, plain or sha256:HEX; with all scopes, or after them: metrics=KEY",
    )
    require_keys: bool = Field(
        default=False, description="ask for a key also where the settings have none: keys are in the store"
    )
    rate_limit: str = Field(
        default="", description="requests that a key may send, such as 100/second; 1000000/month; empty: no limit"
    )
    jwt_issuer: str = Field(default="", description="issuer of signed tokens that are taken in the place of a key")
    jwt_audience: str = Field(default="", description="audience that a token must name")
    jwt_keys: str = Field(default="", description="keys of the issuer (JWKS): a file, or a URL that is https")
    jwt_algorithms: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=("RS256", "ES256"), validate_default=True, description="comma-separated algorithms of tokens"
    )
    jwt_leeway_s: float = Field(default=30.0, ge=0, le=600, description="how far the clock of the issuer may be off")
    jwt_scopes_claim: str = Field(default="scope", min_length=1, description="claim of a token that lists its scopes")
    jwt_tenant_claim: str = Field(default="", description="claim of a token that names its tenant; empty: none does")
    allow_anonymous: bool = Field(
        default=False, description="accept connections from other machines even without API keys"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(), description="comma-separated origins whose pages may call the API, such as https://shop.example"
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(), description="comma-separated names that requests may be for, such as api.shop.example; none: all"
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="comma-separated addresses whose X-Forwarded-For names the caller; none: 127.0.0.1",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the model runs: auto, cpu or cuda"
    )
    precision: Literal["bundle", "bfloat16", "int8"] = Field(
        default="bundle", description="arithmetic on a CPU: that of the bundle, or the faster bfloat16 or int8"
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of the model, 0 = all cores, one for a small model"
    )
    max_queue: int = Field(
        default=256, ge=1, le=100_000, description="requests that may wait for the model; more are refused with 429"
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="requests in one model call")
    max_batch_tokens: int = Field(default=8192, ge=1, description="tokens in one model call")
    window_cache_mib: int = Field(
        default=256, ge=0, le=1 << 20, description="cache of encoded recent windows, in MiB, 0 = no cache"
    )
    live_half_life_days: float = Field(
        default=30.0, ge=0, le=3650, description="days after which a live event counts half, 0 = they are not counted"
    )
    cold_start: Annotated[tuple[_PopularPlaces, _Places, _Places], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(7, 2, 1),
        description="how many places popular, trending and latest items share where nothing is known of the user",
    )
    shown_hours: float = Field(
        default=24.0, ge=0, le=48, description="time for which answers are kept, so that events can name them, 0 = not"
    )
    explored_times: int = Field(
        default=500,
        ge=0,
        le=1_000_000_000,
        description="times that exploration shows an item, whatever users did with it, 0 = without end",
    )
    deadline_ms: int = Field(
        default=2000, ge=1, le=60_000, description="deadline of a recommendation that sets none, in ms"
    )
    visible_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="deadline of POST /interactions with `wait: visible`, in seconds"
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="largest request body, in bytes")
    max_bodies_bytes: int = Field(
        default=64 << 20, ge=1024, description="bodies of all requests in work together, in bytes; more get 429"
    )
    max_connections: int = Field(
        default=4096, ge=1, le=1_000_000, description="connections of callers; more are refused with 503"
    )
    receive_timeout_s: float = Field(
        default=20.0, gt=0, le=3600, description="time in which a request must arrive whole, in seconds"
    )
    keep_alive_s: int = Field(
        default=75, ge=1, le=3600, description="time after which an unused connection is closed, in seconds"
    )
    store_timeout_s: float = Field(
        default=1.0, gt=0, le=60, description="time limit of one call to the memory store, in seconds"
    )
    lame_duck_s: float = Field(
        default=5.0, ge=0, le=3600, description="seconds after SIGTERM in which requests are answered, but not /readyz"
    )
    drain_s: float = Field(
        default=20.0, ge=1, le=3600, description="time from the signal to the end of the process at most, in seconds"
    )
    durability: Literal["stored", "fsync", "replicated"] = Field(
        default="stored", description="how durable events and deletions are when they are acknowledged"
    )
    durable_replicas: int = Field(
        default=1, ge=1, le=16, description="replicas that confirm a write for the durability `replicated`"
    )
    tombstone_days: float = Field(
        default=7.0,
        ge=0,
        le=365,
        description="days in which older events of a deleted user are refused, 0 = not",
    )
    erasure_minutes: float = Field(
        default=60.0, ge=0, le=10_080, description="time until a deletion is gone from the store's files, 0 = no limit"
    )
    encryption_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(), description="comma-separated master keys ID=BASE64 that seal records of users; the first one seals"
    )
    encryption_keys_file: Path | None = Field(
        default=None, description="file with master keys, one ID=BASE64 a line, in the place of encryption_keys"
    )
    otlp_endpoint: str = Field(
        default="", description="collector of traces (OTLP over HTTP), such as http://collector:4318; empty: no traces"
    )
    trace_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of requests that are traced, of those whose caller does not say"
    )
    encode_in_process: bool = Field(default=True, description="encode memory inside the server (false: run workers)")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log level"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="log lines: json or console")
    fsync: Literal["always", "everysec"] = Field(default="always", description="when the embedded store syncs to disk")

    @field_validator("drain_s")
    @classmethod
    def _longer_than_lame_duck(cls, drain_s: float, others: ValidationInfo) -> float:
        if drain_s <= others.data.get("lame_duck_s", 0):
            raise ValueError(f"must be longer than {variable('lame_duck_s')}, which is a part of it")
        return drain_s

    @field_validator("store")
    @classmethod
    def _known_store(cls, store: SecretStr) -> SecretStr:
        scheme, colon, rest = store.get_secret_value().partition(":")
        if scheme not in STORE_SCHEMES or not colon or not rest.strip("/"):
            raise ValueError(f"must be a URL of {', '.join(STORE_SCHEMES[:-1])}, or embedded:DIR")
        return store

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for position, key in enumerate((key.get_secret_value() for key in keys), start=1):
            try:
                read_entry(key)
            except ValueError as error:
                raise ValueError(f"key {position}: {error}") from None
        return keys

    @field_validator("bundle_keys")
    @classmethod
    def _public_keys(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_PUBLIC_KEY.fullmatch(text) for text in texts):
            raise ValueError("must be keys as `python -m service bundles keygen` prints them")
        return texts

    @field_validator("rate_limit")
    @classmethod
    def _limits(cls, text: str) -> str:
        rates.parse(text)
        return text

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or not set(names) <= set(ALGORITHMS):
            raise ValueError(f"must be some of {', '.join(ALGORITHMS)}")
        return names

    @model_validator(mode="after")
    def _certificates_for_tls(self) -> Self:
        given = [name for name in ("store_ca", "store_cert", "store_cert_key") if getattr(self, name) is not None]
        if given and not self.store_url.startswith("rediss"):
            raise ValueError(f"{variable(given[0])} is for a store with TLS: rediss:// or rediss+cluster://")
        if self.store_cert_key is not None and self.store_cert is None:
            raise ValueError(f"{variable('store_cert_key')} needs {variable('store_cert')}, too")
        return self

    @model_validator(mode="after")
    def _whole_issuer(self) -> Self:
        given = {name: bool(getattr(self, name)) for name in ("jwt_issuer", "jwt_audience", "jwt_keys")}
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(variable(name) for name, is_given in given.items() if not is_given)
            raise ValueError(f"tokens of an issuer need {missing}, too")
        is_local = self.jwt_keys.startswith(("http://127.0.0.1:", "http://localhost:"))
        if self.jwt_keys.startswith("http://") and not is_local:
            raise ValueError(f"{variable('jwt_keys')} must be a file or an https URL")
        if self.jwt_keys.startswith("http") and set(SECRET) & set(self.jwt_algorithms):
            raise ValueError(f"{variable('jwt_keys')} must be a file where tokens are signed by a secret (HS256)")
        return self

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector(cls, endpoint: str) -> str:
        url = urlsplit(endpoint)
        if endpoint and (url.scheme not in ("http", "https") or not url.hostname or url.query or url.username):
            raise ValueError("must be the URL of a collector, such as http://collector:4318, without a user")
        return endpoint

    @field_validator("trusted_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [host for host in hosts if not _HOST.fullmatch(host)]:
            raise ValueError(f"{len(wrong)} are no names of hosts; they have neither a port nor a path")
        return tuple(host.lower() for host in hosts)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            url = urlsplit(origin)
            if origin != "*" and (url.scheme not in ("http", "https") or origin != f"{url.scheme}://{url.netloc}"):
                raise ValueError("must be origins such as https://shop.example, without a path, or *")
        return origins

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`Settings(...)` reads arguments only; `from_env` adds the variables. `.env` files are never read."""
        return (init_settings,)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> Self:
        """Reads the AUTOMR_* variables of `environ`. `overrides` win; None and an empty variable mean "not given".

        Raises SettingsError with every mistake at once. It names no value, because a value may be a secret.
        """
        asked = {name.lower(): text for name, text in environ.items() if name.startswith(PREFIX)}
        problems = _unknown_variables(asked, cls.model_fields)
        variables = EnvSettingsSource(cls)
        variables.env_vars = {name: text for name, text in asked.items() if text.strip()}
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            settings = cls(**(variables() | given))
        except ValidationError as error:
            problems += [_problem(details) for details in error.errors(include_url=False, include_input=False)]
            raise SettingsError(problems) from None
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def store_url(self) -> str:
        """May hold a password: for connecting only. Show `store_shown`."""
        return self.store.get_secret_value()

    @property
    def store_shown(self) -> str:
        """The store's address without user and password."""
        if self.store_url.startswith("embedded:"):
            return self.store_url
        url = urlsplit(self.store_url)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    @property
    def embedded_directory(self) -> Path | None:
        """Where the private store keeps its files; None for a store of someone else."""
        scheme, _, rest = self.store_url.partition(":")
        return Path(rest.removeprefix("//")) if scheme == "embedded" else None

    @property
    def asks_for_keys(self) -> bool:
        return bool(self.api_keys) or self.require_keys or bool(self.jwt_issuer)

    @property
    def plain_encryption_keys(self) -> tuple[str, ...]:
        """As given, for `sealing.master` only. Raises SettingsError where the file cannot be read."""
        if self.encryption_keys_file is None:
            return tuple(key.get_secret_value() for key in self.encryption_keys)
        name = variable("encryption_keys_file")
        if self.encryption_keys:
            raise SettingsError([f"{name}: {variable('encryption_keys')} is set, too; use one of them"])
        try:
            lines = self.encryption_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"{name}: {self.encryption_keys_file}: {type(error).__name__}"]) from None
        if not (found := tuple(line for line in lines if line.strip() and not line.startswith("#"))):
            raise SettingsError([f"{name}: {self.encryption_keys_file} has no key"])
        return found

    @property
    def plain_api_keys(self) -> tuple[str, ...]:
        """The keys as given, for `identity.keys` only."""
        return tuple(key.get_secret_value() for key in self.api_keys)


def variable(field: str) -> str:
    return PREFIX + field.upper()


def _unknown_variables(asked: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """One line for each variable that is no setting; `asked` are names in lower case, with the prefix."""
    names = sorted(name.removeprefix(PREFIX.lower()) for name in asked)
    return [f"{variable(name)}: there is no such setting{_hint(name, known)}" for name in names if name not in known]


def _hint(name: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {variable(nearest[0])}?" if nearest else ""


def _problem(details: Any) -> str:
    if not details["loc"]:  # of several settings together; it names them
        return str(details["msg"]).removeprefix("Value error, ")
    return f"{variable(str(details['loc'][0]))}: {details['msg'].removeprefix('Value error, ')}"
