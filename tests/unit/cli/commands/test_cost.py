"""`batchflow cost`, `batchflow prices` and budgets on the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from tests.support.command_line import Cli

ITEM = {
    "currencyCode": "EUR",
    "retailPrice": 0.5,
    "armRegionName": "westeurope",
    "productName": "Virtual Machines DSv3 Series",
    "skuName": "D2s v3",
    "unitOfMeasure": "1 Hour",
    "type": "Consumption",
    "armSkuName": "Standard_D2s_v3",
}


class _PriceList(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"Items": [ITEM], "NextPageLink": None, "Count": 1}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Keep the test's output clean."""


@contextmanager
def price_list() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _PriceList) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api/retail/prices"
        server.shutdown()
        thread.join()


def test_a_run_stops_at_its_budget_and_the_pool_tells_its_cost(cli: Cli) -> None:
    cli.write("mine/s.py", "import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n")
    cli.write(
        "batchflow.toml",
        'target = "local"\n[pool]\nprices = "prices.toml"\n'
        '[pools.spend]\nnodes = 1\nslots = 1\nfiles = ["mine/"]\nbudget = { node_hours = 10 }\n',
    )
    with price_list() as url:
        written = cli("prices", "--region", "westeurope", "--currency", "eur", "--url", url)
    assert written.returncode == 0, written.stderr
    assert cli("pool", "create", "spend").returncode == 0
    try:
        ran = cli("run", "--pool", "spend", "--budget", "0.0001", "s.py", *["0.5"] * 6)
        rows = [json.loads(line) for line in ran.stdout.splitlines()]
        assert ran.returncode == 1
        assert {row.get("kind") for row in rows} == {None, "BudgetExceeded"}
        told = cli("cost", "spend", "--json")
        cost = json.loads(told.stdout)
        assert (told.returncode, cost["budget"]) == (0, {"limit": 10, "currency": None})
        assert cost["currency"] == "EUR"
        assert cost["amount"] > 0
        assert "EUR" in cli("pool", "list").stdout
    finally:
        assert cli("pool", "delete", "spend").returncode == 0


def test_a_budget_that_is_none_is_refused_with_its_key(cli: Cli) -> None:
    refused = cli("pool", "create", "never", "--budget", "-3")
    assert (refused.returncode, "budget.node_hours" in refused.stderr) == (2, True)
    assert cli("run", "--local", "x.py", "--budget", "much").returncode == 2
    cli.write("batchflow.toml", 'target = "local"\n[pools.never]\nbudget = { hours = 1 }\n')
    refused = cli("pool", "create", "never")
    assert (refused.returncode, "pools.never.budget: unknown key hours" in refused.stderr) == (2, True)
