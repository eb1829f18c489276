"""The settings of an org in the environment: the login, the objects, the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from subscribers.http.client import Url
from subscribers.system import Options as SystemOptions

#: The included objects by name, from which SALESFORCE_OBJECTS chooses.
SHIPPED = ("Account", "Contact", "Product2", "Invoice__c")


def _names(value: str) -> str:
    names = value.replace(",", " ").split()
    wrong = [name for name in names if name not in SHIPPED]
    if wrong or not names:
        raise ValueError(f"{wrong[0] if wrong else 'nothing'} is not one of {', '.join(SHIPPED)}")
    customers = {"Account", "Contact"} & set(names)
    if len(customers) > 1:
        raise ValueError("customers can be synced as Account or as Contact, not as both")
    if "Invoice__c" in names and not (customers and "Product2" in names):
        raise ValueError("Invoice__c also needs Product2, and Account or Contact")
    return " ".join(names)


class SalesforceOptions(SystemOptions):
    """One complete login is needed:

    - SALESFORCE_CONSUMER_KEY and _CONSUMER_SECRET (client credentials), with _DOMAIN = your My Domain
      (`acme.my`) or _INSTANCE_URL;
    - SALESFORCE_USERNAME, _CONSUMER_KEY and _PRIVATEKEY_FILE (JWT bearer);
    - SALESFORCE_USERNAME, _PASSWORD, and _SECURITY_TOKEN unless the address is trusted; _DOMAIN is
      `login`, or `test` for a sandbox.

    _OBJECTS names the objects to synchronize; customers are accounts or contacts, not both.
    _EXTERNAL_ID_FIELD is the text field of each object that holds our mark, unique and marked External ID.
    _WEBHOOK_SECRET is the secret that callouts send in X-Syncflow-Secret and outbound messages in their
    address; several are separated by blanks. While it is empty, every webhook is refused. Outbound
    messages must come from the org _ORGANIZATION_ID.
    _ALLOW_DUPLICATES saves records that a duplicate rule of the org only warns about.
    _API_RESERVE is the number of daily API calls left to other programs. From _BULK_THRESHOLD waiting
    records on, Bulk API 2.0 writes them.
    """

    username: str = ""
    password: SecretStr = SecretStr("")
    security_token: SecretStr = SecretStr("")
    consumer_key: str = ""
    consumer_secret: SecretStr = SecretStr("")
    privatekey_file: str = ""
    domain: str = "login"
    instance_url: Url | None = None
    ca_bundle: str = ""
    objects: Annotated[str, AfterValidator(_names)] = "Account Product2 Invoice__c"
    external_id_field: str = Field("Syncflow_Id__c", pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    webhook_secret: SecretStr = SecretStr("")
    organization_id: str = Field("", pattern=r"^(00D[A-Za-z0-9]{12}([A-Za-z0-9]{3})?)?$")
    api_version: str = Field("59.0", pattern=r"^\d\d\.0$")
    allow_duplicates: bool = False
    api_reserve: int = Field(500, ge=0)
    bulk_threshold: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [name for name in LOGINS[self.login_kind()] if not is_set(getattr(self, name))]
        if missing:
            names = ", ".join(f"SALESFORCE_{name.upper()}" for name in missing)
            raise ValueError(f"the login is incomplete: set {names}")
        if self.login_kind() == "client_credentials" and not self.instance_url and self.domain in ("login", "test"):
            raise ValueError("client credentials need SALESFORCE_INSTANCE_URL, or your My Domain as SALESFORCE_DOMAIN")
        if self.privatekey_file and not Path(self.privatekey_file).is_file():
            raise ValueError("SALESFORCE_PRIVATEKEY_FILE is not a file")
        return self

    def keeps(self, sobject: str) -> bool:
        """Return whether this object is synchronized: of the included ones only those chosen."""
        return sobject in self.objects.split() or sobject not in SHIPPED

    def login_kind(self) -> str:
        """Return which login is configured: client_credentials, jwt or password."""
        if self.privatekey_file:
            return "jwt"
        return "client_credentials" if is_set(self.consumer_secret) else "password"


LOGINS: Mapping[str, Sequence[str]] = {
    "password": ("username", "password"),
    "client_credentials": ("consumer_key", "consumer_secret"),
    "jwt": ("username", "consumer_key", "privatekey_file"),
}


def is_set(value: str | SecretStr) -> bool:
    """Return whether a setting is not empty."""
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)
