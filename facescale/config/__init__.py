"""What a job can be told: frozen pydantic models, one file per stage, read from YAML and flags."""
