"""The local Service Bus: AMQP and the administration over HTTP, around the queues."""
