"""Reading XML that comes from outside: UTF-8 without a document type, in time linear in its bytes.

An encoding that the document names is not looked up, so none can be unknown. Without a document type there
are no entities to multiply.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET


class NotXml(ValueError):
    """The bytes are no document that is read here; the text says why."""


def read_xml(body: bytes) -> ET.Element:
    """Return the root of a document. Raises :class:`NotXml`."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NotXml("it is not UTF-8") from None
    if "<!DOCTYPE" in text:
        raise NotXml("it has a document type")
    parser = ET.XMLParser(encoding="utf-8")
    try:
        parser.feed(text.encode())
        return parser.close()
    except ET.ParseError as error:
        raise NotXml(str(error)) from None
