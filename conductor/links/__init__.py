"""Links: what one subscriber knows of one record. Only `state` and `leases` write table `link`."""
