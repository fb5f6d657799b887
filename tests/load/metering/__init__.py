"""The phases of `just bench metering`, each a function from its settings to its figures."""
