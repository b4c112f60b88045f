"""``flannelpy check``: follows the way of a packet link by link, and names what is broken."""
