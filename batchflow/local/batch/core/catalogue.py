"""What the local Batch service pretends to have on offer: VM sizes and images.

A selection of what Azure Batch supports, enough to choose from and to be refused by.
"""

from __future__ import annotations

from batchflow.support.frozen import frozen

PAST = "2020-01-01T00:00:00Z"
"""The end of life of an image that a test wants retired."""


@frozen
class MarketplaceImage:
    """A Marketplace image with the node agent that goes with it."""

    publisher: str
    offer: str
    sku: str
    agent: str
    verified: bool = True
    end_of_life: str | None = None

    @property
    def name(self) -> str:
        """As faults have it."""
        return f"{self.publisher}:{self.offer}:{self.sku}"


IMAGES = (
    MarketplaceImage("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04"),
    MarketplaceImage(
        "canonical",
        "0001-com-ubuntu-server-jammy",
        "22_04-lts",
        "batch.node.ubuntu 22.04",
        end_of_life="2027-06-01T00:00:00Z",
    ),
    MarketplaceImage(
        "canonical",
        "0001-com-ubuntu-server-focal",
        "20_04-lts",
        "batch.node.ubuntu 20.04",
        end_of_life="2025-04-23T00:00:00Z",
    ),
    MarketplaceImage("debian", "debian-12", "12-gen2", "batch.node.debian 12"),
    MarketplaceImage("almalinux", "almalinux-x86_64", "9-gen2", "batch.node.el 9"),
    MarketplaceImage("microsoft-dsvm", "ubuntu-hpc", "2204", "batch.node.ubuntu 22.04", verified=False),
)


def _family(pattern: str, *cores: int) -> dict[str, int]:
    return {f"standard_{pattern.format(count)}": count for count in cores}


CORES: dict[str, int] = {
    "standard_a1_v2": 1,
    "standard_a2_v2": 2,
    "standard_a4_v2": 4,
    "standard_a8_v2": 8,
    "standard_d1_v2": 1,
    "standard_d2_v2": 2,
    "standard_d3_v2": 4,
    "standard_d4_v2": 8,
    "standard_d5_v2": 16,
    "standard_ds1_v2": 1,
    "standard_ds2_v2": 2,
    "standard_ds3_v2": 4,
    "standard_ds4_v2": 8,
    **_family("d{}_v3", 2, 4, 8, 16, 32, 64),
    **_family("d{}s_v3", 2, 4, 8, 16, 32, 64),
    **_family("d{}_v4", 2, 4, 8, 16, 32, 64),
    **_family("d{}s_v4", 2, 4, 8, 16, 32, 64),
    **_family("d{}a_v4", 2, 4, 8, 16, 32, 64),
    **_family("d{}as_v4", 2, 4, 8, 16, 32, 64),
    **_family("d{}_v5", 2, 4, 8, 16, 32, 64),
    **_family("d{}s_v5", 2, 4, 8, 16, 32, 64),
    **_family("d{}ds_v5", 2, 4, 8, 16, 32, 64),
    **_family("d{}as_v5", 2, 4, 8, 16, 32, 64),
    **_family("d{}ads_v5", 2, 4, 8, 16, 32, 64),
    **_family("e{}_v3", 2, 4, 8, 16, 32, 64),
    **_family("e{}s_v3", 2, 4, 8, 16, 32, 64),
    **_family("e{}s_v5", 2, 4, 8, 16, 32, 64),
    **_family("e{}ds_v5", 2, 4, 8, 16, 32, 64),
    **_family("f{}s_v2", 2, 4, 8, 16, 32, 64),
}
"""The cores of the VM sizes, by their lower-case names."""


def find_image(publisher: str, offer: str, sku: str) -> MarketplaceImage | None:
    """Return the image of that name, in any case."""
    wanted = (publisher.lower(), offer.lower(), sku.lower())
    for image in IMAGES:
        if (image.publisher, image.offer, image.sku) == wanted:
            return image
    return None
