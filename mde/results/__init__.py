"""What commands share: the proxy runs, the fitted predictor, named mixtures, trained runs and their scores."""
