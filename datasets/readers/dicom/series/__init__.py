"""From the slices of a series to the grid and the volumes that they make up, by the headers alone."""
