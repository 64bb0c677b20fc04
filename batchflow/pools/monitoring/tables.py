"""The tables in Log Analytics, and the rule that leads to them, as a template of Azure. Pure."""

from __future__ import annotations

from typing import Any, Final

TASKS: Final = "BatchflowTasks"
NODES: Final = "BatchflowNodes"
LOGS: Final = "BatchflowLogs"
_TIME: Final = "TimeGenerated"

TABLES: Final[dict[str, dict[str, str]]] = {
    TASKS: {
        _TIME: "datetime",
        "Pool": "string",
        "Job": "string",
        "Session": "string",
        "TaskId": "string",
        "Uid": "string",
        "Command": "string",
        "Outcome": "string",
        "Kind": "string",
        "Error": "string",
        "Node": "string",
        "Attempt": "int",
        "SubmittedAt": "datetime",
        "StartedAt": "datetime",
        "FinishedAt": "datetime",
        "QueueSeconds": "real",
        "RunSeconds": "real",
        "TraceId": "string",
    },
    NODES: {
        _TIME: "datetime",
        "Pool": "string",
        "Node": "string",
        "Host": "string",
        "Agent": "string",
        "Event": "string",
        "State": "string",
        "Detail": "string",
        "Slots": "int",
        "Busy": "int",
        "Completed": "long",
        "Failed": "long",
    },
    LOGS: {
        _TIME: "datetime",
        "Pool": "string",
        "Source": "string",
        "Node": "string",
        "Level": "string",
        "Event": "string",
        "TraceId": "string",
        "Fields": "dynamic",
    },
}
"""The columns of each table, and their types."""

_SCHEMA: Final = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
_API_TABLES: Final = "2022-10-01"
_API_RULES: Final = "2023-03-11"
_API_ROLES: Final = "2022-04-01"
_PUBLISHER: Final = "3913510d-42f4-4e42-8a64-420c390055eb"
"""The role "Monitoring Metrics Publisher"."""
_DESTINATION: Final = "workspace"


def stream_of(table: str) -> str:
    """Return the stream of the rule that leads to a table."""
    return f"Custom-{table}"


def template(retention_days: int) -> dict[str, Any]:
    """Return the template: the tables of a workspace, a rule of its own endpoint, and the right to send."""
    workspace = "[resourceId('Microsoft.OperationalInsights/workspaces', parameters('workspace'))]"
    rule = "[resourceId('Microsoft.Insights/dataCollectionRules', parameters('rule'))]"
    return {
        "$schema": _SCHEMA,
        "contentVersion": "1.0.0.0",
        "parameters": {
            "workspace": {"type": "string", "metadata": {"description": "The name of the workspace."}},
            "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
            "rule": {"type": "string", "defaultValue": "batchflow"},
            "principal": {
                "type": "string",
                "metadata": {"description": "The object id of who sends: a user, a group or an identity."},
            },
        },
        "resources": [
            *(_table(name, retention_days) for name in TABLES),
            {
                "type": "Microsoft.Insights/dataCollectionRules",
                "apiVersion": _API_RULES,
                "name": "[parameters('rule')]",
                "location": "[parameters('location')]",
                "kind": "Direct",
                "dependsOn": [_table_id(name) for name in TABLES],
                "properties": {
                    "streamDeclarations": {stream_of(name): {"columns": _columns(name)} for name in TABLES},
                    "destinations": {
                        "logAnalytics": [{"workspaceResourceId": workspace, "name": _DESTINATION}]
                    },
                    "dataFlows": [
                        {
                            "streams": [stream_of(name)],
                            "destinations": [_DESTINATION],
                            "outputStream": f"Custom-{name}_CL",
                        }
                        for name in TABLES
                    ],
                },
            },
            {
                "type": "Microsoft.Authorization/roleAssignments",
                "apiVersion": _API_ROLES,
                "name": "[guid(resourceGroup().id, parameters('rule'), parameters('principal'))]",
                "scope": "[format('Microsoft.Insights/dataCollectionRules/{0}', parameters('rule'))]",
                "dependsOn": [rule],
                "properties": {
                    "roleDefinitionId": "[subscriptionResourceId("
                    f"'Microsoft.Authorization/roleDefinitions', '{_PUBLISHER}')]",
                    "principalId": "[parameters('principal')]",
                },
            },
        ],
        "outputs": {
            "endpoint": {"type": "string", "value": f"[reference({rule[1:-1]}).endpoints.logsIngestion]"},
            "rule": {"type": "string", "value": f"[reference({rule[1:-1]}).immutableId]"},
            "streams": {"type": "string", "value": " ".join(map(stream_of, TABLES))},
        },
    }


def _table(name: str, retention_days: int) -> dict[str, Any]:
    return {
        "type": "Microsoft.OperationalInsights/workspaces/tables",
        "apiVersion": _API_TABLES,
        "name": f"[format('{{0}}/{name}_CL', parameters('workspace'))]",
        "properties": {
            "plan": "Analytics",
            "retentionInDays": retention_days,
            "schema": {"name": f"{name}_CL", "columns": _columns(name)},
        },
    }


def _table_id(name: str) -> str:
    return (
        "[resourceId('Microsoft.OperationalInsights/workspaces/tables', "
        f"parameters('workspace'), '{name}_CL')]"
    )


def _columns(name: str) -> list[dict[str, str]]:
    return [{"name": column, "type": kind} for column, kind in TABLES[name].items()]
