"""What properties look like that the local service only repeats: it refuses in them what Azure would refuse.

A shape is a mapping (an object with these properties and no others), a list of one shape (a list of such), a
tuple of words, a type, or ANY.
"""

from __future__ import annotations

from typing import Any, Final

from batchflow.local.batch.core.errors import Refused, invalid_property

ANY: Final = object()
Shape = Any
_SECRETS: Final = frozenset({"password", "sshPrivateKey", "protectedSettings"})
_TYPES: Final = {str: "A string", int: "A whole number", bool: "true or false"}

_MANAGED_DISK: Final[Shape] = {
    "diskEncryptionSet": {"id": str},
    "securityProfile": {
        "securityEncryptionType": ("DiskWithVMGuestState", "NonPersistedTPM", "VMGuestStateOnly")
    },
    "storageAccountType": ("standard_lrs", "premium_lrs", "standardssd_lrs"),
}
_CACHING: Final = ("none", "readonly", "readwrite")
_ACCESS_CONTROL: Final[Shape] = {"inVMAccessControlProfileReferenceId": str, "mode": ("Audit", "Enforce")}
_VIRTUAL_MACHINE: Final[Shape] = {
    "containerConfiguration": ANY,
    "dataDisks": [{"caching": _CACHING, "diskSizeGB": int, "lun": int, "managedDisk": _MANAGED_DISK,
                   "storageAccountType": str}],
    "diskEncryptionConfiguration": {
        "customerManagedKey": {
            "identityReference": {"resourceId": str}, "keyUrl": str,
            "rotationToLatestKeyVersionEnabled": bool,
        },
        "targets": [("osdisk", "temporarydisk")],
    },
    "extensions": [{
        "autoUpgradeMinorVersion": bool, "enableAutomaticUpgrade": bool, "name": str,
        "protectedSettings": ANY, "provisionAfterExtensions": [str], "publisher": str, "settings": ANY,
        "type": str, "typeHandlerVersion": str,
    }],
    "imageReference": {
        "communityGalleryImageId": str, "exactVersion": str, "offer": str, "publisher": str,
        "sharedGalleryImageId": str, "sku": str, "version": str, "virtualMachineImageId": str,
    },
    "licenseType": str,
    "nodeAgentSKUId": str,
    "nodePlacementConfiguration": {"policy": ("regional", "zonal")},
    "osDisk": {
        "caching": _CACHING, "diskSizeGB": int, "ephemeralOSDiskSettings": {"placement": ("cachedisk",)},
        "managedDisk": _MANAGED_DISK, "writeAcceleratorEnabled": bool,
    },
    "securityProfile": {
        "encryptionAtHost": bool,
        "proxyAgentSettings": {"enabled": bool, "imds": _ACCESS_CONTROL, "wireServer": _ACCESS_CONTROL},
        "securityType": ("trustedLaunch", "confidentialvm"),
        "uefiSettings": {"secureBootEnabled": bool, "vTpmEnabled": bool},
    },
    "serviceArtifactReference": {"id": str},
    "windowsConfiguration": {"enableAutomaticUpdates": bool},
}  # fmt: skip
_NETWORK: Final[Shape] = {
    "dynamicVNetAssignmentScope": ("none", "job"),
    "enableAcceleratedNetworking": bool,
    "endpointConfiguration": {
        "inboundNATPools": [{
            "backendPort": int, "frontendPortRangeEnd": int, "frontendPortRangeStart": int, "name": str,
            "networkSecurityGroupRules": [{
                "access": ("allow", "deny"), "priority": int, "sourceAddressPrefix": str,
                "sourcePortRanges": [str],
            }],
            "protocol": ("tcp", "udp"),
        }],
    },
    "publicIPAddressConfiguration": {
        "ipAddressIds": [str], "ipFamilies": [("IPv4", "IPv6")], "ipTags": [{"ipTagType": str, "tag": str}],
        "provision": ("batchmanaged", "usermanaged", "nopublicipaddresses"),
    },
    "subnetId": str,
}  # fmt: skip
_UPGRADES: Final[Shape] = {
    "automaticOSUpgradePolicy": {
        "disableAutomaticRollback": bool, "enableAutomaticOSUpgrade": bool, "osRollingUpgradeDeferral": bool,
        "useRollingUpgradePolicy": bool,
    },
    "mode": ("automatic", "manual", "rolling"),
    "rollingUpgradePolicy": {
        "enableCrossZoneUpgrade": bool, "maxBatchInstancePercent": int, "maxUnhealthyInstancePercent": int,
        "maxUnhealthyUpgradedInstancePercent": int, "pauseTimeBetweenBatches": str,
        "prioritizeUnhealthyInstances": bool, "rollbackFailedInstancesOnPolicyBreach": bool,
    },
}  # fmt: skip
_ELEVATION: Final = ("nonadmin", "admin")
_USERS: Final[Shape] = [{
    "elevationLevel": _ELEVATION,
    "linuxUserConfiguration": {"gid": int, "sshPrivateKey": str, "uid": int},
    "name": str,
    "password": str,
    "windowsUserConfiguration": {"loginMode": ("batch", "interactive")},
}]  # fmt: skip
SHAPES: Final[dict[str, Shape]] = {
    "affinityInfo": {"affinityId": str},
    "displayName": str,
    "networkConfiguration": _NETWORK,
    "targetNodeCommunicationMode": ("default", "classic", "simplified"),
    "upgradePolicy": _UPGRADES,
    "userAccounts": _USERS,
    "userIdentity": {"autoUser": {"elevationLevel": _ELEVATION, "scope": ("task", "pool")}, "username": str},
    "virtualMachineConfiguration": _VIRTUAL_MACHINE,
}
"""By the property's name; others are read, and checked, where they mean something here."""


def check(value: object, shape: Shape, path: str) -> None:
    """Refuse a value that has not this shape. Raises Refused, without the value where that is a secret."""
    if value is None or shape is ANY:
        return
    if isinstance(shape, dict):
        _check_object(value, shape, path)
    elif isinstance(shape, list):
        _check_list(value, shape[0], path)
    elif isinstance(shape, tuple):
        if not isinstance(value, str) or value.lower() not in {word.lower() for word in shape}:
            raise invalid_property(path, value, f"Allowed: {', '.join(shape)}.")
    elif not _is(value, shape):
        shown = "" if path.rpartition(".")[2] in _SECRETS else value
        raise invalid_property(path, shown, f"{_TYPES[shape]} is expected.")


def _check_object(value: object, shape: dict[str, Shape], path: str) -> None:
    if not isinstance(value, dict):
        raise Refused("InvalidRequestBody", PropertyName=path, Reason="an object is expected")
    for name, item in value.items():
        if name not in shape:
            reason = "the property does not exist on this type"
            raise Refused("InvalidRequestBody", PropertyName=f"{path}.{name}", Reason=reason)
        check(item, shape[name], f"{path}.{name}")


def _check_list(value: object, shape: Shape, path: str) -> None:
    if not isinstance(value, list):
        raise invalid_property(path, type(value).__name__, "A list is expected.")
    for number, item in enumerate(value):
        check(item, shape, f"{path}[{number}]")


def _is(value: object, kind: type) -> bool:
    """Tell whether a value has the type. One of Azure's own clients sends numbers and truth as strings."""
    if kind is int:
        return (isinstance(value, int) and not isinstance(value, bool)) or str(value).isdigit()
    if kind is bool:
        return isinstance(value, bool) or str(value).lower() in ("true", "false")
    return isinstance(value, kind)
