"""The adaptors to Azure: the only place that imports its SDKs.

`servicebus`, `blob` and `batch` implement the ports `batchflow.ports.broker`, `batchflow.ports.storage` and
`batchflow.ports.compute`. Each imports its own SDK and no other, for an import takes as long as a warm task.
"""
