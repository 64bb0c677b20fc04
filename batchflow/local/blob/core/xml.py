"""The XML documents of the Blob service: listings, policies, block lists, errors. Text in, text out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from base64 import b64encode
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import cast
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from batchflow.local.blob.core.auth import DelegatedKey
from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.model import (
    MAX_BLOCKS,
    BlobPage,
    Block,
    BlockChoice,
    ContainerPage,
    Listed,
    Metadata,
    StoredAccessPolicy,
    StoredBlob,
    StoredContainer,
)
from batchflow.local.http.xml_reader import NotXml, read_xml

_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>'
# The XML 1.0 "Char" production, turned round.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def error_document(code: str, message: str) -> str:
    """Return the body of an error."""
    return f"{_DECLARATION}<Error>{_element('Code', code)}{_element('Message', message)}</Error>"


def containers_document(
    page: ContainerPage, endpoint: str, asked: Iterable[tuple[str, str]], marker: str, metadata: bool
) -> str:
    """Return the answer to List Containers; `asked` are the request's own parameters, echoed."""
    items = "".join(_container(container, metadata) for container in page.containers)
    return (
        f"{_DECLARATION}<EnumerationResults ServiceEndpoint={quoteattr(endpoint)}>{_elements(asked)}"
        f"<Containers>{items}</Containers>{_element('NextMarker', marker)}</EnumerationResults>"
    )


def blobs_document(
    page: BlobPage,
    endpoint: str,
    container: str,
    asked: Iterable[tuple[str, str]],
    marker: str,
    metadata: bool,
) -> str:
    """Return the answer to List Blobs; `asked` are the request's own parameters, echoed."""
    items = "".join(_listed(entry, metadata) for entry in page.entries)
    return (
        f"{_DECLARATION}<EnumerationResults ServiceEndpoint={quoteattr(endpoint)} "
        f"ContainerName={quoteattr(container)}>{_elements(asked)}"
        f"<Blobs>{items}</Blobs>{_element('NextMarker', marker)}</EnumerationResults>"
    )


def policies_document(policies: Sequence[StoredAccessPolicy]) -> str:
    """Return the answer to Get Container ACL."""
    items = "".join(_policy(policy) for policy in policies)
    return f"{_DECLARATION}<SignedIdentifiers>{items}</SignedIdentifiers>"


def block_list_document(committed: Sequence[Block] | None, uncommitted: Sequence[Block] | None) -> str:
    """Return the answer to Get Block List; None leaves a list out."""
    parts = [
        f"<{name}>{''.join(_block(block) for block in blocks)}</{name}>"
        for name, blocks in (("CommittedBlocks", committed), ("UncommittedBlocks", uncommitted))
        if blocks is not None
    ]
    return f"{_DECLARATION}<BlockList>{''.join(parts)}</BlockList>"


def parse_policies(body: bytes) -> tuple[StoredAccessPolicy, ...]:
    """Read the body of Set Container ACL; an empty body is no policy."""
    if not body:
        return ()
    root = _parse(body, "SignedIdentifiers")
    return tuple(_parse_policy(item) for item in root.iterfind("SignedIdentifier"))


def parse_key_info(body: bytes) -> tuple[str, str]:
    """Read the body of Get User Delegation Key: from when and until when it is asked for."""
    root = _parse(body, "KeyInfo")
    start, expiry = (root.findtext(name) or "" for name in ("Start", "Expiry"))
    if not start or not expiry:
        raise BlobRefused(BlobErrorCode.INVALID_XML_DOCUMENT, "Start and Expiry are due.")
    return start, expiry


def delegated_key_document(key: DelegatedKey) -> str:
    """Return the answer to Get User Delegation Key."""
    names = (
        "SignedOid",
        "SignedTid",
        "SignedStart",
        "SignedExpiry",
        "SignedService",
        "SignedVersion",
        "Value",
    )
    fields = "".join(_element(name, value) for name, value in zip(names, key, strict=True))
    return f"{_DECLARATION}<UserDelegationKey>{fields}</UserDelegationKey>"


