"""Translates batchflow's documents into the models of the Batch SDK."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from azure.batch import models

from batchflow.ports.compute import SupportedImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.ports.compute import BatchTask, PoolDocument, ResourceFile

DEFAULT_NODE_AGENT = "batch.node.ubuntu 24.04"
"""The node agent SKU of the default image, for a document that names none."""


def pool_options(document: PoolDocument) -> models.BatchPoolCreateOptions:
    """Translate the document of a new pool."""
    fixed = document.formula is None
    interval = None if fixed else timedelta(seconds=document.formula_interval)
    return models.BatchPoolCreateOptions(
        id=document.id,
        vm_size=document.vm_size,
        virtual_machine_configuration=_machine(document),
        target_dedicated_nodes=document.nodes if fixed else None,
        target_low_priority_nodes=document.spot if fixed else None,
        enable_auto_scale=None if fixed else True,
        auto_scale_formula=document.formula,
        auto_scale_evaluation_interval=interval,
        task_slots_per_node=document.task_slots,
        start_task=start_task(document),
        metadata=[models.BatchMetadataItem(name=k, value=v) for k, v in document.metadata.items()],
        network_configuration=(
            None if document.subnet is None else models.NetworkConfiguration(subnet_id=document.subnet)
        ),
    )


def _machine(document: PoolDocument) -> models.VirtualMachineConfiguration:
    image, containers = document.image, None
    if document.container is not None:
        containers = models.BatchContainerConfiguration(
            type=models.ContainerType.DOCKER_COMPATIBLE, container_image_names=[document.container]
        )
    return models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher=image.publisher, offer=image.offer, sku=image.sku, version=image.version
        ),
        node_agent_sku_id=image.node_agent or DEFAULT_NODE_AGENT,
        container_configuration=containers,
    )


def start_task(document: PoolDocument) -> models.BatchStartTask | None:
    """Translate the start task of the nodes; None without one."""
    if document.start_command is None:
        return None
    level = models.ElevationLevel.ADMIN if document.start_admin else models.ElevationLevel.NON_ADMIN
    user = models.AutoUserSpecification(scope=models.AutoUserScope.POOL, elevation_level=level)
    return models.BatchStartTask(
        command_line=document.start_command,
        environment_settings=_environment(document.environment),
        user_identity=models.UserIdentity(auto_user=user),
        wait_for_success=True,
    )


def _environment(environment: Mapping[str, str]) -> list[models.EnvironmentSetting]:
    return [models.EnvironmentSetting(name=name, value=value) for name, value in environment.items()]


def task_options(task: BatchTask) -> models.BatchTaskCreateOptions:
    """Translate a task to be added."""
    container = None
    if task.container is not None:
        # The agent's files lie in the task's directory, and images may begin in another one.
        container = models.BatchTaskContainerSettings(
            image_name=task.container,
            working_directory=models.ContainerWorkingDirectory.TASK_WORKING_DIRECTORY,
        )
    return models.BatchTaskCreateOptions(
        id=task.id,
        command_line=task.command,
        container_settings=container,
        resource_files=[_resource_file(file) for file in task.files],
        environment_settings=_environment(task.environment),
        required_slots=task.slots,
        constraints=models.BatchTaskConstraints(max_task_retry_count=task.retries),
    )


def _resource_file(file: ResourceFile) -> models.ResourceFile:
    identity = None if file.identity is None else models.BatchNodeIdentityReference(resource_id=file.identity)
    return models.ResourceFile(
        http_url=file.url, file_path=file.path, file_mode=file.mode, identity_reference=identity
    )


def supported_image(image: models.BatchSupportedImage) -> SupportedImage:
    """Translate an image that Batch supports."""
    reference, end = image.image_reference, image.batch_support_end_of_life
    return SupportedImage(
        publisher=reference.publisher or "",
        offer=reference.offer or "",
        sku=reference.sku or "",
        node_agent=image.node_agent_sku_id,
        linux="linux" in str(image.os_type).lower(),
        containers="dockercompatible" in {word.lower() for word in image.capabilities or ()},
        end_of_life=None if end is None else end.timestamp(),
    )
