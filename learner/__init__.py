"""What learns: models of the temporal graph, and the steps that train them online and offline."""
