"""Shorthands for the Batch SDK."""

from __future__ import annotations

from typing import Any

import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError


def code(caught: pytest.ExceptionInfo[HttpResponseError]) -> str | None:
    """Return the service's code of an error, or None when the answer has none."""
    model = caught.value.model
    return model.code if isinstance(model, models.BatchError) else None


def pool_options(pool_id: str, nodes: int, **options: Any) -> models.BatchPoolCreateOptions:
    """Describe a pool of the default image."""
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
