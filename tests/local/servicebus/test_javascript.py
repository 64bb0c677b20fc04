"""Administration through JavaScript's unmodified client, which reads names as they stand in the text.

Needs node and what `npm install @azure/service-bus` brings: in `node_modules` of the project's directory, or
where NODE_PATH says.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from batchflow.local.security.sas import Rights, SasRule
from batchflow.local.servicebus.core.atom import write_entry
from batchflow.local.servicebus.core.namespace import Namespace, QueueSettings
from batchflow.local.servicebus.server import ServiceBusServer

MODULES = Path(os.environ.get("NODE_PATH") or Path(__file__).parents[3] / "node_modules")
PROGRAM = """
const { ServiceBusAdministrationClient } = require("@azure/service-bus");
const client = new ServiceBusAdministrationClient(process.argv[1]);
const rule = {
  claimType: "SharedAccessKey", accessRights: ["Listen", "Send"], keyName: "agents",
  primaryKey: Buffer.alloc(32, 1).toString("base64"), secondaryKey: Buffer.alloc(32, 2).toString("base64"),
};
(async () => {
  const told = {};
  const options = { requiresSession: true, lockDuration: "PT45S", authorizationRules: [rule] };
  told.created = await client.createQueue("scripted", options);
  told.read = await client.getQueue("scripted");
  told.runtime = await client.getQueueRuntimeProperties("scripted");
  told.names = [];
  for await (const queue of client.listQueues()) told.names.push(queue.name);
  told.exists = [await client.queueExists("scripted"), await client.queueExists("nowhere")];
  told.sku = (await client.getNamespaceProperties()).messagingSku;
  told.changed = await client.updateQueue({ ...told.read, maxDeliveryCount: 77 });
  await client.deleteQueue("scripted");
  told.after = await client.queueExists("scripted");
  try { await client.getQueue("scripted"); } catch (error) { told.missing = error.code; }
  console.log(JSON.stringify(told));
})();
"""


@pytest.fixture
def run_script(server: ServiceBusServer, ca_file: Path) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Runs the program against the server; what it told."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    if not (MODULES / "@azure" / "service-bus").is_dir():
        pytest.skip(f"@azure/service-bus is not installed in {MODULES}")

    async def run() -> dict[str, Any]:
        environment = {**os.environ, "NODE_PATH": str(MODULES), "NODE_EXTRA_CA_CERTS": str(ca_file)}
        process = await asyncio.create_subprocess_exec(
            node, "-e", PROGRAM, server.connection_string, env=environment, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        told: dict[str, Any] = json.loads(said)
        return told

    return run


async def test_queues_are_administered_from_javascript(
    run_script: Callable[[], Awaitable[dict[str, Any]]],
) -> None:
    """A queue is created, read, listed, changed and deleted, its rules and counts with it."""
    told = await run_script()
    for properties in (told["created"], told["read"]):
        assert (properties["name"], properties["lockDuration"]) == ("scripted", "PT45S")
        assert properties["requiresSession"] is True
        (rule,) = properties["authorizationRules"]
        assert (rule["keyName"], set(rule["accessRights"])) == ("agents", {"Listen", "Send"})
    assert told["runtime"]["activeMessageCount"] == told["runtime"]["totalMessageCount"] == 0
    assert (told["names"], told["exists"], told["sku"]) == (["scripted"], [True, False], "Standard")
    assert told["changed"]["maxDeliveryCount"] == 77
    assert (told["after"], told["missing"]) == (False, "MessageEntityNotFoundError")


def test_names_stand_in_the_text_as_the_service_writes_them() -> None:
    """No prefix but the counts' and the types', each declared where the service declares it."""
    rule = SasRule("agents", Rights.LISTEN, "first", "second")
    namespace = Namespace("root", new_token=lambda: b"", created_at=0.0)
    queue = namespace.create("plain", QueueSettings(rules=(rule,)), 0.0)
    text = write_entry(queue, "https://here").decode()
    for piece in (
        '<entry xmlns="http://www.w3.org/2005/Atom"><id>https://',
        '<title type="text">plain</title>',
        '<QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"',
        '<AuthorizationRule i:type="SharedAccessAuthorizationRule"><ClaimType>SharedAccessKey</ClaimType>',
        '<CountDetails xmlns:d2p1="http://schemas.microsoft.com/netservices/2011/06/servicebus">'
        "<d2p1:ActiveMessageCount>0</d2p1:ActiveMessageCount>",
    ):
        assert piece in text
