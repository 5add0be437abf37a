"""featurestore_server: a feature store over HTTP. `contract.py` says what it answers, `app.create_app` makes the application."""
