"""`scanforge models`: a catalogue of released models, their installation, a look into any file, releases of our own."""