def parse_block_list(body: bytes) -> tuple[tuple[BlockChoice, str], ...]:
    """Read the body of Put Block List."""
    root = _parse(body, "BlockList")
    if len(root) > MAX_BLOCKS:
        raise BlobRefused(BlobErrorCode.BLOCK_LIST_TOO_LONG)
    if any(item.tag not in ("Committed", "Uncommitted", "Latest") for item in root):
        raise BlobRefused(BlobErrorCode.INVALID_XML_DOCUMENT)
    return tuple((cast(BlockChoice, item.tag), (item.text or "").strip()) for item in root)


def http_date(moment: float) -> str:
    """Return a time in seconds since the epoch as an HTTP date."""
    return formatdate(moment, usegmt=True)


def _parse(body: bytes, root: str) -> ElementTree.Element:
    try:
        document = read_xml(body)
    except NotXml as error:
        raise BlobRefused(BlobErrorCode.INVALID_XML_DOCUMENT, f"The body is not XML: {error}.") from None
    if document.tag != root:
        raise BlobRefused(BlobErrorCode.INVALID_XML_DOCUMENT, f"The document's root must be {root}.")
    return document


def _parse_policy(item: ElementTree.Element) -> StoredAccessPolicy:
    def text(path: str) -> str | None:
        return (item.findtext(path) or "").strip() or None

    identifier = text("Id")
    if identifier is None or len(identifier) > 64:
        raise BlobRefused(BlobErrorCode.INVALID_XML_DOCUMENT, "A policy's Id has 1 to 64 characters.")
    return StoredAccessPolicy(
        identifier, text("AccessPolicy/Permission"), text("AccessPolicy/Start"), text("AccessPolicy/Expiry")
    )


def _policy(policy: StoredAccessPolicy) -> str:
    fields = (("Start", policy.start), ("Expiry", policy.expiry), ("Permission", policy.permissions))
    terms = _elements((name, value) for name, value in fields if value is not None)
    identifier = _element("Id", policy.id)
    return f"<SignedIdentifier>{identifier}<AccessPolicy>{terms}</AccessPolicy></SignedIdentifier>"


def _block(block: Block) -> str:
    return f"<Block>{_element('Name', block.id)}{_element('Size', str(block.size))}</Block>"


def _container(container: StoredContainer, metadata: bool) -> str:
    properties = _elements(
        (
            ("Last-Modified", http_date(container.stamp.modified)),
            ("Etag", container.stamp.etag),
            *_UNLEASED,
            ("HasImmutabilityPolicy", "false"),
            ("HasLegalHold", "false"),
        )
    )
    shown = _metadata(container.metadata) if metadata else ""
    name = _element("Name", container.name)
    return f"<Container>{name}<Properties>{properties}</Properties>{shown}</Container>"


def _listed(entry: Listed, metadata: bool) -> str:
    if entry.blob is None:
        return f"<BlobPrefix>{_name(entry.name)}</BlobPrefix>"
    shown = _metadata(entry.blob.content.metadata) if metadata else ""
    return f"<Blob>{_name(entry.name)}<Properties>{_properties(entry.blob)}</Properties>{shown}</Blob>"


_UNLEASED = (("LeaseStatus", "unlocked"), ("LeaseState", "available"))


def _properties(blob: StoredBlob) -> str:
    settings = blob.content.settings
    return _elements(
        (
            ("Creation-Time", http_date(blob.created)),
            ("Last-Modified", http_date(blob.stamp.modified)),
            ("Etag", blob.stamp.etag.strip('"')),
            ("Content-Length", str(blob.content.size)),
            ("Content-Type", settings.content_type),
            ("Content-Encoding", settings.encoding or ""),
            ("Content-Language", settings.language or ""),
            ("Content-MD5", b64encode(settings.md5).decode() if settings.md5 else ""),
            ("Cache-Control", settings.cache_control or ""),
            ("Content-Disposition", settings.disposition or ""),
            ("BlobType", blob.content.kind),
            *_UNLEASED,
            ("ServerEncrypted", "true"),
        )
    )


def _metadata(metadata: Metadata) -> str:
    return f"<Metadata>{_elements(metadata.items())}</Metadata>"


def _name(name: str) -> str:
    if _NOT_XML.search(name):
        return f'<Name Encoded="true">{quote(name)}</Name>'
    return _element("Name", name)


def _elements(fields: Iterable[tuple[str, str]]) -> str:
    return "".join(_element(name, value) for name, value in fields)


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(_NOT_XML.sub('�', text))}</{name}>" if text else f"<{name} />"
