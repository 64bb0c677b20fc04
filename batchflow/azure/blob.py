"""The port to the blobs, on the Blob SDK.

ETags have the quoted form of HTTP everywhere, although a listing has them bare. The SDK's own
pauses between retries (15 s and more) are replaced by short ones; what still fails raises a typed error.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from batchflow.azure.errors import code_of, storage_error
from batchflow.azure.identity import check_https
from batchflow.azure.namespaces import fields_of
from batchflow.azure.sdk_patches import without_requests
from batchflow.azure.translating import Translating
from batchflow.azure.transport import transport
from batchflow.errors import ConfigurationError, StorageError
from batchflow.ports.storage import EXACTNESS, Blob, BlobInfo
from batchflow.support.closing import Closes

with without_requests():
    from azure.storage.blob import AccessPolicy as SdkPolicy
    from azure.storage.blob import (
        BlobSasPermissions,
        ContainerSasPermissions,
        UserDelegationKey,
        generate_blob_sas,
        generate_container_sas,
    )
    from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient, LinearRetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from os import PathLike

    from azure.core.pipeline import PipelineResponse

    from batchflow.azure.identity import Credential
    from batchflow.ports.storage import AccessPolicy

CONNECT_LIMIT = 3.0
"""Seconds for connecting, of which there are two attempts: an address where nothing answers becomes an error
in less than ten."""
READ_LIMIT = 30.0
"""Timeout in seconds for the next byte of an answer."""
PIECE = 1 << 20
"""Maximum bytes of one request's body. Larger blobs go in blocks, because aiohttp warns of larger bodies."""
STREAMS = 4
"""Number of blocks that are uploaded at once."""


CLOCK_SKEW = 900.0
"""Seconds that clocks may differ for a signature to be valid at once."""
DELEGATION = 7 * 86400.0
"""Maximum lifetime in seconds of a signature by Entra ID: Azure's limit."""
_WORN = 0.5
"""Share of a signature's time that a borrowed key has left when it is replaced."""


def _options(address: str, ca_file: str | None) -> dict[str, Any]:
    return {
        "transport": transport(address, ca_file, connect=CONNECT_LIMIT, read=READ_LIMIT),
        "retry_policy": LinearRetry(backoff=1, retry_total=3, retry_connect=1, random_jitter_range=1),
        "connection_timeout": CONNECT_LIMIT,
        "read_timeout": READ_LIMIT,
        "max_single_put_size": PIECE,
        "max_block_size": PIECE,
    }


def _failing(doing: str, setting: str) -> Translating:
    return Translating(partial(storage_error, doing=doing, setting=setting))


