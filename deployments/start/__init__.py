"""Everything before the application runs: settings, environment, preparation."""
