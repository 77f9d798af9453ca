"""`scanfoundry models`: the catalogue of released models, their installation, inspection of files, and releases."""