class BlobContainer(Closes):
    """One container. `client` is closed with it only when it owns the client."""

    def __init__(
        self,
        client: ContainerClient,
        url: str,
        setting: str,
        *,
        owned: bool,
        options: dict[str, Any] | None = None,
    ) -> None:
        """`options`: the client's, for reading blobs by signatures of their own."""
        self.name = client.container_name
        self.url = url
        self._client = client
        self._setting = setting
        self._owned = owned
        self._options = options or {}

    def _blob(self, name: str) -> BlobClient:
        return self._client.get_blob_client(name)

    def _failing(self, doing: str, name: str) -> Translating:
        return _failing(f"cannot {doing} {name} in container {self.name}", self._setting)

    async def get(self, name: str) -> Blob:
        with self._failing("read", name):
            stream = await self._blob(name).download_blob()
            return Blob(await stream.readall(), _quoted(stream.properties.etag))

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        if etag is None:
            return await self.get(name)
        with self._failing("read", name):
            try:
                stream = await self._blob(name).download_blob(
                    etag=etag, match_condition=MatchConditions.IfModified
                )
                return Blob(await stream.readall(), _quoted(stream.properties.etag))
            except HttpResponseError as error:
                if error.status_code == 304:
                    return None
                raise

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        options: dict[str, Any] = {}
        if if_match is not None:
            options = {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
        with self._failing("write", name):
            answer = await self._blob(name).upload_blob(
                data, overwrite=not create, max_concurrency=STREAMS, **options
            )
        return _quoted(answer["etag"])

    async def get_from(self, name: str, start: int) -> bytes:
        with self._failing("read", name):
            try:
                stream = await self._blob(name).download_blob(offset=start)
                return await stream.readall()
            except HttpResponseError as error:
                if error.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return b""
                raise

    async def append(self, name: str, data: bytes, *, anew: bool = False) -> int:
        blob = self._blob(name)
        with self._failing("append to", name):
            if anew:
                await blob.create_append_blob()
            if not data:
                await self._make_append_blob(blob)
                return 0
            try:
                answer = await blob.append_block(data)
            except ResourceNotFoundError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                await self._make_append_blob(blob)
                answer = await blob.append_block(data)
        return int(str(answer["blob_append_offset"])) + len(data)

    @staticmethod
    async def _make_append_blob(blob: BlobClient) -> None:
        try:
            await blob.create_append_blob(match_condition=MatchConditions.IfMissing)
        except ResourceExistsError:
            return  # another client was first

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        with self._failing("upload", name), open(path, "rb") as file:  # noqa: ASYNC230
            length = os.fstat(file.fileno()).st_size
            await self._blob(name).upload_blob(
                file, length=length, overwrite=not create, max_concurrency=STREAMS
            )

    async def download(self, name: str, path: str | PathLike[str], *, signature: str | None = None) -> None:
        blob = self._blob(name) if signature is None else self._signed(name, signature)
        target = Path(path)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with self._failing("download", name):
                stream = await blob.download_blob(max_concurrency=STREAMS)
                with partial.open("wb") as file:
                    async for chunk in stream.chunks():
                        file.write(chunk)
                partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        options: dict[str, Any] = {}
        if if_match is not None:
            options = {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
        with self._failing("delete", name):
            try:
                await self._blob(name).delete_blob(**options)
            except ResourceNotFoundError:
                return False
        return True

    async def get_signed(self, name: str, signature: str) -> bytes:
        with self._failing("read", name):
            stream = await self._signed(name, signature).download_blob()
            data: bytes = await stream.readall()
        return data

    def _signed(self, name: str, signature: str) -> BlobClient:
        """Return a blob by its own signature. It is not closed: the transport is the container's."""
        url = f"{self._blob(name).url.partition('?')[0]}?{signature}"
        return BlobClient.from_blob_url(url, **self._options)

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        listed_at = 0.0

        def note_date(answer: PipelineResponse[Any, Any]) -> None:
            nonlocal listed_at
            listed_at = parsedate_to_datetime(answer.http_response.headers["Date"]).timestamp()

        with self._failing("list", prefix or "the blobs"):
            blobs = self._client.list_blobs(name_starts_with=prefix or None, raw_response_hook=note_date)
            async for blob in blobs:
                modified_at = blob.last_modified.timestamp()
                age = max(0.0, listed_at - modified_at - EXACTNESS)
                yield BlobInfo(blob.name, blob.size, _quoted(blob.etag), modified_at, age)

    async def aclose(self) -> None:
        if self._owned:
            await self._client.close()


class SignedContainer(BlobContainer):
    """A container by its URL and a signature (a SAS without '?') alone."""

    def __init__(
        self,
        url: str,
        signature: str,
        *,
        ca_file: str | None = None,
        setting: str = "the container's signature",
    ) -> None:
        bare = url.partition("?")[0]
        signed = f"{bare}?{signature.lstrip('?')}"
        options = _options(bare, ca_file)
        client = ContainerClient.from_container_url(signed, **options)
        super().__init__(client, bare, setting, owned=True, options=options)


class IdentityContainer(BlobContainer):
    """A container by its URL and a credential of Entra ID, which is not closed with it."""

    def __init__(
        self,
        url: str,
        identity: Credential,
        *,
        ca_file: str | None = None,
        setting: str = "the managed identity",
    ) -> None:
        check_https(url, setting)
        options = _options(url, ca_file)
        client = ContainerClient.from_container_url(url, identity, **options)
        super().__init__(client, url, setting, owned=True, options=options)


class BlobStorage(Closes):
    """A Storage account, by its connection string; or by its URL and a credential of Entra ID.

    `ca_file` holds certificates to trust besides the system's. `setting` is named by errors that these cause.
    """

    def __init__(
        self,
        account: str,
        identity: Credential | None = None,
        *,
        ca_file: str | None = None,
        setting: str | None = None,
    ) -> None:
        self._key: str | None = None
        self._lent: tuple[UserDelegationKey, datetime] | None = None
        """The key of Entra ID that signs for single blobs, and its end."""
        if identity is None:
            self._setting = setting or "storage.connection_string"
            self._client = self._by_key(account, ca_file)
        else:
            self._setting = setting or "storage.account_url"
            check_https(account, self._setting)
            self._client = BlobServiceClient(account, identity, **_options(account, ca_file))

    def _by_key(self, connection_string: str, ca_file: str | None) -> BlobServiceClient:
        options = _options(fields_of(connection_string).get("blobendpoint", ""), ca_file)
        try:
            client = BlobServiceClient.from_connection_string(connection_string, **options)
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"{self._setting} is no connection string of a Storage account: copy it whole, from the "
                "account's page 'Access keys' in the Azure portal"
            ) from None
        fields = dict(part.partition("=")[::2] for part in connection_string.split(";") if part)
        self._key = fields.get("AccountKey")
        return client

    def container(self, name: str) -> BlobContainer:
        client = self._client.get_container_client(name)
        return BlobContainer(client, client.url.partition("?")[0], self._setting, owned=False)

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        client = self._client.get_container_client(name)
        with _failing(f"cannot create container {name}", self._setting):
            try:
                await client.create_container()
                made = True
            except ResourceExistsError as error:
                if code_of(error) != "ContainerAlreadyExists":
                    raise
                made = False
            if self._key is not None and (policies or not made):
                await client.set_container_access_policy({each.name: _policy(each) for each in policies})
        return made

    async def delete_container(self, name: str) -> bool:
        with _failing(f"cannot delete container {name}", self._setting):
            try:
                await self._client.delete_container(name)
            except ResourceNotFoundError:
                return False
        return True

    async def containers(self, prefix: str = "") -> list[str]:
        with _failing("cannot list the containers", self._setting):
            found = self._client.list_containers(name_starts_with=prefix or None)
            return [container.name async for container in found]

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        account = self._account()
        if self._key is not None:
            return generate_container_sas(account, container, account_key=self._key, policy_id=policy.name)
        return await self._delegated(account, container, policy)

    async def _delegated(self, account: str, container: str, policy: AccessPolicy) -> str:
        """Sign by a user delegation key, which lasts a week at most and allows no stored policy."""
        now = datetime.now(UTC)
        start = now - timedelta(seconds=CLOCK_SKEW)
        expiry = min(now + timedelta(seconds=DELEGATION - CLOCK_SKEW), _moment(policy.expires_at))
        with _failing(f"cannot sign for container {container}", self._setting):
            key = await self._client.get_user_delegation_key(start, expiry)
        permission = ContainerSasPermissions.from_string(policy.permissions)
        return generate_container_sas(
            account, container, user_delegation_key=key, permission=permission, start=start, expiry=expiry
        )

    async def blob_signature(self, container: str, name: str, valid: float) -> str:
        now = datetime.now(UTC)
        start, expiry = now - timedelta(seconds=CLOCK_SKEW), now + timedelta(seconds=valid - CLOCK_SKEW)
        by: dict[str, Any] = {"account_key": self._key}
        if self._key is None:
            if self._lent is None or self._lent[1] - now < timedelta(seconds=valid * _WORN):
                with _failing(f"cannot sign for blobs in container {container}", self._setting):
                    self._lent = await self._client.get_user_delegation_key(start, expiry), expiry
            key, end = self._lent
            by, expiry = {"user_delegation_key": key}, min(expiry, end)
        permission = BlobSasPermissions(read=True)
        signature = generate_blob_sas(
            self._account(), container, name, permission=permission, start=start, expiry=expiry, **by
        )
        return str(signature)

    def _account(self) -> str:
        account: str | None = self._client.account_name
        if account is None:
            raise StorageError("the account's name is not in its address", setting=self._setting)
        return account

    async def aclose(self) -> None:
        await self._client.close()


def _policy(policy: AccessPolicy) -> SdkPolicy:
    return SdkPolicy(
        permission=ContainerSasPermissions.from_string(policy.permissions),
        expiry=_moment(policy.expires_at),
    )


def _moment(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC)


def _quoted(etag: str) -> str:
    return f'"{etag.strip(chr(34))}"'
