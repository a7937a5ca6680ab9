"""From features of mixtures to their losses: regressors and their cross-validation. Sees numbers only."""
