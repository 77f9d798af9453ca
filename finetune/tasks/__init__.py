"""What a study trains: segmentation, classification, regression, detection, behind one interface."""
