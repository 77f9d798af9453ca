"""Charts and pictures as images that stand in a page itself. Drawn without pyplot: no global state is touched."""
