"""The local Service Bus without its sockets. Pure: no I/O, no clock."""
