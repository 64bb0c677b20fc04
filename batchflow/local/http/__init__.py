"""What the local services that speak HTTP share: the server, XML, and what is told of errors inside."""
