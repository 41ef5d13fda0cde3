"""The request handlers, one module per part of the Hub's HTTP API. Each exports its `ROUTES`."""
