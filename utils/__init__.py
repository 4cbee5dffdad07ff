"""How we train, measure and write down; knows no model by name. A regular package: found first."""
