"""What the Batch SDK is told to make a pool."""

from __future__ import annotations

from typing import Any

from azure.batch import models


def pool_options(pool_id: str, nodes: int, **options: Any) -> models.BatchPoolCreateOptions:
    """A pool of the default image."""
    image = models.BatchVmImageReference(publisher="Canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    defaults: dict[str, Any] = {
        "vm_size": "Standard_D2s_v3",
        "target_dedicated_nodes": nodes,
        "virtual_machine_configuration": machine,
    }
    return models.BatchPoolCreateOptions(id=pool_id, **(defaults | options))
