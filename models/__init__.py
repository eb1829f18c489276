"""The database: catalogues, the ledger, users of the panel; sessions, change capture and search."""
