"""What is read of headers: single values, closed vocabularies, who the scan is of, and each file in short."""
