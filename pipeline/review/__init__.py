"""Looking at results: scores, the report page, and what a network looked at."""
