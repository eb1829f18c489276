"""The tables: catalogues, the ledger, the panel's people; sessions and change capture."""
